import base64
import io

import numpy as np
import pytest
from PIL import Image

from sote.serve import pictures
from sote.serve.settings import OutputFormat

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
TEXT = "1girl, 猫\nSteps: 30"
FORMATS: tuple[OutputFormat, ...] = ("png", "jpeg", "webp")


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_png_is_exact_and_carries_its_parameters_as_text() -> None:
    image = opened(pictures.encode(PIXELS, "png", parameters=TEXT))
    assert np.array_equal(np.asarray(image), PIXELS)
    assert image.info["parameters"] == TEXT


def test_png_with_latin_parameters_has_a_plain_text_chunk() -> None:
    assert b"tEXtparameters\x00Steps: 30" in pictures.encode(PIXELS, "png", parameters="Steps: 30")


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_jpeg_and_webp_carry_them_as_user_comment(output_format: OutputFormat) -> None:
    image = opened(pictures.encode(PIXELS, output_format, parameters=TEXT))
    assert image.format == output_format.upper()
    comment = image.getexif().get_ifd(pictures.EXIF_IFD)[pictures.USER_COMMENT]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == TEXT


def test_exif_is_big_endian_as_the_comment_in_it() -> None:
    assert b"Exif\0\0MM\0\x2a" in pictures.encode(PIXELS, "jpeg", parameters=TEXT)


@pytest.mark.parametrize("output_format", FORMATS)
def test_what_was_written_is_read_again(output_format: OutputFormat) -> None:
    assert pictures.comment_of(opened(pictures.encode(PIXELS, output_format, parameters=TEXT))) == TEXT


@pytest.mark.parametrize("output_format", FORMATS)
def test_without_parameters_the_file_says_nothing(output_format: OutputFormat) -> None:
    data = pictures.encode(PIXELS, output_format, parameters=None)
    assert b"Exif" not in data
    assert b"tEXt" not in data
    assert pictures.comment_of(opened(data)) is None


@pytest.mark.parametrize("output_format", FORMATS)
def test_parameters_of_any_length_give_a_picture(output_format: OutputFormat) -> None:
    words = "猫" * 40_000
    read = pictures.comment_of(opened(pictures.encode(PIXELS, output_format, parameters=words)))
    assert read == (None if output_format == "jpeg" else words)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_less_quality_is_a_smaller_file(output_format: OutputFormat) -> None:
    sizes = [len(pictures.encode(PIXELS, output_format, parameters=None, quality=q)) for q in (0, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_equal_pictures_are_equal_bytes_and_the_data_uri_holds_them() -> None:
    one, other = (pictures.encode(PIXELS, "webp", parameters=TEXT) for _ in range(2))
    assert one == other
    painted = pictures.Painted(
        data=one,
        output_format="webp",
        width=24,
        height=16,
        seed=1,
        parameters=TEXT,
        latents=np.zeros((16, 1, 1), np.float32),
    )
    head, _, body = painted.data_uri.partition(",")
    assert head == "data:image/webp;base64"
    assert base64.b64decode(body) == one
    assert painted.image.size == (24, 16)
