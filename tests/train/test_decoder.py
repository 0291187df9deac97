import json
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from torch import Tensor

from sote.train import decoder, diffusion, modelfile, models, text
from sote.train.decoder import Decoder

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "stage_b.json").read_text())


@pytest.fixture
def model(tiny: Path) -> Decoder:
    """The stand-in decoder in eval mode."""
    found = modelfile.decoder(str(tiny / "decoder"), field="model.decoder")
    assert found.text_encoder is not None
    unet = models.unet_model(found.unet, dtype=torch.float32, device="cpu")
    encoder = models.text_model(found.text_encoder, dtype=torch.float32, device="cpu")
    return Decoder(unet, encoder, mask_padding=True).eval()


@pytest.fixture
def inputs(tiny: Path) -> tuple[Tensor, ...]:
    """Three pictures of 128 x 192 pixels; the encoder saw them at half their size, and one of them not at all."""
    random = torch.Generator().manual_seed(1)
    vq, noise = (torch.randn(3, 4, 32, 48, generator=random) for _ in range(2))
    time = torch.tensor([0.1, 0.5, 0.9])
    tokenizer = models.tokenizer(tiny / "decoder" / "tokenizer")
    tokens, mask = text.tokens(tokenizer, ["a red circle", "", "blue square"], windows=decoder.WINDOWS)
    latents, keep = torch.randn(3, 16, 2, 3, generator=random), torch.tensor([True, False, True])
    return vq, noise, time, tokens, mask, latents, keep, diffusion.p2_weight(diffusion.log_snr(time))


def test_the_whole_forward_agrees_with_diffusers_unet(model: Decoder, inputs: tuple[Tensor, ...], tiny: Path) -> None:
    vq, noise, time, tokens, mask, latents, keep, weight = inputs
    theirs = StableCascadeUNet.from_pretrained(tiny / "decoder" / "decoder").eval()
    with torch.no_grad():
        loss, plain = model(*inputs)
        signal = diffusion.log_snr(time).sigmoid()[:, None, None, None]
        guess = theirs(
            vq / 0.43 * signal.sqrt() + noise * (1 - signal).sqrt(),  # Stability's stage_a.py divides by 0.43
            timestep_ratio=diffusion.noise_condition(diffusion.log_snr(time)),
            clip_text_pooled=text.embed(model.text_encoder, tokens, mask)[1],
            effnet=latents * keep[:, None, None, None],
            pixels=torch.zeros(3, 3, 8, 8),
        ).sample
    expected = (guess - noise).square().flatten(1).mean(1)
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, (expected * weight).mean(), rtol=1e-5, atol=1e-6)


def test_the_loss_does_not_depend_on_how_a_batch_is_split(model: Decoder, inputs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        whole = model(*inputs)[1]
        parts = [model(*(tensor[place : place + 1] for tensor in inputs))[1] for place in range(3)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_an_image_without_the_encoders_latents_does_not_see_them(model: Decoder, inputs: tuple[Tensor, ...]) -> None:
    vq, noise, time, tokens, mask, latents, keep, weight = inputs
    with torch.no_grad():
        plain = model(*inputs)[1]
        broken = torch.where(keep[:, None, None, None], latents, torch.nan)
        assert torch.equal(model(vq, noise, time, tokens, mask, broken, keep, weight)[1], plain)
        shown = model(vq, noise, time, tokens, mask, latents, torch.ones_like(keep), weight)[1]
    assert torch.equal(shown[keep], plain[keep])
    assert not torch.equal(shown[~keep], plain[~keep])


def test_the_decoder_learns_and_its_text_encoder_does_not(model: Decoder, inputs: tuple[Tensor, ...]) -> None:
    model.train()(*inputs)[0].backward()
    without = [name for name, tensor in model.named_parameters() if tensor.grad is None]
    assert without
    assert all(name.startswith("text_encoder.") for name in without)
    assert not any(tensor.requires_grad for tensor in model.text_encoder.parameters())
    assert model.decoder.training
    assert not model.text_encoder.training


def test_the_time_stays_float32_in_bfloat16_arithmetic(model: Decoder, inputs: tuple[Tensor, ...]) -> None:
    told = []
    model.decoder.register_forward_pre_hook(lambda _, __, kwargs: told.append(kwargs["time_B"]), with_kwargs=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, plain = model.to(torch.bfloat16)(*inputs)
    assert torch.equal(told[0], diffusion.noise_condition(diffusion.log_snr(inputs[2])))
    assert loss.dtype == plain.dtype == torch.float32
    assert plain.isfinite().all()


@pytest.mark.parametrize("golden", GOLDEN["encoder_input"], ids=lambda golden: f"{golden['width']}x{golden['height']}")
def test_the_encoder_is_shown_pictures_of_stabilitys_sizes(golden: dict[str, float]) -> None:
    pixels = torch.zeros(1, int(golden["height"]), int(golden["width"]), 3, dtype=torch.uint8)
    assert list(decoder.encoder_input(pixels, scale=golden["scale"]).shape[1:3]) == golden["input"]


def test_it_is_shown_the_nearest_pixels_as_torchvision_takes_them() -> None:
    columns, rows = torch.meshgrid(torch.arange(96), torch.arange(64), indexing="xy")
    pixels = torch.stack([rows, columns, columns], dim=-1)[None].to(torch.uint8)
    shown = decoder.encoder_input(pixels, scale=0.7)
    assert shown.dtype == torch.uint8
    assert shown.shape == (1, 32, 64, 3)
    assert (shown[0, 0, :, 0].int() * 96 + shown[0, 0, :, 1]).tolist() == GOLDEN["nearest"]["row"]
    assert (shown[0, :, 0, 0].int() * 96 + shown[0, :, 0, 1]).tolist() == GOLDEN["nearest"]["column"]


def test_the_smallest_pictures_are_shown_as_one_cell() -> None:
    assert decoder.encoder_input(torch.zeros(1, 32, 48, 3, dtype=torch.uint8), scale=0.5).shape == (1, 32, 32, 3)


def test_at_full_scale_pictures_are_shown_as_they_are() -> None:
    pixels = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    assert torch.equal(decoder.encoder_input(pixels, scale=1.0), pixels)
