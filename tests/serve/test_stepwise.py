"""Every step of one picture."""

import numpy as np
import pytest
import torch

from sote.serve import stepwise
from sote.serve.cascade import Cascade
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.schema import GenerateRequest, resolve
from sote.serve.settings import Settings


@pytest.fixture(scope="module")
def cascade(part: ModelPart, small: DefaultsPart) -> Cascade:
    return Cascade.load(part, defaults=small)


def settings(small: DefaultsPart, **fields: object) -> Settings:
    request = GenerateRequest.model_validate({"prompt": "a red circle", "seed": 4} | fields)
    return resolve(request, small, limits=LimitsPart(), random_seed=0)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a"])
def test_the_last_steps_are_those_of_the_picture(cascade: Cascade, small: DefaultsPart, sampler: str) -> None:
    asked = settings(small, sampler=sampler, first_stage_steps=5)
    (painted,) = cascade.generate("a red circle", seed=4, sampler=sampler, first_stage_steps=5)
    latents = stepwise.prior_steps(cascade.prior(), asked)
    pictures = stepwise.decoder_steps(cascade.decoder(), latents[-1], asked)
    assert (len(latents), len(pictures)) == (5, small.decoder_steps)
    np.testing.assert_array_equal(latents[-1].latents[0], painted.latents)
    np.testing.assert_array_equal(np.asarray(pictures[-1]), np.asarray(painted.image))


def test_no_two_steps_are_the_same_and_each_can_be_painted(cascade: Cascade, small: DefaultsPart) -> None:
    asked = settings(small)
    latents = stepwise.prior_steps(cascade.prior(), asked)
    assert len({each.latents.tobytes() for each in latents}) == small.prior_steps
    pictures = [cascade.decoder().paint(each, asked)[0][0].data for each in latents]
    assert len(set(pictures)) == small.prior_steps
    assert len({each.tobytes() for each in stepwise.decoder_steps(cascade.decoder(), latents[-1], asked)}) == 4


def test_the_first_step_is_what_the_prior_finds_under_the_noise(cascade: Cascade, small: DefaultsPart) -> None:
    """x0 of the first step as a watcher of the sampling is told it."""
    asked, told, prior = settings(small), list[torch.Tensor](), cascade.prior()
    request = prior.request(asked, seen=lambda seen: told.append(seen.x0.clone()))
    from sote.serve import batching

    batching.run(prior, request)
    np.testing.assert_array_equal(stepwise.prior_steps(prior, asked)[0].latents[0], told[0].numpy())


def test_only_the_first_of_several_pictures_is_looked_at(cascade: Cascade, small: DefaultsPart) -> None:
    one, two = (
        stepwise.prior_steps(cascade.prior(), settings(small, num_images=images))[-1].latents for images in (1, 2)
    )
    assert one.shape[0] == 1
    np.testing.assert_array_equal(one, two)


def test_a_step_is_painted_once_and_shown_beside_its_latents(cascade: Cascade, small: DefaultsPart) -> None:
    steps = stepwise.Steps(cascade.prior(), cascade.decoder(), settings(small, num_images=2))
    (pair,) = steps.at(2).values()
    assert [name for name, _ in pair] == ["latents", "painted"]
    assert pair[1][1] is steps.painted(2)
    rows = steps.rows(most=3)
    assert [name for name, _ in rows["Stage C, painted"]] == ["step 1", "step 3", "step 4"]
    assert [name for name, _ in rows["Stage C, its latents"]] == ["step 1", "step 3", "step 4"]
    assert len(rows["Stage B"]) == small.decoder_steps
    np.testing.assert_array_equal(np.asarray(steps.painted(4)), np.asarray(rows["Stage B"][-1][1]))


def test_latents_have_a_small_picture_of_their_own_shape(cascade: Cascade, small: DefaultsPart) -> None:
    wide, high = stepwise.look(stepwise.prior_steps(cascade.prior(), settings(small))[0]).size
    assert (wide % 6, high % 9) == (0, 0)  # 256x384 pixels at compression 42: 6x9 cells
    assert wide * 9 == high * 6
