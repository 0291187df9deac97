"""JPEG XL, where there is a decoder for it."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sote.data import decode, jxl, scenes
from sote.data.decode import Picture, Refused
from sote.data.recipe import DecodePart

RULE = DecodePart(min_pixels=10, max_pixels=1_000_000)


def coded(pixels: NDArray[Any], **options: Any) -> bytes:
    imagecodecs = pytest.importorskip("imagecodecs")
    return bytes(imagecodecs.jpegxl_encode(pixels, **options))


@pytest.fixture(scope="module")
def scene() -> NDArray[np.uint8]:
    return np.asarray(scenes.paint(scenes.plan(1, 3), scale=0.3))


def opened(data: bytes) -> Picture:
    return decode.open_picture(data, RULE)


@pytest.mark.parametrize(("width", "height"), [(1, 11), (64, 64), (96, 48), (320, 200), (513, 700), (600, 8)])
def test_the_header_tells_the_size(width: int, height: int) -> None:
    data = coded(np.zeros((height, width, 3), np.uint8))
    assert (opened(data).width, opened(data).height, opened(data).format) == (width, height, "jxl")


def test_a_lossless_file_gives_the_very_pixels(scene: NDArray[np.uint8]) -> None:
    assert (np.asarray(opened(coded(scene, lossless=True)).image) == scene).all()
    deep = coded(scene.astype(np.uint16) * 257, lossless=True)  # in a container
    assert deep.startswith(jxl.CONTAINER)
    assert (np.asarray(opened(deep).image) == scene).all()
    grey = opened(coded(scene[:, :, 0], lossless=True))
    assert (np.asarray(grey.image)[:, :, 2] == scene[:, :, 0]).all()


def test_a_lossy_file_gives_about_the_pixels(scene: NDArray[np.uint8]) -> None:
    found = np.asarray(opened(coded(scene, level=90)).image).astype(int)
    assert np.abs(found - scene).mean() < 4


def test_what_is_transparent_shows_white(scene: NDArray[np.uint8]) -> None:
    clear = np.dstack([scene, np.zeros_like(scene[:, :, :1])])
    assert (np.asarray(opened(coded(clear, lossless=True)).image) == 255).all()


def test_of_an_animation_the_first_frame_is_taken_and_it_is_flagged(scene: NDArray[np.uint8]) -> None:
    picture = opened(coded(np.stack([scene, 255 - scene, scene]), lossless=True))
    assert picture.frames == jxl.SEVERAL
    assert (np.asarray(picture.image) == scene).all()


def test_a_jpeg_packed_without_loss_is_opened(scene: NDArray[np.uint8]) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    buffer = io.BytesIO()
    Image.fromarray(scene).save(buffer, "JPEG", quality=95)
    found = np.asarray(opened(bytes(imagecodecs.jpegxl_encode_jpeg(buffer.getvalue()))).image).astype(int)
    assert np.abs(found - np.asarray(Image.open(buffer)).astype(int)).mean() < 1


def test_a_cut_file_and_one_whose_header_says_too_much_are_refused(scene: NDArray[np.uint8]) -> None:
    data = coded(scene, lossless=True)
    with pytest.raises(Refused, match="truncated") as cut:
        opened(data[: len(data) // 2])
    assert (cut.value.width, cut.value.height) == (scene.shape[1], scene.shape[0])
    with pytest.raises(Refused, match="header says more than 1000000 pixels"):
        opened(b"\xff\x0a" + ((3 << 1) | (100_000 << 3) | (1 << 33)).to_bytes(8, "little") + bytes(60))


def test_without_a_decoder_such_a_file_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jxl, "register", lambda: False)
    with pytest.raises(Refused, match="JPEG XL is not read"):
        opened(b"\xff\x0a" + bytes(99))
