"""What tells pictures apart: perceptual hash, thumbnail, and the name of the pixels.

All are made by Pillow's integer arithmetic from the RGB pixels that every route of decoding agrees on, so that they
are the same bits on every machine and a catalogue can be compared with a later one.

Kind: pure.
"""

import hashlib

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from PIL import Image

HASH_SIDE = 16  # 16 x 16 = 256 bits
HASH_PICTURE_SIDE = 64  # imagehash.phash: hash side x 4
THUMB_SIDE = 16


def phash(image: Image.Image) -> bytes:
    """256-bit perceptual hash of an RGB picture, 32 bytes: bit for bit `imagehash.phash(image, hash_size=16)`.

    Bits lie row by row of the DCT's low frequencies, the first in the highest bit of the first byte.
    """
    side = (HASH_PICTURE_SIDE, HASH_PICTURE_SIDE)
    grey = np.asarray(image.convert("L").resize(side, Image.Resampling.LANCZOS), dtype=np.float64)
    low = scipy.fft.dct(scipy.fft.dct(grey, axis=0), axis=1)[:HASH_SIDE, :HASH_SIDE]
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
