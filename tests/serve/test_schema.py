import dataclasses

import pytest
import torch
from pydantic import ValidationError

from sote.cluster.errors import RequestError
from sote.serve.recipe import DefaultsPart, LimitsPart
from sote.serve.schema import MAX_SEED, GenerateRequest, Settings, resolve


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
    assert dataclasses.astuple(plain.prior) == (30, 7.0, "dpmpp_2m", "sgm_uniform", 2.0)
    assert dataclasses.astuple(plain.decoder) == (10, 1.0, "euler_a", "karras", 1.0)
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


def test_wrong_fields_are_refused_in_words() -> None:
    assert "1000 is not a multiple of 128 pixels; nearest: 896 and 1024" in message(
        image_size={"width": 1000, "height": 1024}
    )
    assert "'huge' is no preset; known: square_hd, square" in message(image_size="huge")
    assert "'ddpm', 'euler', 'euler_a', 'dpmpp_2m' or 'ddim'" in message(sampler="heun")
    assert "'sgm_uniform', 'simple', 'karras'" in message(decoder_scheduler="linear")
    assert "less than or equal to 50" in message(first_stage_steps=51)
    assert "greater than or equal to 4" in message(second_stage_steps=3)
    assert "Extra inputs are not permitted" in message(negativ_prompt="x")


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
