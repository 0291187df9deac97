from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableCascadePriorPipeline

from sote.cluster.errors import RunFailed
from sote.serve import schedules
from sote.serve.prior import PriorModel
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.schema import GenerateRequest, Settings, resolve
from sote.train import text


@pytest.fixture(scope="module")
def model(part: ModelPart) -> PriorModel:
    return PriorModel(part, device=torch.device("cpu"))


def settings(small: DefaultsPart, **fields: object) -> Settings:
    request = GenerateRequest.model_validate({"prompt": "a red circle", "seed": 4} | fields)
    return resolve(request, small, limits=LimitsPart(), random_seed=0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_text_is_encoded_as_by_diffusers_own_pipeline(model: PriorModel, weights: Path) -> None:
    pipeline = StableCascadePriorPipeline.from_pretrained(weights / "prior", local_files_only=True)
    prompt, negative = "1girl, solo, a red circle", "worst quality"
    states, pooled, negative_states, negative_pooled = pipeline.encode_prompt(
        torch.device("cpu"), 1, 1, True, prompt=prompt, negative_prompt=negative
    )
    found = model.encode([prompt, negative])
    torch.testing.assert_close(found.states, torch.cat([states, negative_states]))
    torch.testing.assert_close(found.pooled, torch.cat([pooled, negative_pooled]))
    assert found.lost == (0, 0)


@pytest.mark.parametrize(("windows", "lost"), [(1, 25), (2, 0), (3, 0)])
@pytest.mark.parametrize("mask_padding", [True, False])
def test_prompts_are_read_as_captions_were_at_training(
    model: PriorModel, windows: int, lost: int, mask_padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "weights", replace(model.weights, windows=windows, mask_padding=mask_padding))
    found = model.encode(["word " * 100])
    tokens, mask = text.tokens(model.weights.tokenizer, ["word " * 100], windows=windows)
    states, pooled = text.embed(model.weights.text_encoder, tokens, mask if mask_padding else None)
    assert found.states.shape[1] == 2 + 75 * windows
    torch.testing.assert_close(found.states, states)
    torch.testing.assert_close(found.pooled, pooled)
    assert found.lost == (lost,)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_sampling_is_that_of_diffusers_own_pipeline(model: PriorModel, weights: Path, small: DefaultsPart) -> None:
    """DDPM on the plain grid from the same noise, guidance and all."""

    def tell_r(_: torch.nn.Module, args: tuple[()], named: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """diffusers tells the network t itself; it was trained with r of the limited sigma, 0.9936 for t = 1."""
        t = named["timestep_ratio"]
        return args, named | {"timestep_ratio": torch.full_like(t, schedules.r_at(schedules.sigma_at(t[0].item())))}

    pipeline = StableCascadePriorPipeline.from_pretrained(weights / "prior", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.prior.register_forward_pre_hook(tell_r, with_kwargs=True)
    asked = settings(small, sampler="ddpm", scheduler="wuerstchen", shift=1, guidance_scale=3, first_stage_steps=10)
    theirs = pipeline(
        asked.prompt,
        negative_prompt=asked.negative_prompt,
        width=asked.width,
        height=asked.height,
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(4),
        output_type="pt",
    ).image_embeddings
    ours = torch.from_numpy(model.latents(asked).latents)
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() / theirs.norm() < 1e-3


def test_an_image_is_the_same_alone_and_in_a_batch(model: PriorModel, small: DefaultsPart) -> None:
    together = model.latents(settings(small, num_images=2))
    alone = model.latents(settings(small, seed=5))
    assert together.latents.shape == (2, 16, 9, 6)
    np.testing.assert_allclose(together.latents[1], alone.latents[0], rtol=1e-3, atol=1e-4)
    assert np.abs(together.latents[0] - together.latents[1]).max() > 0.1


def test_at_guidance_one_the_network_is_asked_once_a_step(model: PriorModel, small: DefaultsPart) -> None:
    rows: list[int] = []
    hook = model.weights.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    model.latents(settings(small, guidance_scale=1))
    model.latents(settings(small, guidance_scale=7))
    hook.remove()
    assert rows == [1] * 4 + [2] * 4


def test_the_negative_prompt_and_the_guidance_change_the_latents(model: PriorModel, small: DefaultsPart) -> None:
    made = [
        model.latents(settings(small, **fields)).latents
        for fields in ({}, {"negative_prompt": "blue, square"}, {"guidance_scale": 3}, {"prompt": "a blue square"})
    ]
    for other in made[1:]:
        assert np.abs(made[0] - other).max() > 1e-3


def test_a_long_prompt_says_how_much_was_not_read(model: PriorModel, small: DefaultsPart) -> None:
    found = model.latents(settings(small, prompt="cat, " * 60)).warnings
    assert any("prompt: the last 45 tokens were not read" in line for line in found)
    assert any("pictures blur" in line for line in found)


def test_broken_weights_are_an_error_that_names_stage_and_step(part: ModelPart, small: DefaultsPart) -> None:
    broken = PriorModel(part, device=torch.device("cpu"))
    with torch.no_grad():
        broken.weights.unet.clf[1].bias.fill_(float("nan"))
    with pytest.raises(RunFailed, match="prior: step 1 of 4 "):
        broken.latents(settings(small))
