from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableCascadePriorPipeline
from PIL import Image

from sote.cluster.errors import RequestError, RunFailed
from sote.data import standins
from sote.data.encode import Encoder
from sote.serve import schedules
from sote.serve.batching import Stepper
from sote.serve.prior import PriorModel
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.schema import GenerateRequest, resolve
from sote.serve.settings import Progress, Settings


@pytest.fixture(scope="module")
def model(part: ModelPart) -> PriorModel:
    return PriorModel(part, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A miniature EfficientNet."""
    folder = tmp_path_factory.mktemp("encoder")
    noise = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    standins.make_encoder(folder, [Image.fromarray(pixels) for pixels in noise], seed=0)
    return Encoder(folder, dtype="float32", device="cpu")


def settings(small: DefaultsPart, **fields: object) -> Settings:
    request = GenerateRequest.model_validate({"prompt": "a red circle", "seed": 4} | fields)
    return resolve(request, small, limits=LimitsPart(), random_seed=0)


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


def assert_same(found: Any, expected: Any) -> None:
    """To 1e-5 of the latents' largest value: what float32 rounds differently in batches of other sizes."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_an_image_is_the_same_alone_and_in_a_batch(model: PriorModel, small: DefaultsPart) -> None:
    together = model.latents(settings(small, num_images=2))
    alone = model.latents(settings(small, seed=5))
    assert together.latents.shape == (2, 16, 9, 6)
    assert_same(together.latents[1], alone.latents[0])
    assert np.abs(together.latents[0] - together.latents[1]).max() > 0.1


MIXED: list[dict[str, Any]] = [
    {"seed": 1, "guidance_scale": 7, "first_stage_steps": 8},
    {"seed": 2, "guidance_scale": 1, "sampler": "ddpm", "first_stage_steps": 5},
    {"seed": 3, "image_size": {"width": 384, "height": 384}, "sampler": "euler", "scheduler": "karras"},
    {"seed": 4, "prompt": "cat, dog, " * 30, "negative_prompt": "bird", "sampler": "euler_a"},
    {"seed": 5, "prompt": "(a cat:1.3), a dog", "guidance_scale": 3, "guidance_rescale": 0.7, "sampler": "ddim"},
    {"seed": 6, "profile": "comfy", "num_images": 2},
]


def test_requests_that_share_steps_give_the_latents_of_lone_runs(model: PriorModel, small: DefaultsPart) -> None:
    stepper, asked = Stepper(model, slots=6), [settings(small, **fields) for fields in MIXED]
    requests = [model.request(each) for each in asked]
    leaving = model.request(settings(small, seed=9, first_stage_steps=20))
    for place, request in enumerate(requests):
        stepper.add(request)
        if place == 0:
            stepper.add(leaving)
        stepper.step()
    stepper.drop(leaving)
    while not stepper.is_idle:
        stepper.step()
    for request, each in zip(requests, asked, strict=True):
        assert request.error is None
        assert_same(model.finish(request).latents, model.latents(each).latents)
    assert max(rows for request in requests for rows in request.occupancy) > 2


def test_steps_before_and_progress_are_told(model: PriorModel, small: DefaultsPart) -> None:
    steps: list[int] = []
    seen: list[Progress] = []
    latents = model.latents(settings(small), each_step=steps.append, watch=seen.append)
    assert steps == [0, 1, 2, 3]
    assert (seen[-1].stage, seen[-1].step, seen[-1].steps) == ("prior", 4, 4)
    assert seen[-1].preview is not None
    assert seen[-1].preview.startswith(b"\xff\xd8")
    assert latents.work.occupancy == {1: 4}
    assert latents.work.megapixel_steps == pytest.approx(4 * 256 * 384 / 1e6)


def test_the_pooled_text_is_that_of_the_latents(model: PriorModel, small: DefaultsPart) -> None:
    for fields, rows in (({"guidance_scale": 7}, 2), ({"guidance_scale": 1}, 1)):
        asked = settings(small, **fields)
        pooled = model.pooled(asked)
        assert pooled.shape[0] == rows
        np.testing.assert_array_equal(pooled, model.latents(asked).pooled)


def test_at_guidance_one_the_network_is_asked_once_a_step(model: PriorModel, small: DefaultsPart) -> None:
    rows: list[int] = []
    hook = model.weights.unet.embedding.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
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


def test_what_could_not_be_taken_as_asked_is_a_warning(part: ModelPart, small: DefaultsPart) -> None:
    model = PriorModel(part, device=torch.device("cpu"), limits=LimitsPart(max_prompt_tokens=75))
    found = model.latents(settings(small, prompt="cat, " * 60))
    assert found.prompt_tokens == 120
    assert "prompt: 75 of 120 tokens were read" in found.warnings
    assert any("6 latent cells on the short side, pictures blur" in line for line in found.warnings)
    asked = replace(settings(small, first_stage_steps=4), width=256, height=2560, compression=32.0)
    assert any("80 latent cells on the long side" in line for line in model.latents(asked).warnings)
    asked = replace(settings(small), compression=28.0)
    assert any(line.startswith("compression: 28 is outside of 32 to 64") for line in model.latents(asked).warnings)


def test_a_picture_to_start_from_is_kept_as_far_as_the_strength_says(
    model: PriorModel, small: DefaultsPart, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = np.random.default_rng(0).integers(0, 255, (9 * 32, 6 * 32, 3), dtype=np.uint8)
    asked = replace(settings(small, first_stage_steps=10), start=start)
    with pytest.raises(RequestError, match=r"image_url: this server has no encoder for pictures; set model\.encoder"):
        model.latents(asked)
    monkeypatch.setattr(model, "weights", replace(model.weights, encoder=encoder))
    z = encoder.encode(start[None])[0].float().numpy()
    weak, strong = (model.latents(replace(asked, strength=strength)).latents[0] for strength in (0.02, 1.0))
    assert np.abs(weak - z).mean() < np.abs(strong - z).mean()


def test_pictures_whose_content_is_varied_change_the_latents(
    model: PriorModel, small: DefaultsPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), dtype=np.uint8)
    asked = settings(small)
    made = [model.latents(replace(asked, variations=tuple(pictures[:count]))).latents for count in (0, 1, 2)]
    assert np.abs(made[0] - made[1]).max() > 1e-3
    assert np.abs(made[1] - made[2]).max() > 1e-3
    monkeypatch.setattr(model, "weights", replace(model.weights, image_encoder=None))
    with pytest.raises(RequestError, match=r"variation_image_urls: .*set model\.image_encoder"):
        model.latents(replace(asked, variations=(pictures[0],)))


def test_an_encoder_that_gives_what_is_not_finite_is_an_error(
    model: PriorModel, small: DefaultsPart, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = np.zeros((9 * 32, 6 * 32, 3), np.uint8)
    whole: Callable[..., torch.Tensor] = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda pixels: whole(pixels) * float("nan"))
    monkeypatch.setattr(model, "weights", replace(model.weights, encoder=encoder))
    with pytest.raises(RunFailed, match="encoder: the picture to start from"):
        model.latents(replace(settings(small), start=start, strength=0.5))


def test_broken_weights_are_an_error_that_names_stage_and_step(part: ModelPart, small: DefaultsPart) -> None:
    broken = PriorModel(part, device=torch.device("cpu"))
    with torch.no_grad():
        broken.weights.unet.clf[1].bias.fill_(float("nan"))
    with pytest.raises(RunFailed, match="prior: step 1 of 4 "):
        broken.latents(settings(small))
