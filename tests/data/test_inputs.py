"""What the models see."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sote.data import inputs, scenes


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


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return scenes.paint(scenes.plan(1, 4), scale=0.6)


def levels_apart(found: NDArray[np.uint8], reference: Image.Image) -> int:
    return int(np.abs(found.astype(int) - np.asarray(reference).astype(int)).max())


def one_pass_each(image: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """Pillow's resize, horizontally first: its own order depends on its version and on the picture."""
    return image.resize((size[0], image.height), how).resize(size, how)


def test_inputs_are_within_one_level_of_what_the_models_own_code_makes_with_pillow(scene: Image.Image) -> None:
    square = Image.new("RGB", (scene.width, scene.width), "white")
    square.paste(scene, (0, (scene.width - scene.height) // 2))
    tagger = one_pass_each(square, (112, 112), Image.Resampling.BICUBIC)
    assert levels_apart(inputs.tagger_input(scene, side=112)[:, :, ::-1], tagger) <= 1
    squashed = one_pass_each(scene, (200, 300), Image.Resampling.BILINEAR)
    assert levels_apart(inputs.aesthetic_input(scene, width=200, height=300), squashed) <= 1
    width = 96 * scene.width // scene.height
    left = (width - 96) // 2
    shortest = one_pass_each(scene, (width, 96), Image.Resampling.BICUBIC).crop((left, 0, left + 96, 96))
    assert levels_apart(inputs.quality_input(scene, side=96), shortest) <= 1


def test_a_picture_and_its_pixels_give_the_same_inputs(scene: Image.Image) -> None:
    shapes = inputs.InputShapes(tagger_side=24, aesthetic_size=(20, 30), quality_side=16)
    of_image, of_pixels = (inputs.model_inputs(picture, shapes) for picture in (scene, np.array(scene)))
    assert all((of_image[name] == of_pixels[name]).all() for name in of_image)


@pytest.mark.parametrize(("turned", "apart"), [(True, 0), (False, 3)])
def test_a_long_strip_is_made_short_before_it_is_padded(
    scene: Image.Image, turned: bool, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes then have the other order in an upright strip, so that what overshoots is cut elsewhere."""
    strip = np.array(scene.crop((0, 0, scene.width, 60)))
    strip = strip if turned else np.ascontiguousarray(strip.transpose(1, 0, 2))
    whole = inputs.tagger_input(strip, side=64)
    monkeypatch.setattr(inputs, "MOST_PADDED_PIXELS", 1)
    assert levels_apart(inputs.tagger_input(strip, side=64), Image.fromarray(whole)) <= apart


def test_the_longest_strip_takes_no_memory_for_its_square() -> None:
    strip = np.zeros((60_000, 1300, 3), np.uint8)  # its square would be 10 GB
    seen = inputs.tagger_input(strip, side=32)
    assert (seen[:, [0, 10, 21, 31]] == 255).all()
    assert (seen[:, 15:17] < 255).all()
