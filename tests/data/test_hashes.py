"""What tells pictures apart."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from sote.data import hashes, scenes


@pytest.fixture(scope="module")
def large() -> Image.Image:
    return scenes.paint(scenes.plan(1, 4))


def test_the_hash_is_the_low_frequencies_above_their_median(large: Image.Image) -> None:
    """imagehash.phash(hash_size=16) by its definition: L, 64 x 64 Lanczos, DCT-II of both axes, 16 x 16, median."""
    grey = np.asarray(large.convert("L").resize((64, 64), Image.Resampling.LANCZOS), dtype=np.float64)
    k, n = np.arange(64)[:, None], np.arange(64)[None, :]
    basis = 2 * np.cos(math.pi * k * (2 * n + 1) / 128)
    low = (basis @ grey @ basis.T)[:16, :16]
    bits = "".join("1" if value else "0" for value in (low > np.median(low)).flatten())
    assert hashes.phash(large) == int(bits, 2).to_bytes(32, "big")


def test_the_hash_is_half_ones(large: Image.Image) -> None:
    assert np.bitwise_count(np.frombuffer(hashes.phash(large), np.uint8)).sum() == 128


def distance(one: Image.Image, other: Image.Image) -> int:
    first, second = (np.frombuffer(hashes.phash(image), np.uint8) for image in (one, other))
    return int(np.bitwise_count(first ^ second).sum())


def test_a_copy_has_a_near_hash_and_another_scene_a_far_one(large: Image.Image) -> None:
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=60)
    half = large.resize((large.width // 2, large.height // 2), Image.Resampling.LANCZOS)
    assert distance(large, Image.open(buffer)) <= 6  # facts: re-encodes and resizes lie within 6
    assert distance(large, half) <= 6
    assert distance(large, scenes.paint(scenes.plan(1, 5))) > 60


@pytest.mark.parametrize(
    ("width", "height"), [(1280, 171), (170, 1213), (64, 64), (64, 300), (40, 90), (3, 2), (1, 700), (10_050, 65)]
)
def test_a_picture_is_made_small_as_pillow_does_it(width: int, height: int) -> None:
    """Each of Pillow's passes by itself: in what order it takes both depends on its version for narrow pictures.

    Black and white noise has the greatest sums, and many that are clipped.
    """
    values = np.random.default_rng(width).integers(0, 2, (height, width), dtype=np.uint8) * np.uint8(255)
    half = Image.fromarray(values).resize((64, height), Image.Resampling.LANCZOS)
    assert (hashes.shrunk(values) == np.asarray(half.resize((64, 64), Image.Resampling.LANCZOS))).all()


def test_the_thumbnail_holds_the_mean_of_each_cell() -> None:
    values = np.random.default_rng(0).integers(0, 256, (160, 320, 3), dtype=np.uint8)
    cells = np.frombuffer(hashes.thumb(Image.fromarray(values)), np.uint8).reshape(16, 16, 3)
    means = values.reshape(16, 10, 16, 20, 3).mean(axis=(1, 3))
    assert np.abs(cells - means).max() <= 1


def test_the_deviation_of_a_thumbnail_is_that_of_its_widest_channel() -> None:
    cells = np.full((256, 3), 9, np.uint8)
    assert hashes.thumb_deviation(cells.tobytes()) == 0
    cells[:128, 1] = 29
    cells[:128, 2] = 209
    assert hashes.thumb_deviation(cells.tobytes()) == 100


def test_the_pixel_id_tells_shapes_of_the_same_bytes_apart() -> None:
    assert hashes.pixel_id(Image.new("RGB", (4, 2))) != hashes.pixel_id(Image.new("RGB", (2, 4)))
    assert hashes.pixel_id(Image.new("RGB", (4, 2))) == hashes.pixel_id(np.zeros((2, 4, 3), np.uint8))
