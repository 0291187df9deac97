"""JPEG XL as one of Pillow's formats, where the package imagecodecs (BSD-3-Clause, with libjxl) is installed.

Size, orientation and animation are read from the header here, since libjxl would be asked too late to refuse a bomb.
The colour mode is known when the pixels are: until then it is said to be RGB.

Kind: pure.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image, ImageFile

FORMAT = "JXL"
CODESTREAM = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
# ISO/IEC 18181-1, SizeHeader: widths of a length's field by its selector; width over height by the ratio's number
LENGTH_BITS = (9, 13, 18, 30)
RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
HEADER_BYTES = 64  # more than size and first fields take
SEVERAL = 2  # frames of an animation, which its header does not count


@cache
def register() -> bool:
    """Let Pillow open JPEG XL; False where there is no decoder for it."""
    if find_spec("imagecodecs") is None:
        return False
    Image.register_open(FORMAT, JxlFile, lambda prefix: prefix.startswith((CODESTREAM, CONTAINER)))
    return True


class JxlFile(ImageFile.ImageFile):
    """An opened file; libjxl decodes it, upright already, when its pixels are asked for."""

    format = FORMAT
    format_description = "JPEG XL"

    def _open(self) -> None:
        self._coded = self.fp.read() if self.fp else b""
        bits = _Bits(_codestream(self._coded))
        height, width = _size(bits)
        turned, self.n_frames = _metadata(bits)
        self._size = (height, width) if turned else (width, height)
        self._mode = "RGB"

    def load(self) -> Any:
        if self._coded:
            import imagecodecs  # only where there is such a file

            pixels = imagecodecs.jpegxl_decode(self._coded, index=0, numthreads=1)
            if pixels.dtype.kind == "f":
                raise OSError("floating-point pixels")
            eight = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
            decoded = Image.fromarray(eight)
            if decoded.size != self._size:
                raise OSError("another size than its header says")
            self.im, self._mode, self._coded = decoded.im, decoded.mode, b""
        return Image.Image.load(self)


class _Bits:
    """Fields of a header, the lowest bit first."""

    def __init__(self, data: bytes) -> None:
        self._left = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        return value


def _codestream(data: bytes) -> bytes:
    """The first bytes behind the codestream's signature, which may lie in a box of a container."""
    at = 0 if data.startswith(CODESTREAM) else len(CONTAINER)
    while at and at + 8 <= len(data):
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            at += head + (4 if kind == b"jxlp" else 0)  # a part of it begins with its number
            break
        at += max(size, head) if size else len(data)
    if data[at : at + 2] != CODESTREAM:
        raise SyntaxError("no codestream")
    return data[at + 2 : at + 2 + HEADER_BYTES]


def _size(bits: _Bits) -> tuple[int, int]:
    """Height and width in pixels."""
    small = bits.take(1)
    height = _length(bits, small)
    ratio = bits.take(3)
    if not ratio:
        return height, _length(bits, small)
    over, under = RATIOS[ratio]
    return height, height * over // under


def _length(bits: _Bits, small: int) -> int:
    return 8 * (bits.take(5) + 1) if small else 1 + bits.take(LENGTH_BITS[bits.take(2)])


def _metadata(bits: _Bits) -> tuple[bool, int]:
    """Whether width and height change places for it to stand upright, and the number of frames."""
    if bits.take(1) or not bits.take(1):  # all is default; no fields beyond colour
        return False, 1
    turned = bits.take(3) >= 4  # orientation - 1, numbered as EXIF does
    if bits.take(1):
        _size(bits)  # the size it is meant to be shown at
    preview, animation = bits.take(1), bits.take(1)
    return turned, SEVERAL if animation and not preview else 1
