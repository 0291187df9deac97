import dataclasses

import pytest
import torch
from pydantic import ValidationError

from sote.cluster.errors import RequestError
from sote.serve.recipe import DefaultsPart, LimitsPart
from sote.serve.schema import DecodeRequest, GenerateRequest, for_latents, resolve
from sote.serve.settings import MAX_SEED, Settings


def settings(**fields: object) -> Settings:
    request = GenerateRequest.model_validate({"prompt": "1girl"} | fields)
    return resolve(request, DefaultsPart(), limits=LimitsPart(), random_seed=11)


def message(**fields: object) -> str:
    with pytest.raises(ValidationError) as caught:
        GenerateRequest.model_validate({"prompt": "1girl"} | fields)
    return str(caught.value)


def test_a_bare_prompt_gets_the_settings_of_the_seed() -> None:
    plain = settings()
    assert (plain.width, plain.height, plain.compression, plain.images, plain.seed) == (1024, 1536, 42, 1, 11)
    assert dataclasses.astuple(plain.prior) == (30, 7.0, "dpmpp_2m", "sgm_uniform", 2.0, 0.0)
    assert dataclasses.astuple(plain.decoder) == (10, 1.0, "euler_a", "karras", 1.0, 0.0)
    assert plain.prior.is_guided
    assert not plain.decoder.is_guided


def test_the_names_of_fal_decide() -> None:
    asked = settings(
        negative_prompt="worst quality",
        first_stage_steps=25,
        second_stage_steps=12,
        guidance_scale=8,
        second_stage_guidance_scale=2,
        image_size={"width": 768, "height": 1024},
        num_images=2,
        seed=0,
        enable_safety_checker=True,
        sync_mode=True,
    )
    assert (asked.prior.steps, asked.decoder.steps) == (25, 12)
    assert (asked.prior.guidance, asked.decoder.guidance) == (8, 2)
    assert (asked.width, asked.height, asked.images, asked.seed) == (768, 1024, 2, 0)
    assert asked.negative_prompt == "worst quality"


def test_a_preset_names_a_size() -> None:
    asked = settings(image_size="portrait_4_3")
    assert (asked.width, asked.height) == (768, 1024)


def refusal(defaults: DefaultsPart | None = None, **fields: object) -> str:
    request = GenerateRequest.model_validate({"prompt": "1girl"} | fields)
    with pytest.raises(RequestError) as caught:
        resolve(request, defaults or DefaultsPart(), limits=LimitsPart(), random_seed=0)
    return str(caught.value)


def test_wrong_fields_are_refused_in_words() -> None:
    assert "'huge' is no preset; known: square_hd, square" in message(image_size="huge")
    assert "'heun' is no sampler here; known: ddpm, euler, euler_a, dpmpp_2m, ddim" in message(sampler="heun")
    assert "'linear' is no scheduler here; known: sgm_uniform, simple" in message(decoder_scheduler="linear")
    assert "less than or equal to 50" in message(first_stage_steps=51)
    assert "greater than or equal to 4" in message(second_stage_steps=3)
    assert "Extra inputs are not permitted" in message(negativ_prompt="x")
    assert "finite number" in message(guidance_scale=float("nan"))
    assert "finite number" in message(shift=float("inf"))
    assert "'comfy' or 'diffusers'" in message(profile="auto")


def test_a_side_that_cannot_be_made_names_the_nearest_that_can() -> None:
    size = {"width": 1000, "height": 1024}
    assert refusal(image_size=size) == ("image_size.width: 1000 is not a multiple of 128 pixels; nearest: 896 and 1024")
    assert refusal(image_size=size, size_policy="refuse", defaults=DefaultsPart(size_policy="round"))
    assert "image_size.height: 3000 is not a multiple" in refusal(image_size={"width": 256, "height": 3000})


def test_a_side_is_rounded_where_that_is_asked_for() -> None:
    asked = settings(image_size={"width": 1000, "height": 1}, size_policy="round")
    assert (asked.width, asked.height) == (1024, 256)


def test_samplers_are_known_by_their_other_names() -> None:
    asked = settings(sampler="DPM++ 2M", scheduler="SGM Uniform", decoder_sampler="k_euler_a")
    assert (asked.prior.sampler, asked.prior.scheduler, asked.decoder.sampler) == ("dpmpp_2m", "sgm_uniform", "euler_a")


