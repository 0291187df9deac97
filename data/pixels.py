"""Pixels by torch's vector code: decoding of plain JPEG and WebP files, and resizing, all of 8 bits and on one thread.

Decoding gives the very bytes that Pillow gives (both stand on libjpeg-turbo and libwebp); resizing differs from
Pillow's by one level at the most.

Kind: actor, without a state.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [height, width, 3]
READERS = ("jpeg", "webp")
RGB = 3  # torchvision.io.ImageReadMode.RGB


def _load_readers() -> None:
    """Load torchvision's image library alone: its Python package would take another second, and is not needed."""
    package = find_spec("torchvision")
    folders = package.submodule_search_locations if package else None
    torch.ops.load_library(next(path for folder in folders or () for path in Path(folder).glob("image.*so")))  # type: ignore[no-untyped-call]


_load_readers()


def decode(data: bytes | memoryview, form: str) -> Pixels:
    """The pixels of a plain JPEG (RGB or grey) or WebP (without alpha, one frame), as RGB, not turned upright.

    Raises RuntimeError for broken and truncated data, which Pillow then may tell the reason of.
    """
    coded = torch.from_numpy(np.frombuffer(data, np.uint8).copy())  # torch takes no array that cannot be written to
    if form == "jpeg":
        pixels_CHW = torch.ops.image.decode_jpeg(coded, RGB, False)
    else:
        pixels_CHW = torch.ops.image.decode_webp(coded, RGB)
    return np.asarray(pixels_CHW.permute(1, 2, 0).contiguous().numpy())


def resize(pixels: Pixels, *, width: int, height: int, how: Literal["bilinear", "bicubic"]) -> Pixels:
    """`pixels` at another size, antialiased, horizontally first and with 8 bits between, as Pillow does."""
    if not pixels.flags.writeable:
        pixels = pixels.copy()  # torch takes no other
    source_BCHW = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # still with the channels last: the fast way
    found_BCHW = torch.nn.functional.interpolate(source_BCHW, size=(height, width), mode=how, antialias=True)
    return np.asarray(found_BCHW[0].permute(1, 2, 0).contiguous().numpy())
