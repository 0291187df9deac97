from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from sote.cluster.errors import WeightsError
from sote.serve.vision import Vision
from sote.train import modelfile
from sote.train.source import Source

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(weights: Path) -> Source:
    found = modelfile.image_encoder_of(None, prior=str(weights / "prior"))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def vision(source: Source) -> Vision:
    return Vision(source, dtype=torch.float32, device=CPU)


def pictures(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    small = [random.integers(0, 256, (7, 7, 3), np.uint8) for _ in range(count)]
    return [np.asarray(Image.fromarray(each).resize((224, 224))) for each in small]


def test_vectors_are_those_of_clips_own_preparation_and_model(vision: Vision, weights: Path) -> None:
    given = pictures(3)
    model = CLIPVisionModelWithProjection.from_pretrained(weights / "prior" / "image_encoder").eval()
    prepared = CLIPImageProcessor()([Image.fromarray(each) for each in given], return_tensors="pt")
    with torch.no_grad():
        expected = model(**prepared).image_embeds
    found = vision.embed(given)
    assert found.shape == (3, 40)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_picture_has_a_vector_of_its_own_in_their_order(vision: Vision) -> None:
    one, other = pictures(2)
    both = vision.embed([one, other])
    assert (both[0] - both[1]).abs().max() > 0.01
    torch.testing.assert_close(vision.embed([other, one]), both.flip(0))
    torch.testing.assert_close(vision.embed([one]), both[:1])


def test_narrow_weights_still_answer_in_float32(source: Source, vision: Vision) -> None:
    narrow = Vision(source, dtype=torch.bfloat16, device=CPU).embed(pictures(1))
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, vision.embed(pictures(1)), rtol=0.1, atol=0.1)


def test_an_image_encoder_for_other_sizes_is_refused(source: Source) -> None:
    other = replace(source, config=source.config | {"image_size": 336})
    with pytest.raises(WeightsError, match=r"takes pictures of 336 pixels, should be 224 as CLIP-L/14"):
        Vision(other, dtype=torch.float32, device=CPU)
