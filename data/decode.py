"""File -> picture: the header first, then the pixels, strictly, under one colour rule; and what tells pictures apart.

A file that cannot be used is refused with a reason that can be counted. Nothing that a file holds raises out of
`decode_row`.

Reads: uri, index_skip, index_error. Writes: the columns of stage `decode` (all but `row`) and the models' inputs.

Kind: pure, but for reading the file.
"""

import errno
import hashlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from PIL import Image, UnidentifiedImageError

from sote.data.inputs import WHITE, InputShapes, blank_inputs, model_inputs
from sote.data.recipe import DecodePart

# What Pillow is let open. Not among them: EPS (starts Ghostscript), and formats without a signature (TGA, ...).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")
# Pictures that Pillow cannot read, by their signature: (offset, bytes) -> name.
UNREAD = {
    (4, b"ftypheic"): "HEIC",
    (4, b"ftypheix"): "HEIC",
    (4, b"ftypmif1"): "HEIC",
    (0, b"\xff\x0a"): "JPEG XL",
    (0, b"\0\0\0\x0cJXL "): "JPEG XL",
}
# Everything that Pillow's readers were seen to raise, or can raise, on broken files.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
UPRIGHT = {  # EXIF orientation (tag 0x0112, EXIF 2.32 section 4.6.4 A) -> what turns it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # I: Pillow's mode of 16-bit PGM
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")

HASH_SIDE = 16  # 16 x 16 = 256 bits
HASH_PICTURE_SIDE = 64  # imagehash.phash: hash side x 4
THUMB_SIDE = 16

_opening = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What is known of a picture before its pixels are decoded. `width` and `height` after EXIF orientation."""

    format: str
    mode: str
    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class Picture:
    """An opened picture: RGB, upright, on white. `mode` is the file's; `frames` counts an animation's."""

    image: Image.Image
    format: str
    mode: str
    frames: int
    width: int
    height: int


class Refused(Exception):
    """A file that is not used. `fault`: the file is broken (else it is sound, and a rule keeps it out)."""

    def __init__(self, reason: str, *, fault: bool, header: Header | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fault = fault
        self.format = header.format if header else None
        self.mode = header.mode if header else None
        self.frames = header.frames if header else None
        self.width = header.width if header else None
        self.height = header.height if header else None


def open_picture(data: bytes, rule: DecodePart) -> Picture:
    """The picture in `data`; the caller has held its length against `rule.max_file_bytes`.

    Raises Refused: before any pixel is decoded where the header is enough to tell.
    """
    if not data:
        raise Refused("empty file", fault=True)
    header = None
    try:
        with _header_only():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            header = _header(image)
        _refuse_by_header(header, rule)
        with image:
            image.load()
            upright = _upright(_to_rgb(image), _orientation(image))
    except BROKEN as error:
        raise _refused(error, data, header) from error
    return Picture(upright, header.format, header.mode, header.frames, upright.width, upright.height)


def opens(path: Path) -> bool:
    """Whether the header of a file is a picture's; no pixel is decoded."""
    try:
        with _header_only(), Image.open(path, formats=FORMATS) as image:
            return _header(image).width > 0
    except BROKEN:
        return False


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


def pixel_id(image: Image.Image) -> str:
    """sha256 over size and pixels of an RGB picture, 64 hex digits: equal for equal pictures in any lossless file."""
    digest = hashlib.sha256(f"{image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def decode_row(row: dict[str, Any], *, rule: DecodePart, shapes: InputShapes) -> dict[str, Any]:
    """The decode columns of one index row, its model inputs, and `sound`: whether the models shall look at it.

    Inputs of a row that is not sound are zeros. A row that the index skipped gets only its `id`. Never raises for
    what a file holds or for a file that cannot be read.
    """
    found: dict[str, Any] = dict.fromkeys(_DECODED) | blank_inputs(shapes) | {"sound": False}
    try:
        data, found["id"] = _read(Path(row["uri"]), limit=0 if row["index_skip"] else rule.max_file_bytes)
    except OSError as error:
        return found | {"decode_error": f"decode: {_why_unread(error)}"}
    if row["index_skip"]:
        return found
    if data is None:
        return found | {"decode_skip": f"decode: file of more than {rule.max_file_bytes} bytes"}
    try:
        picture = open_picture(data, rule)
    except Refused as refused:
        known = {name: getattr(refused, name) for name in _HEADER}
        return found | known | {"decode_error" if refused.fault else "decode_skip": f"decode: {refused.reason}"}
    found |= {name: getattr(picture, name) for name in _HEADER}
    image = picture.image
    found |= {"phash": phash(image), "thumb": thumb(image), "pixel_id": pixel_id(image)}
    return found if row["index_error"] else found | model_inputs(image, shapes) | {"sound": True}


_HEADER = ("format", "mode", "frames", "width", "height")
_DECODED = ("id", *_HEADER, "phash", "pixel_id", "thumb", "decode_skip", "decode_error")


def _read(path: Path, *, limit: int) -> tuple[bytes | None, str]:
    """The file's bytes (None if there are more than `limit`) and their sha256."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
        if len(data) <= limit:
            return data, hashlib.sha256(data).hexdigest()
        file.seek(0)
        return None, hashlib.file_digest(file, "sha256").hexdigest()


def _why_unread(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "file vanished"
    if isinstance(error, PermissionError):
        return "no permission to read the file"
    return f"file could not be read ({errno.errorcode.get(error.errno or 0, type(error).__name__)})"


@contextmanager
def _header_only() -> Iterator[None]:
    """Keep Pillow from judging the size by itself while a header is read: the recipe's rule does that.

    Pillow's limit is a global of its module, so that only one thread at a time may have it off.
    """
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _header(image: Image.Image) -> Header:
    form = (image.format or "").lower()
    width, height = image.size
    if _orientation(image) >= 5:  # 5..8 lie on their side
        width, height = height, width
    # MPO is JPEG with more pictures behind the first, as many cameras write it
    return Header("jpeg" if form == "mpo" else form, image.mode, getattr(image, "n_frames", 1), width, height)


def _refuse_by_header(header: Header, rule: DecodePart) -> None:
    pixels = header.width * header.height
    if pixels > rule.max_pixels:
        raise Refused(f"header says more than {rule.max_pixels} pixels", fault=True, header=header)
    if pixels < rule.min_pixels:
        raise Refused(f"fewer than {rule.min_pixels} pixels", fault=False, header=header)
    if header.mode == "F":
        raise Refused("floating-point pixels are not read", fault=False, header=header)


def _orientation(image: Image.Image) -> int:
    """1..8; 1 (upright) where the EXIF data is broken, which does not make a picture unusable.

    PNG is asked only for what it has read already, since Pillow would decode the pixels to find more. TIFF is turned
    by Pillow itself.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return 1
    return value if value in UPRIGHT else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    """The colour rule: 16 bits keep their upper eight, what is transparent shows white, the rest as Pillow converts."""
    if image.mode in SIXTEEN_BIT:
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        picture = image.convert("RGBA")
        ground = Image.new("RGB", image.size, WHITE)
        ground.paste(picture, mask=picture.getchannel("A"))
        return ground
    return image.convert("RGB")


def _refused(error: BaseException, data: bytes, header: Header | None) -> Refused:
    """What a reader raised, as one of a few reasons."""
    if isinstance(error, UnidentifiedImageError):
        for (offset, signature), name in UNREAD.items():
            if data.startswith(signature, offset):
                return Refused(f"{name} is not read", fault=False)
        return Refused("not a picture", fault=True)
    webp_bytes = int.from_bytes(data[4:8], "little") + 8 if data[:4] == b"RIFF" else 0  # RIFF header: size of the rest
    if "truncated" in str(error).lower() or isinstance(error, EOFError) or webp_bytes > len(data):
        return Refused("truncated", fault=True, header=header)
    if isinstance(error, MemoryError):
        return Refused("not enough memory to decode it", fault=True, header=header)
    return Refused(f"broken data ({type(error).__name__})", fault=True, header=header)
