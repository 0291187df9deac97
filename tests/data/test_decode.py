"""Opening pictures: the cases of broken and hostile files, the colour rule."""

import io
import struct
import threading
import warnings
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin

from sote.data import decode, hashes, painting, scenes
from sote.data.decode import Picture, Refused
from sote.data.recipe import DecodePart

RULE = DecodePart(min_pixels=1000, max_pixels=1_000_000)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opened(data: bytes, rule: DecodePart = RULE) -> Picture:
    return decode.open_picture(data, rule)


def refusal(data: bytes, rule: DecodePart = RULE) -> Refused:
    with pytest.raises(Refused) as caught:
        decode.open_picture(data, rule)
    return caught.value


def pixels(data: bytes) -> NDArray[np.int16]:
    return np.asarray(opened(data).image).astype(np.int16)


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return scenes.paint(scenes.plan(1, 3), scale=0.3)


@pytest.fixture(scope="module")
def large() -> Image.Image:
    return scenes.paint(scenes.plan(1, 4))


# formats


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("JPEG", "jpeg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tiff"),
        ("AVIF", "avif"),
        ("PPM", "ppm"),
        ("JPEG2000", "jpeg2000"),
    ],
)
def test_every_format_is_opened_under_its_name(scene: Image.Image, form: str, name: str) -> None:
    picture = opened(saved(scene, form))
    assert (picture.format, picture.width, picture.height, picture.frames) == (name, *scene.size, 1)
    assert picture.image.mode == "RGB"
    difference = np.abs(np.asarray(picture.image).astype(int) - np.asarray(scene).astype(int))
    assert difference.mean() < 4


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_file_gives_the_very_pixels(scene: Image.Image, form: str) -> None:
    assert hashes.pixel_id(opened(saved(scene, form)).image) == hashes.pixel_id(scene)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame_is_taken_and_the_frames_are_counted(form: str) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime", "blue")]
    picture = opened(saved(frames[0], form, save_all=True, append_images=frames[1:]))
    assert picture.frames == 3
    red, green, blue = np.asarray(picture.image).reshape(-1, 3).mean(axis=0)
    assert red > 240
    assert green < 15
    assert blue < 15


def test_a_camera_jpeg_with_a_second_picture_behind_it_is_a_jpeg(scene: Image.Image) -> None:
    picture = opened(saved(scene, "MPO", save_all=True, append_images=[scene]))
    assert (picture.format, picture.frames) == ("jpeg", 2)


# the colour rule


def test_what_is_transparent_shows_white_and_hidden_colours_do_not_show() -> None:
    drawn = replace(scenes.plan(0, 1), background=painting.Background("transparent", "white"))
    expected = np.asarray(painting.paint(drawn)).astype(np.int16)
    found = np.asarray(opened(saved(painting.paint_cutout(drawn), "PNG"), DecodePart()).image).astype(np.int16)
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_half_transparent_red_becomes_pink(form: str) -> None:
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 128))
    options = {"lossless": True} if form == "WEBP" else {}
    assert pixels(saved(image, form, **options))[20, 20].tolist() == [255, 127, 127]


def test_grey_with_alpha_shows_white() -> None:
    assert pixels(saved(Image.new("LA", (40, 40), (10, 0)), "PNG"))[0, 0].tolist() == [255, 255, 255]


def test_a_transparent_palette_entry_shows_white() -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 200, 30, 30])
    image.paste(0, (0, 0, 20, 40))
    found = pixels(saved(image, "PNG", transparency=0))
    assert found[5, 5].tolist() == [255, 255, 255]
    assert found[5, 35].tolist() == [200, 30, 30]


def test_a_transparent_colour_of_an_rgb_file_shows_white() -> None:
    image = Image.new("RGB", (40, 40), (1, 2, 3))
    assert pixels(saved(image, "PNG", transparency=(1, 2, 3)))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_upper_eight_bits(form: str) -> None:
    values = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64)
    picture = opened(saved(Image.fromarray(values), form))
    assert picture.mode == "I;16"
    assert (np.asarray(picture.image)[:, :, 0] == values >> 8).all()


def test_big_endian_16_bit_tiff_keeps_its_upper_eight_bits() -> None:
    values = np.linspace(0, 65_535, 64 * 64).astype(">u2").reshape(64, 64)
    tags = {256: 64, 257: 64, 258: 16, 259: 1, 262: 1, 273: 200, 277: 1, 278: 64, 279: values.nbytes}
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", len(tags)) + entries + struct.pack(">I", 0)
    picture = opened(head.ljust(200, b"\0") + values.tobytes())
    assert picture.mode == "I;16B"
    assert (np.asarray(picture.image)[:, :, 0] == values >> 8).all()


def test_16_bit_pgm_keeps_its_upper_eight_bits() -> None:
    values = np.linspace(0, 65_535, 64 * 64).astype(">u2").reshape(64, 64)
    picture = opened(b"P5\n64 64\n65535\n" + values.tobytes())
    assert (np.asarray(picture.image)[:, :, 0] == values >> 8).all()


def test_16_bit_colour_keeps_its_upper_eight_bits(scene: Image.Image) -> None:
    picture = opened(scenes._rgb_16(scene))
    assert picture.mode == "RGB"
    assert hashes.pixel_id(picture.image) == hashes.pixel_id(scene)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_are_converted_and_named(scene: Image.Image, mode: str) -> None:
    picture = opened(saved(scene.convert(mode), "TIFF"))
    assert picture.mode == mode
    assert picture.image.mode == "RGB"


