from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableCascadePriorPipeline
from transformers import CLIPTextModelWithProjection

from sote.train import diffusion, prior
from sote.train.batches import Micro
from sote.train.recipe import TrainRecipe


def _micro(captions: list[str]) -> Micro:
    random = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(len(captions), 16, 6, 10, generator=random) for _ in range(2))
    return Micro(latents, noise, torch.rand(len(captions), generator=random), captions, seed=5)


@pytest.fixture
def loaded(recipe: Callable[..., TrainRecipe]) -> tuple[prior.Prior, object]:
    part = recipe().model
    return prior.load(part, train_text_encoder=True), prior.load_tokenizer(part)


def test_text_goes_to_the_model_as_diffusers_sends_it(loaded: tuple[prior.Prior, object], tiny: Path) -> None:
    model, tokenizer = loaded
    pipeline = StableCascadePriorPipeline.from_pretrained(tiny / "prior")
    for caption in ("a red circle, best quality", "", "very long, " * 60):
        theirs = pipeline.encode_prompt("cpu", 1, 1, False, prompt=caption)
        with torch.no_grad():
            text, pooled = model.eval().text(*prior.tokens(tokenizer, [caption]))
        torch.testing.assert_close(text, theirs[0])
        torch.testing.assert_close(pooled, theirs[1])
        assert text.shape == (1, 77, model.text_encoder.config.hidden_size)


def test_the_text_embedding_is_the_last_state_before_the_final_norm(loaded: tuple[prior.Prior, object]) -> None:
    model, tokenizer = loaded
    tokens, mask = prior.tokens(tokenizer, ["a red circle"])
    encoder: CLIPTextModelWithProjection = model.text_encoder.eval()
    text, _ = model.text(tokens, mask)
    whole = encoder(tokens, attention_mask=mask)
    normed = encoder.text_model.final_layer_norm(text)
    torch.testing.assert_close(normed, whole.last_hidden_state)
    assert not torch.allclose(text, whole.last_hidden_state)


def test_the_loss_is_the_weighted_squared_distance_to_the_noise(loaded: tuple[prior.Prior, object]) -> None:
    model, tokenizer = loaded
    model.eval()
    micro = _micro(["red circle", "blue square"])
    found = prior.losses(model, micro, tokenizer=tokenizer, device=torch.device("cpu"))
    log_snr = diffusion.log_snr(micro.time_B)
    text, pooled = model.text(*prior.tokens(tokenizer, micro.captions))
    guess = model.prior(
        diffusion.noised(micro.latents_BCHW, noise_BCHW=micro.noise_BCHW, log_snr_B=log_snr),
        timestep_ratio=diffusion.noise_condition(log_snr),
        clip_text_pooled=pooled,
        clip_text=text,
        clip_img=torch.zeros(2, 1, model.image_width),
    ).sample
    plain = (guess - micro.noise_BCHW).square().flatten(1).mean(1)
    torch.testing.assert_close(found.plain_B, plain.detach())
    torch.testing.assert_close(found.weighted_B, (plain / (1 + log_snr.exp())).detach())
    torch.testing.assert_close(found.loss, found.weighted_B.mean(), check_stride=False)


def test_every_tensor_of_both_models_gets_a_gradient(loaded: tuple[prior.Prior, object]) -> None:
    model, tokenizer = loaded
    prior.losses(model, _micro(["a", "b"]), tokenizer=tokenizer, device=torch.device("cpu")).loss.backward()
    assert [name for name, tensor in model.named_parameters() if tensor.grad is None] == []


def test_a_frozen_text_encoder_gets_none_and_gradient_checkpointing_changes_nothing(
    recipe: Callable[..., TrainRecipe],
) -> None:
    gradients = []
    for checkpointing in (False, True):
        part = recipe(model={"gradient_checkpointing": checkpointing}).model
        model, tokenizer = prior.load(part, train_text_encoder=False), prior.load_tokenizer(part)
        model.train()
        prior.losses(model, _micro(["a", "b"]), tokenizer=tokenizer, device=torch.device("cpu")).loss.backward()
        assert all(tensor.grad is None for tensor in model.text_encoder.parameters())
        gradients.append(model.prior.clf[1].weight.grad)
    assert torch.equal(*gradients)


def test_dropout_follows_the_micro_batch_alone(loaded: tuple[prior.Prior, object]) -> None:
    model, tokenizer = loaded
    model.train()
    losses = []
    for noise_before in (0, 3):
        torch.randn(noise_before)
        losses.append(prior.losses(model, _micro(["a"]), tokenizer=tokenizer, device=torch.device("cpu")).loss)
    assert torch.equal(*losses)
