from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from torch import Tensor

from sote.train import diffusion, modelfile, models, text
from sote.train.prior import Prior

CAPTIONS = ["a red circle, best quality", "", "blue square, " * 40, "1girl, solo"]


@pytest.fixture
def make(tiny: Path) -> "Make":
    return Make(tiny)


class Make:
    """Makes the stand-in prior, in eval mode, and inputs for it."""

    def __init__(self, tiny: Path) -> None:
        self.found = modelfile.prior(str(tiny / "prior"), field="model.prior")
        self.tokenizer = models.tokenizer(self.found.tokenizer)

    def prior(self, *, mask_padding: bool = True, train_text_encoder: bool = True) -> Prior:
        unet = models.unet_model(self.found.unet, dtype=torch.float32, device="cpu")
        encoder = models.text_model(self.found.text_encoder, dtype=torch.float32, device="cpu")
        return Prior(unet, encoder, mask_padding=mask_padding, train_text_encoder=train_text_encoder).eval()

    def inputs(self, *, windows: int = 1) -> tuple[Tensor, ...]:
        """Four images of 6 x 10 cells."""
        random = torch.Generator().manual_seed(1)
        latents, noise = (torch.randn(4, 16, 6, 10, generator=random) for _ in range(2))
        time = torch.tensor([0.02, 0.3, 0.7, 0.99])
        tokens, mask = text.tokens(self.tokenizer, CAPTIONS, windows=windows)
        return latents, noise, time, tokens, mask, diffusion.p2_weight(diffusion.log_snr(time))


@pytest.mark.parametrize("windows", [1, 3])
def test_the_whole_forward_agrees_with_diffusers_unet(make: Make, tiny: Path, windows: int) -> None:
    model, (latents, noise, time, tokens, mask, weight) = make.prior(), make.inputs(windows=windows)
    theirs = StableCascadeUNet.from_pretrained(tiny / "prior" / "prior").eval()
    with torch.no_grad():
        loss, plain = model(latents, noise, time, tokens, mask, weight)
        states, pooled = text.embed(model.text_encoder, tokens, mask)
        assert states.shape[1] == 2 + 75 * windows
        # gdf: sqrt(alpha bar) x + sqrt(1 - alpha bar) e, and the time again within its clamps; the target is e
        signal = diffusion.log_snr(time).sigmoid()[:, None, None, None]
        guess = theirs(
            latents * signal.sqrt() + noise * (1 - signal).sqrt(),
            timestep_ratio=diffusion.noise_condition(diffusion.log_snr(time)),
            clip_text_pooled=pooled,
            clip_text=states,
            clip_img=torch.zeros(4, 1, theirs.config["clip_image_in_channels"]),
        ).sample
    expected = (guess - noise).square().flatten(1).mean(1)
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, (expected * weight).mean(), rtol=1e-5, atol=1e-6)


def test_the_loss_does_not_depend_on_how_a_batch_is_split(make: Make) -> None:
    model, inputs = make.prior(), make.inputs()
    whole, plain = model(*inputs)
    whole.backward()
    expected = {name: tensor.grad.clone() for name, tensor in model.named_parameters()}
    model.zero_grad()
    parts = []
    for part in (slice(0, 1), slice(1, 4)):
        loss, found = model(*(tensor[part] for tensor in inputs))
        (loss * len(found) / 4).backward()
        parts.append(found)
    torch.testing.assert_close(torch.cat(parts), plain)
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_loss_is_weighted_and_the_plain_one_is_not(make: Make) -> None:
    weight = torch.tensor([0.0, 2.0, 0.5, 1.0])
    loss, plain = make.prior()(*make.inputs()[:-1], weight)
    assert loss.requires_grad
    assert not plain.requires_grad
    torch.testing.assert_close(loss.detach(), (plain * weight).mean())


def test_every_tensor_of_both_models_gets_a_gradient(make: Make) -> None:
    model = make.prior().train()
    model(*make.inputs())[0].backward()
    assert [name for name, tensor in model.named_parameters() if tensor.grad is None] == []
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"prior", "text_encoder"}


def test_a_frozen_text_encoder_gets_none_and_says_the_same(make: Make) -> None:
    frozen, learns, inputs = make.prior(train_text_encoder=False).train(), make.prior(), make.inputs()
    assert frozen.prior.training
    assert not frozen.text_encoder.training
    loss = frozen(*inputs)[0]
    loss.backward()
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in frozen.text_encoder.parameters())
    assert all(tensor.grad is not None for tensor in frozen.prior.parameters())
    torch.testing.assert_close(frozen.eval()(*inputs)[1], learns(*inputs)[1])


def test_pads_are_hidden_or_read_as_the_recipe_says(make: Make) -> None:
    inputs = make.inputs()
    *others, mask, weight = inputs
    seen = {masks: make.prior(mask_padding=masks)(*inputs)[1] for masks in (True, False)}
    assert not torch.allclose(seen[True], seen[False], rtol=1e-6)
    whole = make.prior(mask_padding=True)(*others, torch.ones_like(mask), weight)[1]
    torch.testing.assert_close(seen[False], whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_time_stays_float32_in_bfloat16_arithmetic(make: Make, dtype: torch.dtype) -> None:
    model, inputs, told = make.prior(train_text_encoder=False).to(dtype), make.inputs(), []
    model.prior.register_forward_pre_hook(lambda _, args, kwargs: told.append((args[0], kwargs)), with_kwargs=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, plain = model(*inputs)
    noised, conditions = told[0]
    expected = diffusion.noise_condition(diffusion.log_snr(inputs[2]))
    assert torch.equal(conditions["time_B"], expected)
    assert noised.dtype == conditions["time_B"].dtype == loss.dtype == plain.dtype == torch.float32
    assert plain.isfinite().all()


def test_dropout_follows_the_seed_alone(make: Make) -> None:
    model, inputs, losses = make.prior().train(), make.inputs(), []
    for seed, before in ((5, 0), (5, 3), (6, 0)):
        torch.randn(before)
        torch.manual_seed(seed)
        losses.append(model(*inputs)[0].detach())
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
