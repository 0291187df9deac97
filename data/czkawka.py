"""czkawka's hash of a picture: its defaults are the gradient hash of 16 x 16 with the filter Nearest.

For comparison with sets that were deduplicated by that tool. Nearest looks at 272 pixels of a picture only, so that
the hash finds little beyond copies of the very same pixels. Computed as image_hasher 1.2 to 3.1 does on image-rs'
8-bit pictures; where a whole picture is not 8 bits per channel, or is CMYK, the conversion is Pillow's and not that
tool's, and of a lossy file a decoder's rounding can move a bit.

Kind: pure.
"""

import numpy as np
from numpy.typing import NDArray

SIDE = 16
# image-rs up to 0.25.10: ITU-R BT.709 luma as integers, truncated, at full resolution
LUMA = np.array([2126, 7152, 722])
LUMA_SUM = 10_000


def gradient_hash(pixels: NDArray[np.uint8], *, side: int = SIDE) -> bytes:
    """The hash of upright [height, width, 3] RGB, of which alpha was dropped and not blended: side * side bits.

    Bit for a pixel that is brighter than the one to its left, row by row, the first in the lowest bit of a byte.
    """
    rows, columns = _nearest(pixels.shape[0], side), _nearest(pixels.shape[1], side + 1)
    luma = pixels[rows[:, None], columns].astype(np.int64) @ LUMA // LUMA_SUM
    return np.packbits(luma[:, 1:] > luma[:, :-1], bitorder="little").tobytes()


def _nearest(length: int, count: int) -> NDArray[np.int64]:
    """The `count` places of `length` that image-rs' resize with the filter Nearest takes, in its float32."""
    ratio = np.float32(length) / np.float32(count)
    places: NDArray[np.int64] = np.floor((np.arange(count, dtype=np.float32) + np.float32(0.5)) * ratio).astype(
        np.int64
    )
    return places
