import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableCascadeDecoderPipeline, StableCascadePriorPipeline
from torch import Tensor

from sote.serve import noise, sampling, schedules
from sote.serve.profiles import Profile
from sote.serve.settings import Settings, Stage

PRIOR, DECODER = (16, 6, 6), (4, 64, 64)


def settings(profile: Profile | None = None, *, images: int = 3, seed: int = 7, steps: int = 4) -> Settings:
    stage = Stage(steps, 1.0, "ddpm", "wuerstchen", 1.0)
    return Settings("", "", 256, 256, 42.67, images, seed, "png", prior=stage, decoder=stage, profile=profile)


def streams(asked: Settings, index: int) -> tuple[noise.Stream, noise.Stream]:
    return noise.prior_stream(asked, index, PRIOR), noise.decoder_stream(asked, index, DECODER, prior_shape=PRIOR)


def drawn(stream: noise.Stream, count: int) -> Tensor:
    return torch.stack([stream.draw() for _ in range(count)])


def test_noise_is_standard_float32_of_the_shape_asked_for() -> None:
    for profile in (None, "comfy", "diffusers"):
        for stream, shape in zip(streams(settings(profile), 1), (PRIOR, DECODER), strict=True):
            values = drawn(stream, 20)
            assert values.dtype == torch.float32
            assert values.shape == (20, *shape)
            assert values.std().item() == pytest.approx(1, abs=0.05)


def test_a_picture_has_the_same_noise_alone_and_in_a_batch() -> None:
    """Picture 2 of seed 7 is the only picture of seed 9."""
    for one, other in zip(streams(settings(), 2), streams(settings(images=1, seed=9), 0), strict=True):
        assert torch.equal(drawn(one, 3), drawn(other, 3))


def test_pictures_and_stages_share_no_noise() -> None:
    found = [drawn(stream, 2).flatten()[:100] for index in range(3) for stream in streams(settings(), index)]
    found += [drawn(stream, 2).flatten()[100:200] for stream in streams(settings(), 0)]
    for place, one in enumerate(found):
        assert not any(torch.equal(one, other) for other in found[place + 1 :])


def test_the_comfy_profile_draws_the_batch_at_once_and_each_stage_anew() -> None:
    """ComfyUI: prepare_noise after torch.manual_seed(seed), then default_noise_sampler's own generator."""
    for place, shape in enumerate((PRIOR, DECODER)):
        start = torch.randn((3, *shape), generator=torch.Generator().manual_seed(7))
        steps = torch.Generator().manual_seed(7)
        added = [torch.randn((3, *shape), generator=steps) for _ in range(3)]
        assert torch.equal(start, added[0])
        for index in range(3):
            values = drawn(streams(settings("comfy"), index)[place], 4)
            assert torch.equal(values[0], start[index])
            assert torch.equal(values[1:], torch.stack([whole[index] for whole in added]))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_diffusers_profile_draws_what_its_pipelines_draw(weights: Path) -> None:
    """Both pipelines on one generator: each picture's noise, at the start and in each step, and what is left after."""
    asked = settings("diffusers", images=2)
    generator = torch.Generator().manual_seed(asked.seed)
    prior = StableCascadePriorPipeline.from_pretrained(weights / "prior", local_files_only=True)
    decoder = StableCascadeDecoderPipeline.from_pretrained(weights / "decoder", local_files_only=True)
    common: dict[str, Any] = {"num_inference_steps": 4, "generator": generator, "guidance_scale": 1.0}
    seen: list[list[tuple[Tensor, Tensor]]] = []
    for pipeline, unet in ((prior, prior.prior), (decoder, decoder.decoder)):
        pipeline.set_progress_bar_config(disable=True)
        seen.append(steps := [])
        unet.register_forward_hook(
            lambda _, args, named, output, steps=steps: steps.append(
                ((args or (named["sample"],))[0].clone(), output[0].clone())
            ),
            with_kwargs=True,
        )
    latents = prior("a", width=256, height=256, num_images_per_prompt=2, **common).image_embeddings
    decoder(latents, prompt="a", output_type="pt", **common)

    sigmas = schedules.grid("wuerstchen", 4)
    for place, steps in enumerate(seen):
        shape = tuple(steps[0][0].shape[1:])
        made = [
            noise.prior_stream(asked, index, shape)
            if place == 0
            else noise.decoder_stream(asked, index, shape, prior_shape=PRIOR)
            for index in range(2)
        ]
        assert torch.equal(steps[0][0], torch.stack([stream.draw() for stream in made]))
        for at, ((x, eps), (following, _)) in enumerate(pairwise(steps)):
            ours, _ = sampling.step(
                x,
                eps,
                sigma_B=torch.full((2,), sigmas[at]),
                next_B=torch.full((2,), sigmas[at + 1]),
                before_B=torch.zeros(2),
                x0_before_BCHW=torch.zeros_like(x),
                eta_B=torch.ones(2),
                is_multistep_B=torch.tensor([False, False]),
                noise_BCHW=torch.stack([stream.draw() for stream in made]),
            )
            torch.testing.assert_close(ours, following, rtol=1e-4, atol=1e-4)
    last = made[0]
    last.draw()  # of the last step, where diffusers throws it away
    assert torch.equal(last.draw(), torch.randn((2, *shape), generator=generator)[0])


def test_the_decoder_of_the_diffusers_profile_goes_on_after_the_priors_last_draw() -> None:
    generator = torch.Generator().manual_seed(7)
    for _ in range(1 + 9):
        torch.randn((3, *PRIOR), generator=generator)
    expected = torch.randn((3, *DECODER), generator=generator)
    for index in range(3):
        stream = noise.decoder_stream(settings("diffusers", steps=9), index, DECODER, prior_shape=PRIOR)
        assert torch.equal(stream.draw(), expected[index])


@pytest.mark.parametrize("profile", [None, "comfy", "diffusers"])
def test_a_stream_goes_on_where_it_was_after_a_trip_to_another_process(profile: Profile | None) -> None:
    for stream in streams(settings(profile), 1):
        stream.draw()
        stream.draw()
        other = pickle.loads(pickle.dumps(stream))
        assert torch.equal(drawn(stream, 3), drawn(other, 3))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    for profile in (None, "comfy", "diffusers"):
        for stream in streams(replace(settings(), profile=profile), 0):
            stream.draw()
    assert torch.equal(before, torch.get_rng_state())
