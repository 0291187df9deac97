"""The faster readers and the resizing."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sote.data import pixels, scenes


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return scenes.paint(scenes.plan(1, 3), scale=0.3)


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"subsampling": 0, "quality": 97}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"keep_rgb": True, "subsampling": 0}),
        ("JPEG", "RGB", {"restart_marker_rows": 1}),
        ("JPEG", "L", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_a_plain_file_gives_the_very_pixels_that_pillow_gives(
    scene: Image.Image, form: str, mode: str, options: dict[str, Any]
) -> None:
    data = saved(scene.convert(mode), form, **options)
    assert (pixels.decode(data, form.lower()) == by_pillow(data)).all()


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_what_the_faster_readers_accept_of_broken_files_pillow_gives_too(scene: Image.Image, form: str) -> None:
    data = saved(scene.resize((96, 64)), form)
    rng = np.random.default_rng(3)
    accepted = refused = 0
    for index in range(60):
        broken = np.frombuffer(data, np.uint8).copy()
        broken[rng.integers(len(data) // 2, len(data), 3)] = rng.integers(0, 256, 3)
        end = rng.integers(len(data) // 2, len(data)) if index % 3 == 0 else len(data)
        try:
            found = pixels.decode(broken[:end].tobytes(), form.lower())
        except RuntimeError:
            refused += 1
        else:
            accepted += 1
            assert (found == by_pillow(broken[:end].tobytes())).all()
    assert refused
    assert accepted or form == "WEBP"


def test_a_resize_is_within_one_level_of_pillows(scene: Image.Image) -> None:
    for how, name in ((Image.Resampling.BICUBIC, "bicubic"), (Image.Resampling.BILINEAR, "bilinear")):
        for size in ((50, 40), (500, 20), (20, 300), scene.size):
            reference = scene.resize((size[0], scene.height), how).resize(size, how)
            found = pixels.resize(np.asarray(scene), width=size[0], height=size[1], how=name)  # type: ignore[arg-type]
            assert found.shape == (size[1], size[0], 3)
            assert np.abs(found.astype(int) - np.asarray(reference).astype(int)).max() <= 1
