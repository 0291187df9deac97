import base64
import io

import numpy as np
import pytest
from PIL import Image

from sote.serve import pictures
from sote.serve.recipe import OutputFormat

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
TEXT = "1girl, 猫\nSteps: 30"


def test_png_is_exact_and_carries_its_parameters_as_text() -> None:
    data = pictures.encode(PIXELS, "png", parameters=TEXT)
    image = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(image), PIXELS)
    assert image.info["parameters"] == TEXT


def test_png_with_latin_parameters_has_a_plain_text_chunk() -> None:
    assert b"tEXtparameters\x00Steps: 30" in pictures.encode(PIXELS, "png", parameters="Steps: 30")


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_jpeg_and_webp_carry_them_as_user_comment(output_format: OutputFormat) -> None:
    image = Image.open(io.BytesIO(pictures.encode(PIXELS, output_format, parameters=TEXT)))
    assert image.format == output_format.upper()
    comment = image.getexif().get_ifd(pictures.EXIF_IFD)[pictures.USER_COMMENT]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == TEXT


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
