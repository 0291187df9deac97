import numpy as np
import pytest
import torch

from sote.cluster.errors import RunFailed
from sote.serve.decoder import DecoderModel
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.schema import GenerateRequest, Latents, Settings, resolve

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
        seconds=0.0,
        warnings=(),
    )


def test_a_picture_has_the_size_asked_for_and_its_parameters(model: DecoderModel, small: DefaultsPart) -> None:
    painted, seconds = model.paint(latents(), settings(small))
    assert painted[0].image.size == (256, 384)
    assert painted[0].image.info["parameters"] == painted[0].parameters
    assert "Model: stand-in" in painted[0].parameters
    assert np.asarray(painted[0].image).std() > 1
    assert seconds > 0


def test_latents_guidance_and_scale_each_change_the_picture(part: ModelPart, small: DefaultsPart) -> None:
    model, given = DecoderModel(part, device=CPU), latents()
    other = Latents(given.latents + 1, given.pooled, 0.0, ())
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
    hook = model.weights.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
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
