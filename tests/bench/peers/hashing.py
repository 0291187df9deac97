"""A peer: imagehash's perceptual hash of 16 x 16 bits, the usual way to look for near-duplicates in Python."""

import importlib.util
from collections.abc import Callable

import numpy as np
from PIL import Image


def phash() -> Callable[[Image.Image], bytes] | None:
    """The hash as 32 bytes, row by row; None where imagehash is not installed."""
    if importlib.util.find_spec("imagehash") is None:
        return None
    import imagehash

    return lambda image: np.packbits(imagehash.phash(image, hash_size=16).hash).tobytes()
