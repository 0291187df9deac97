import numpy as np
import pytest
import torch

from sote.cluster.errors import RunFailed
from sote.serve.batching import Stepper
from sote.serve.decoder import DecoderModel
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.schema import GenerateRequest, resolve
from sote.serve.settings import Latents, Progress, Settings, Work

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(part: ModelPart) -> DecoderModel:
    return DecoderModel(part, device=CPU)


def settings(small: DefaultsPart, **fields: object) -> Settings:
    request = GenerateRequest.model_validate({"prompt": "x", "seed": 4} | fields)
    return resolve(request, small, limits=LimitsPart(), random_seed=0)


def latents(images: int = 1) -> Latents:
    numbers = np.random.default_rng(1)
    return Latents(
        latents=numbers.normal(size=(images, 16, 9, 6)).astype(np.float32),
        pooled=numbers.normal(size=(2, 1, 40)).astype(np.float32),
        work=Work("prior", 0.0, 0.0, 0.0),
        warnings=(),
    )


def test_a_picture_has_the_size_asked_for_and_its_parameters(model: DecoderModel, small: DefaultsPart) -> None:
    seen: list[Progress] = []
    painted, work = model.paint(latents(), settings(small), watch=seen.append)
    assert painted[0].image.size == (256, 384)
    assert painted[0].image.info["parameters"] == painted[0].parameters
    assert "Model: stand-in" in painted[0].parameters
    assert np.asarray(painted[0].image).std() > 1
    assert work.seconds > 0
    assert work.occupancy == {1: 4}
    assert (seen[-1].stage, seen[-1].step, seen[-1].steps) == ("decoder", 4, 4)


def test_parameters_are_left_out_of_the_file_where_they_are_not_wanted(
    model: DecoderModel, small: DefaultsPart
) -> None:
    painted, _ = model.paint(latents(), settings(small, embed_parameters=False))
    assert "parameters" not in painted[0].image.info
    assert "Model: stand-in" in painted[0].parameters


def test_requests_that_share_steps_give_the_pictures_of_lone_runs(model: DecoderModel, small: DefaultsPart) -> None:
    asked = [
        settings(small, seed=1),
        settings(small, seed=2, second_stage_guidance_scale=2, second_stage_steps=6),
        settings(small, seed=3, image_size={"width": 384, "height": 384}),
        settings(small, seed=4, decoder_sampler="dpmpp_2m", decoder_scheduler="simple", num_images=2),
    ]
    stepper = Stepper(model, slots=8)
    requests = [model.request(latents(each.images), each) for each in asked]
    for request in requests:
        stepper.add(request)
        stepper.step()
    while not stepper.is_idle:
        stepper.step()
    for request, each in zip(requests, asked, strict=True):
        alone = Stepper(model, slots=each.images)
        lone = model.request(latents(each.images), each)
        alone.add(lone)
        while not alone.is_idle:
            alone.step()
        for row, other in zip(request.rows, lone.rows, strict=True):
            assert row.end is not None
            assert other.end is not None
            assert (row.end - other.end).abs().max() <= 1e-5 * max(1.0, other.end.abs().max().item())
    assert max(rows for request in requests for rows in request.occupancy) > 2


def test_latents_guidance_and_scale_each_change_the_picture(part: ModelPart, small: DefaultsPart) -> None:
    model, given = DecoderModel(part, device=CPU), latents()
    other = Latents(given.latents + 1, given.pooled, given.work, ())
    pictures = [
        model.paint(given, settings(small))[0][0],
        model.paint(other, settings(small))[0][0],
        model.paint(given, settings(small, second_stage_guidance_scale=2))[0][0],
    ]
    scaled = DecoderModel(part.model_copy(update={"vqgan_scale": 0.3764}), device=CPU)
    pictures.append(scaled.paint(given, settings(small))[0][0])
    pixels = {np.asarray(each.image).tobytes() for each in pictures}
    assert len(pixels) == 4


def test_at_guidance_one_the_network_is_asked_once_a_step(model: DecoderModel, small: DefaultsPart) -> None:
    rows: list[int] = []
    hook = model.weights.unet.embedding.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    model.paint(latents(2), settings(small, num_images=2))
    model.paint(latents(2), settings(small, num_images=2, second_stage_guidance_scale=1.2))
    hook.remove()
    assert rows == [2] * 4 + [4] * 4


@pytest.mark.parametrize(("broken", "words"), [("unet", "decoder: step 1 of 4 "), ("vqgan", "vqgan: ")])
def test_a_picture_of_broken_numbers_is_never_painted(
    part: ModelPart, small: DefaultsPart, broken: str, words: str
) -> None:
    model = DecoderModel(part, device=CPU)
    with torch.no_grad():
        for values in getattr(model.weights, broken).parameters():
            values.fill_(float("nan"))
    with pytest.raises(RunFailed, match=words):
        model.paint(latents(), settings(small))