def test_black_and_white_stay_black_and_white() -> None:
    image = Image.new("1", (40, 40), 1)
    image.paste(0, (0, 0, 20, 40))
    assert pixels(saved(image, "PNG"))[0, [0, 39]].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(form: str, orientation: int) -> None:
    shown = Image.new("RGB", (60, 30), "white")
    shown.paste((255, 0, 0), (0, 0, 30, 15))  # red at the top left, blue at the bottom left
    shown.paste((0, 0, 255), (0, 15, 30, 30))
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # the others undo themselves
    turn = back.get(orientation, decode.UPRIGHT.get(orientation))
    exif = Image.Exif()
    exif[decode.ORIENTATION] = orientation
    picture = opened(saved(shown if turn is None else shown.transpose(turn), form, exif=exif))
    assert (picture.width, picture.height) == (60, 30)
    found = np.asarray(picture.image).astype(np.int16)
    assert np.abs(found[4, 8] - [255, 0, 0]).max() < 40
    assert np.abs(found[26, 8] - [0, 0, 255]).max() < 40
    assert np.abs(found[4, 50] - [255, 255, 255]).max() < 40


def test_the_size_of_a_refused_picture_is_that_of_the_upright_one() -> None:
    exif = Image.Exif()
    exif[decode.ORIENTATION] = 6
    refused = refusal(saved(Image.new("RGB", (30, 10)), "JPEG", exif=exif))
    assert (refused.width, refused.height) == (10, 30)


def test_broken_exif_does_not_spoil_a_picture(scene: Image.Image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's word on the EXIF data
        for exif in (b"Exif\0\0garbage!", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12"):
            assert opened(saved(scene, "JPEG", exif=exif)).width == scene.width


# what is refused, and why


@pytest.mark.parametrize("keep", [0.3, 0.9])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_refused_as_that(large: Image.Image, form: str, keep: float) -> None:
    data = saved(large, form)
    refused = refusal(data[: int(len(data) * keep)], DecodePart())
    assert (refused.reason, refused.fault) == ("truncated", True)
    if form != "WEBP":
        assert (refused.width, refused.height) == large.size


def test_a_truncated_file_is_refused_even_after_a_sound_one(large: Image.Image) -> None:
    data = saved(large, "JPEG")
    opened(data, DecodePart())
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert refusal(data[:-100], DecodePart()).reason == "truncated"


def test_wrong_png_data_are_refused_as_broken(scene: Image.Image) -> None:
    data = bytearray(saved(scene, "PNG"))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    assert refusal(bytes(data)).reason == "broken data (OSError)"


@pytest.mark.parametrize("data", [b"<html>no</html>" * 9, b"\0" * 5000, b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_refused_as_that(data: bytes) -> None:
    assert (refusal(data).reason, refusal(data).fault) == ("not a picture", True)


def test_an_empty_file_is_refused_as_that() -> None:
    assert (refusal(b"").reason, refusal(b"").fault) == ("empty file", True)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "HEIC"),
    ],
)
def test_pictures_that_pillow_cannot_read_are_refused_by_name(data: bytes, name: str) -> None:
    assert (refusal(data).reason, refusal(data).fault) == (f"{name} is not read", False)


@pytest.mark.parametrize("side", [1_001, 12_000, 60_000])  # below and above where Pillow itself warns or raises
def test_a_header_with_an_absurd_size_is_refused_before_any_pixel(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused = refusal(scenes._png(side, side, bits=8, colour=2, rows=b""))
    assert (refused.reason, refused.fault) == ("header says more than 1000000 pixels", True)
    assert (refused.width, refused.height, refused.format, refused.mode) == (side, side, "png", "RGB")


def test_the_largest_size_allowed_is_opened() -> None:
    image = Image.new("L", (1000, 1000))
    assert opened(saved(image, "PNG")).width == 1000
    assert opened(saved(image, "PNG"), DecodePart(min_pixels=1_000_000)).height == 1000


def test_a_small_picture_is_skipped_by_rule_and_not_for_a_fault(scene: Image.Image) -> None:
    refused = refusal(saved(scene, "PNG"), DecodePart())
    assert (refused.reason, refused.fault) == ("fewer than 768000 pixels", False)
    assert (refused.width, refused.height) == scene.size


def test_a_small_picture_is_skipped_before_its_pixels_are_read(scene: Image.Image) -> None:
    data = saved(scene, "PNG")
    assert refusal(data[: len(data) // 2], DecodePart()).reason == "fewer than 768000 pixels"


def test_floating_point_pixels_are_skipped_by_rule(scene: Image.Image) -> None:
    refused = refusal(saved(scene.convert("F"), "TIFF"))
    assert (refused.reason, refused.fault, refused.mode) == ("floating-point pixels are not read", False, "F")


def test_an_absurdly_long_text_in_a_png_is_refused_as_broken(scene: Image.Image) -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1_000_000))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    data = saved(scene, "PNG")
    assert refusal(data[:33] + chunk + data[33:]).reason == "broken data (ValueError)"  # 33: behind IHDR


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_whatever_bytes_are_flipped_nothing_but_a_refusal_comes_out(scene: Image.Image, form: str) -> None:
    data = saved(scene.resize((64, 48)), form)
    rng = np.random.default_rng(7)
    reasons = set()
    for _ in range(40):
        broken = np.frombuffer(data, np.uint8).copy()
        broken[rng.integers(0, len(broken), 12)] = rng.integers(0, 256, 12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                opened(broken.tobytes())
            except Refused as refused:
                reasons.add(refused.reason)
    assert len(reasons) <= 6  # they can be counted


def test_pillows_own_limit_is_as_before_whatever_happened(scene: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    data = [saved(scene, "PNG"), b"", b"nothing", scenes._png(60_000, 60_000, bits=8, colour=2, rows=b"")]

    def work() -> None:
        for item in data * 20:
            try:
                opened(item)
            except Refused:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS
