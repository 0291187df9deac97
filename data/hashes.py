"""What tells pictures apart: perceptual hash, thumbnail, and the name of the pixels.

All are made by Pillow's integer arithmetic from the RGB pixels that every route of decoding agrees on, so that they
are the same bits on every machine and a catalogue can be compared with a later one. Most of the time of a hash goes
into making the picture small; `shrunk` does that in less than half of Pillow's time.

Kind: pure.
"""

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from PIL import Image

HASH_SIDE = 16  # 16 x 16 = 256 bits
SMALL_SIDE = 64  # imagehash.phash: hash side x 4
THUMB_SIDE = 16

# Pillow, src/libImaging/Resample.c: Lanczos reaches 3 pixels of the smaller picture; weights are integers of 22 bits
REACH = 3.0
WEIGHT_BITS = 22
# Weights are cut in two at this bit, so that sums of their products with 8-bit values stay below 2^24 and are exact in
# float32: of the upper parts at most 1.5 * 2^22 / 2^7 * 255, of the lower 2^6 * 255 * (6 * 10,000 / 64 + 2).
CUT_BITS = 7
MOST_FLOAT32 = 10_000  # pixels; along longer sides sums are made in float64
COLUMNS = 8  # of the smaller picture, made by one product of matrices
ROWS = 512  # at a time, which a processor's cache can hold


def phash(image: Image.Image) -> bytes:
    """256-bit perceptual hash of an RGB picture, 32 bytes: bit for bit `imagehash.phash(image, hash_size=16)`.

    Bits lie row by row of the DCT's low frequencies, the first in the highest bit of the first byte.
    """
    small = shrunk(np.asarray(image.convert("L"))).astype(np.float64)
    low = scipy.fft.dct(scipy.fft.dct(small, axis=0), axis=1)[:HASH_SIDE, :HASH_SIDE]
    return np.packbits(low > np.median(low)).tobytes()


def thumb(image: Image.Image) -> bytes:
    """16 x 16 RGB thumbnail of an RGB picture, each cell the mean of its part: 768 bytes, row by row."""
    return image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX).tobytes()


def thumb_deviation(thumb: bytes) -> float:
    """The largest of the three channels' standard deviations over a thumbnail's cells, in levels (0..127.5)."""
    cells = np.frombuffer(thumb, np.uint8).reshape(-1, 3)
    return float(cells.std(axis=0).max())


def pixel_id(image: Image.Image | NDArray[np.uint8]) -> str:
    """sha256 over size and pixels of an RGB picture, 64 hex digits: equal for equal pictures in any lossless file."""
    pixels = np.ascontiguousarray(image)
    digest = hashlib.sha256(f"{pixels.shape[1]}x{pixels.shape[0]}\n".encode())
    digest.update(pixels.data)
    return digest.hexdigest()


def shrunk(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[height, width] -> [64, 64]: bit for bit what Pillow's resize of an 8-bit picture with Lanczos gives."""
    return _narrowed(_narrowed(grey).T).T


def _narrowed(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, length] -> [N, 64]: Pillow's horizontal pass."""
    parts = _weights(values.shape[1])
    sums = np.empty((len(values), len(parts), 2 * COLUMNS), parts[0][1].dtype)
    for top in range(0, len(values), ROWS):
        rows = values[top : top + ROWS].astype(sums.dtype, order="C")
        for at, (start, weights) in enumerate(parts):
            sums[top : top + ROWS, at] = rows[:, start : start + len(weights)] @ weights
    whole = sums.astype(np.int64)
    upper, lower = whole[:, :, :COLUMNS], whole[:, :, COLUMNS:]
    rounded = ((upper << CUT_BITS) + lower + (1 << WEIGHT_BITS - 1)) >> WEIGHT_BITS
    return rounded.clip(0, 255).astype(np.uint8).reshape(len(values), SMALL_SIDE)


@lru_cache(maxsize=64)
def _weights(length: int) -> list[tuple[int, NDArray[Any]]]:
    """For each COLUMNS columns of 64: the first place that they see, and [places, upper | lower parts] of weights."""
    scale = length / SMALL_SIDE
    stretch = max(scale, 1.0)
    centres = (np.arange(SMALL_SIDE) + 0.5) * scale
    first = np.maximum(centres - REACH * stretch + 0.5, 0).astype(np.int64)
    last = np.minimum(centres + REACH * stretch + 0.5, length).astype(np.int64)
    places = first[:, None] + np.arange((last - first).max())
    away = (places - centres[:, None] + 0.5) / stretch
    seen = (places < last[:, None]) & (away >= -REACH) & (away < REACH)
    curve = np.sinc(away) * np.sinc(away / REACH) * seen
    exact = curve / curve.sum(axis=1, keepdims=True) * (1 << WEIGHT_BITS)
    whole = np.trunc(exact + np.copysign(0.5, exact)).astype(np.int64)
    upper = (whole + (1 << CUT_BITS - 1)) >> CUT_BITS
    halves = np.stack([upper, whole - (upper << CUT_BITS)])
    kind = np.float32 if length <= MOST_FLOAT32 else np.float64
    parts = []
    for at in range(0, SMALL_SIDE, COLUMNS):
        start, end = first[at], places[at + COLUMNS - 1, -1] + 1
        part = np.zeros((min(end, length) - start, 2, COLUMNS), kind)
        for column in range(COLUMNS):
            reach = slice(first[at + column] - start, last[at + column] - start)
            part[reach, :, column] = halves[:, at + column, : reach.stop - reach.start].T
        parts.append((int(start), part.reshape(len(part), 2 * COLUMNS)))
    return parts
