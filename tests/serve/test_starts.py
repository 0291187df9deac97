import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sote.cluster.errors import RequestError
from sote.serve import starts
from sote.serve.starts import start_of, variation_of

RED, BLUE = (255, 0, 0), (0, 0, 255)


def uri(image: Image.Image, form: str = "PNG", **options: object) -> str:
    data = io.BytesIO()
    image.save(data, form, **options)
    return encoded(data.getvalue())


def encoded(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def halves(width: int = 640, height: int = 480) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def start(data_uri: str) -> starts.Pixels:
    return start_of(data_uri, width=256, height=384, compression=42)


def refusal(data_uri: str) -> str:
    with pytest.raises(RequestError) as caught:
        start(data_uri)
    return str(caught.value)


@pytest.mark.parametrize(
    ("width", "height", "compression", "cells"),
    [(256, 384, 42, (9, 6)), (1024, 1536, 42, (36, 24)), (1024, 1536, 42.67, (36, 24)), (1024, 1024, 32, (32, 32))],
)
def test_a_start_has_32_pixels_for_each_cell_of_its_latents(
    width: int, height: int, compression: float, cells: tuple[int, int]
) -> None:
    pixels = start_of(uri(halves()), width=width, height=height, compression=compression)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (32 * cells[0], 32 * cells[1], 3)


def test_a_start_is_cropped_in_the_middle_and_not_squeezed() -> None:
    wide = Image.new("RGB", (1200, 300), (0, 255, 0))
    wide.paste(RED, (500, 0, 600, 300))
    wide.paste(BLUE, (600, 0, 700, 300))
    pixels = start(uri(wide))
    assert tuple(pixels[100, 40]) == RED
    assert tuple(pixels[100, -40]) == BLUE


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_each_format_is_read_by_data_uri_or_bare(form: str) -> None:
    text = uri(halves(), form)
    for given in (text, text.partition(",")[2], text[:60] + "\n  " + text[60:]):
        pixels = variation_of(given, field="f")
        assert pixels.shape == (224, 224, 3)
        assert pixels[112, 20, 0] > 240
        assert pixels[112, 20, 2] < 15
        assert pixels[112, -20, 2] > 240


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_turns_the_picture_upright(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left comes up
    pixels = variation_of(uri(halves(), form, exif=exif), field="f")
    assert pixels[20, 112, 0] > 240
    assert pixels[-20, 112, 2] > 240


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(mode: str) -> None:
    clear = Image.new("RGBA", (300, 300), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (100, 100, 200, 200))
    image = clear.quantize() if mode == "P" else clear.convert(mode)
    pixels = variation_of(uri(image), field="f")
    assert pixels[5, 5].min() > 250
    assert pixels[112, 112].max() < 5


def test_half_transparent_black_is_grey() -> None:
    pixels = variation_of(uri(Image.new("RGBA", (300, 300), (0, 0, 0, 128))), field="f")
    assert abs(int(pixels[112, 112, 0]) - 127) <= 1


def test_grey_and_16_bit_pictures_are_read() -> None:
    assert variation_of(uri(Image.new("L", (300, 300), 77)), field="f")[0, 0].tolist() == [77] * 3
    deep = Image.fromarray(np.full((300, 300), 77 * 257, np.uint16))
    assert variation_of(uri(deep), field="f")[0, 0].tolist() == [77] * 3


def test_an_address_is_not_fetched() -> None:
    for address in ("http://127.0.0.1/a.png", "https://example.org/a.png"):
        assert refusal(address).startswith("image_url: this server fetches nothing; send the picture itself")


def test_a_bomb_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    said = refusal(encoded(bomb + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))))
    assert said == "image_url: the picture cannot be used: header says more than 67108864 pixels"


def test_what_is_no_base64_is_named() -> None:
    for body in ("***", "abc", "ümlaut"):
        assert refusal(f"data:image/png;base64,{body}") == "image_url: not base64"
    assert refusal("data:image/png,abc") == "image_url: a data URI here is data:image/png;base64,..."
    assert refusal("data:image/png") == "image_url: a data URI here is data:image/png;base64,..."


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused(form: str) -> None:
    assert refusal(uri(halves(), form)) == "image_url: no PNG, JPEG or WebP picture"


def test_what_is_no_picture_is_refused() -> None:
    assert refusal(encoded(b"hello")) == "image_url: no PNG, JPEG or WebP picture"
    assert refusal("") == "image_url: no PNG, JPEG or WebP picture"
    assert refusal(encoded(b"\x89PNG\r\n\x1a\n" + bytes(40))).startswith("image_url: the picture cannot be used: ")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_is_cut_short_is_refused(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
    data = base64.b64decode(uri(noise, form).partition(",")[2])
    assert refusal(encoded(data[: len(data) // 2])) == "image_url: the picture cannot be used: truncated"


def test_the_field_of_a_variation_is_named() -> None:
    with pytest.raises(RequestError, match=r"^variation_image_urls\.2: not base64$"):
        variation_of("data:image/png;base64,***", field="variation_image_urls.2")