def test_default_tags_go_before_both_prompts() -> None:
    asked = settings(prompt="1girl", negative_prompt="hat", use_default_tags=True)
    assert asked.prompt == "newest, extremely aesthetic, best quality, 1girl"
    assert asked.negative_prompt.endswith("oldest, loli, hat")
    assert settings(prompt="1girl").prompt == "1girl"


def test_a_profile_fixes_grid_and_shift_and_says_no_to_others() -> None:
    asked = settings(profile="diffusers")
    assert (asked.prior.scheduler, asked.prior.sampler, asked.decoder.shift) == ("wuerstchen", "ddpm", 1)
    assert "profile 'comfy' fixes it at 2.0" in refusal(profile="comfy", shift=1)
    assert "has only ddpm" in refusal(profile="diffusers", sampler="euler")


def test_strength_goes_with_a_picture() -> None:
    assert refusal(strength=0.5) == "strength: has no meaning without image_url"
    assert "fetches nothing" in refusal(image_url="http://127.0.0.1/x.png")


@pytest.mark.parametrize(
    ("cells", "compression", "side"), [(24, 42, 1024), (6, 42, 256), (60, 42, 2560), (32, 32, 1024)]
)
def test_latents_say_the_size_of_their_picture(cells: int, compression: float, side: int) -> None:
    found = for_latents(DecodeRequest(latents=""), (2, 16, cells, cells), default_compression=compression)
    assert found.image_size is not None
    assert (found.image_size.width, found.image_size.height, found.num_images) == (side, side, 2)


def test_latents_that_no_size_has_are_refused() -> None:
    with pytest.raises(RequestError, match="no side of a picture has 7 cells at compression 42; possible: 6, 9, 12"):
        for_latents(DecodeRequest(latents=""), (1, 16, 7, 6), default_compression=42)
    request = DecodeRequest.model_validate({"latents": "", "image_size": "square"})
    with pytest.raises(RequestError, match=r"512x512 pixels at compression 42 are \[16, 12, 12\], these are \[16, 24"):
        for_latents(request, (1, 16, 24, 24), default_compression=42)


def test_settings_of_the_decoder_go_with_the_latents() -> None:
    fields = {"latents": "", "second_stage_steps": 20, "decoder_sampler": "ddim", "seed": 3, "output_quality": 50}
    request = for_latents(DecodeRequest.model_validate(fields), (1, 16, 9, 6), default_compression=42)
    found = resolve(request, DefaultsPart(), limits=LimitsPart(), random_seed=0)
    assert (found.width, found.height, found.decoder.steps, found.decoder.sampler) == (256, 384, 20, "ddim")
    assert (found.seed, found.quality, found.prompt) == (3, 50, "")


def test_a_million_of_anything_is_refused_as_one_thing() -> None:
    many = {str(number): number for number in range(10_000)}
    assert "1 validation error" in message(**many)
    assert "10001 fields; at most 500 are read" in message(**many)
    assert "1 validation error" in message(image_size=many)
    assert "1 validation error" in message(variation_image_urls=list(range(10_000)))


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_a_seed_that_the_generator_would_cut_is_refused(seed: int) -> None:
    assert "seed" in message(seed=seed)


def test_torch_takes_no_more_of_a_seed_than_we_do() -> None:
    one, other = (torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + MAX_SEED + 1))
    assert torch.equal(one, other)


def test_the_limits_of_the_server_hold() -> None:
    for fields, words in (
        ({"image_size": {"width": 2560, "height": 2560}}, "6553600 pixels, this server makes at most 2359296"),
        ({"num_images": 4}, "4 asked for, this server makes at most 2"),
    ):
        request = GenerateRequest.model_validate({"prompt": ""} | fields)
        with pytest.raises(RequestError, match=words):
            resolve(request, DefaultsPart(), limits=LimitsPart(max_images=2), random_seed=0)


def test_seeds_of_images_follow_each_other_and_the_decoder_has_its_own() -> None:
    many, one = settings(seed=5, num_images=3), settings(seed=7)
    assert [many.image_seed(index) for index in range(3)] == [5, 6, 7]
    assert many.decoder_seed(2) == one.decoder_seed(0) != many.decoder_seed(1)
    assert settings(seed=MAX_SEED).image_seed(1) == 0
