"""What the models see."""

import numpy as np
import pytest
from PIL import Image

from sote.data import inputs


def halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def test_the_tagger_sees_blue_first_and_white_above_and_below_a_wide_picture() -> None:
    seen = inputs.tagger_input(halves(64, 32), side=64)
    assert seen.shape == (64, 64, 3)
    assert seen.dtype == np.uint8
    assert (seen[:16] == 255).all()
    assert (seen[48:] == 255).all()
    assert seen[32, 4].tolist() == [0, 0, 255]  # BGR red
    assert seen[32, 60].tolist() == [255, 0, 0]


def test_an_odd_padding_puts_the_extra_pixel_right_and_below() -> None:
    seen = inputs.tagger_input(Image.new("RGB", (10, 7)), side=10)
    assert (seen[:, 0, 0] == 255).nonzero()[0].tolist() == [0, 8, 9]


def test_a_small_picture_is_made_larger_for_the_tagger() -> None:
    assert inputs.tagger_input(halves(20, 20), side=64).shape == (64, 64, 3)


def test_the_aesthetic_scorer_sees_the_whole_picture_squashed() -> None:
    seen = inputs.aesthetic_input(halves(100, 40), width=30, height=50)
    assert seen.shape == (50, 30, 3)
    assert seen[0, 0].tolist() == [255, 0, 0]
    assert seen[49, 29].tolist() == [0, 0, 255]


def test_the_quality_scorer_sees_the_centre_only() -> None:
    pixels = np.full((32, 96, 3), 7, np.uint8)
    pixels[:, 32:64] = 200
    seen = inputs.quality_input(Image.fromarray(pixels), side=32)
    assert seen.shape == (32, 32, 3)
    assert (seen == 200).all()


@pytest.mark.parametrize(("width", "height"), [(1, 500), (500, 1), (333, 500), (7, 7)])
def test_every_aspect_gives_the_shape_asked_for(width: int, height: int) -> None:
    shapes = inputs.InputShapes(tagger_side=24, aesthetic_size=(20, 30), quality_side=16)
    made = inputs.model_inputs(Image.new("RGB", (width, height)), shapes)
    blank = inputs.blank_inputs(shapes)
    assert {name: array.shape for name, array in made.items()} == {
        "tagger_input": (24, 24, 3),
        "aesthetic_input": (30, 20, 3),
        "quality_input": (16, 16, 3),
    }
    assert {name: array.shape for name, array in made.items()} == {n: array.shape for n, array in blank.items()}


def test_an_input_that_is_not_asked_for_is_absent() -> None:
    assert set(inputs.model_inputs(halves(8, 8), inputs.InputShapes(quality_side=4))) == {"quality_input"}


def test_the_encoder_sees_the_box_and_nothing_around_it() -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[10:50, 20:60] = 255
    seen = inputs.encoder_input(Image.fromarray(pixels), box=(20, 10, 60, 50), width=32, height=32)
    assert seen.shape == (32, 32, 3)
    assert (seen == 255).all()


@pytest.mark.parametrize("box", [(0, 0, 81, 60), (-1, 0, 10, 10), (10, 10, 10, 20), (10, 20, 20, 10)])
def test_a_box_outside_of_the_picture_is_an_error(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="does not lie within"):
        inputs.encoder_input(Image.new("RGB", (80, 60)), box=box, width=8, height=8)
