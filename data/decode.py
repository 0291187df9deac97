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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sote.data import files, jxl, places
from sote.data.czkawka import gradient_hash
from sote.data.hashes import phash, pixel_id, thumb, thumb_deviation
from sote.data.inputs import WHITE, InputShapes, blank_inputs, model_inputs
from sote.data.recipe import DecodePart

# What Pillow is let open. Not among them: EPS (starts Ghostscript), and formats without a signature (TGA, ...).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")
# Pictures that Pillow cannot read by itself, by their signature: (offset, bytes) -> name.
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
READ_BYTES = 1 << 20
HEADER_BYTES = 1 << 26  # enough of a file to find its header in, but for a TIFF that has it at its end
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # I: Pillow's mode of 16-bit PGM
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")

CUT = ("truncated", "need_more_input")  # how Pillow, and libjxl, say that a file ends too early
NO_MEMORY = "not enough memory to decode it"

Data = bytes | memoryview
Pixels = NDArray[np.uint8]  # [height, width, 3]

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


def open_picture(data: Data, rule: DecodePart) -> Picture:
    """The picture in `data`; the caller has held its length against `rule.max_file_bytes`.

    Raises Refused: before any pixel is decoded where the header is enough to tell.
    """
    with _opened(data, rule) as (image, header):
        shown = _by_pillow(image)[0]
    return Picture(shown, header.format, header.mode, header.frames, shown.width, shown.height)


def opens(row: dict[str, Any]) -> bool:
    """Whether what an index row names has the header of a picture; no pixel is decoded."""
    try:
        data = places.read(row["uri"], offset=row["offset"], bytes=row["bytes"], limit=HEADER_BYTES)
        with _header_only(), Image.open(io.BytesIO(data), formats=_formats()) as image:
            return _header(image).width > 0
    except BROKEN:
        return False


def decode_row(row: dict[str, Any], *, rule: DecodePart, shapes: InputShapes) -> dict[str, Any]:
    """The decode columns of one index row, its model inputs, and `sound`: whether the models shall look at it.

    Inputs of a row that is not sound are zeros. A row that the index skipped gets only its `id`. Never raises for
    what a file holds or for a file that cannot be read.
    """
    data, found = read_row(row, rule=rule)
    if data is not None:
        found |= decode_data(data, row, rule=rule, shapes=shapes)
    return blank_inputs(shapes) | found


def read_row(row: dict[str, Any], *, rule: DecodePart) -> tuple[Data | None, dict[str, Any]]:
    """The bytes to decode, and all decode columns with `id` filled in; no bytes where the columns say why."""
    found = dict(UNKNOWN)
    try:
        data, found["id"] = _read(row, limit=0 if row["index_skip"] else rule.max_file_bytes)
    except OSError as error:
        return None, found | {"decode_error": f"decode: {_why_unread(error)}"}
    except MemoryError:
        return None, found | {"decode_error": "decode: not enough memory to read it"}
    if row["index_skip"]:
        return None, found
    if data is None:
        return None, found | {"decode_skip": f"decode: file of more than {rule.max_file_bytes} bytes"}
    return data, found


def decode_data(data: Data, row: dict[str, Any], *, rule: DecodePart, shapes: InputShapes) -> dict[str, Any]:
    """What a file's bytes add to the decode columns of its row, `sound`, and the model inputs if it is that."""
    known: dict[str, Any] = {}
    try:
        with _opened(data, rule) as (image, header):
            known = vars(header)
            shown, rgb, stored = _seen(image, data)
        return known | _fingerprints(shown, rgb, stored) | _inputs(rgb, row, shapes)
    except Refused as refused:
        known = {name: getattr(refused, name) for name in _HEADER}
        return known | {"decode_error" if refused.fault else "decode_skip": f"decode: {refused.reason}"}
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        return known | {"decode_error": f"decode: {NO_MEMORY}"}


def _fingerprints(shown: Image.Image, rgb: Pixels, stored: Pixels) -> dict[str, Any]:
    small = thumb(shown)
    return {
        "phash": phash(shown),
        "pixel_id": pixel_id(rgb),
        "thumb": small,
        "thumb_deviation": thumb_deviation(small),
        "czkawka": gradient_hash(stored),
    }


def _inputs(rgb: Pixels, row: dict[str, Any], shapes: InputShapes) -> dict[str, Any]:
    return {} if row["index_error"] else model_inputs(rgb, shapes) | {"sound": True}


_HEADER = ("format", "mode", "frames", "width", "height")
_HASHES = ("phash", "pixel_id", "thumb", "thumb_deviation", "czkawka")
_DECODED = ("id", *_HEADER, *_HASHES, "decode_skip", "decode_error")
UNKNOWN: Mapping[str, Any] = dict.fromkeys(_DECODED) | {"sound": False}  # a row's columns before anything is known


def _read(row: dict[str, Any], *, limit: int) -> tuple[Data | None, str]:
    """The file's bytes (None if there are more than `limit`) and their sha256."""
    uri, offset, size = row["uri"], row["offset"], row["bytes"]
    data = places.read(uri, offset=offset, bytes=size, limit=limit)
    if len(data) > limit:
        if uri.startswith((places.TAR, places.PARQUET)):
            return None, hashlib.sha256(places.read(uri, offset=offset, bytes=size)).hexdigest()
        digest = hashlib.sha256()
        with files.opened(uri) as file:  # a film, perhaps
            while part := file.read(READ_BYTES):
                digest.update(part)
        return None, digest.hexdigest()
    return data, hashlib.sha256(data).hexdigest()


def _why_unread(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "file vanished"
    if isinstance(error, PermissionError):
        return "no permission to read the file"
    return f"file could not be read ({errno.errorcode.get(error.errno or 0, type(error).__name__)})"


@contextmanager
def _opened(data: Data, rule: DecodePart) -> Iterator[tuple[Image.Image, Header]]:
    """A file that its header does not rule out; what its reader raises within comes out as Refused."""
    if not data:
        raise Refused("empty file", fault=True)
    header = None
    try:
        with _header_only():
            image = Image.open(io.BytesIO(data), formats=_formats())
            header = _header(image)
        _refuse_by_header(header, rule)
        with image:
            yield image, header
    except BROKEN as error:
        raise _refused(error, data, header) from error


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


def _formats() -> tuple[str, ...]:
    return (*FORMATS, jxl.FORMAT) if jxl.register() else FORMATS


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


def _seen(image: Image.Image, data: Data) -> tuple[Image.Image, Pixels, Pixels]:
    """An opened picture as `_by_pillow` gives it, with the pixels of what is shown, and of what the file holds."""
    if (rgb := _plain(image, data)) is not None:
        orientation = _orientation(image)
        shown = _upright(Image.fromarray(rgb), orientation)
        rgb = rgb if orientation == 1 else np.array(shown)
        return shown, rgb, rgb
    shown, stored = _by_pillow(image)
    rgb = np.array(shown)
    return shown, rgb, rgb if stored is shown else np.asarray(stored)[:, :, :3]


def _plain(image: Image.Image, data: Data) -> Pixels | None:
    """The pixels of a plain picture by the faster readers, which give Pillow's very bytes; None if Pillow must tell.

    Those readers are as strict as Pillow; what they refuse is Pillow's to explain, or rarely, to accept.
    """
    form = (image.format or "").lower()
    plain = form == "jpeg" or (form == "webp" and getattr(image, "n_frames", 1) == 1)
    if not plain or image.mode not in ("RGB", "L"):
        return None
    from sote.data import pixels  # loads torch

    try:
        rgb = pixels.decode(data, form)
    except RuntimeError:
        return None
    return rgb if rgb.shape[:2] == (image.height, image.width) else None


def _by_pillow(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """What a picture shows, in RGB; and what its file holds, where that has alpha (else the same)."""
    image.load()
    orientation = _orientation(image)
    shown, stored = _to_rgb(image)
    upright = _upright(shown, orientation)
    return upright, upright if stored is shown else _upright(stored, orientation)


def _to_rgb(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The colour rule: 16 bits keep their upper eight, what is transparent shows white, the rest as Pillow converts.

    With it the picture as RGBA, where it has alpha (else the same).
    """
    if image.mode in SIXTEEN_BIT:
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode in WITH_ALPHA or "transparency" in image.info:
        picture = image.convert("RGBA")
        ground = Image.new("RGB", image.size, WHITE)
        ground.paste(picture, mask=picture.getchannel("A"))
        return ground, picture
    shown = image.convert("RGB")
    return shown, shown


def _refused(error: BaseException, data: Data, header: Header | None) -> Refused:
    """What a reader raised, as one of a few reasons."""
    if isinstance(error, UnidentifiedImageError):
        for (offset, signature), name in UNREAD.items():
            read = name == "JPEG XL" and jxl.register()
            if data[offset : offset + len(signature)] == signature and not read:
                return Refused(f"{name} is not read", fault=False)
        return Refused("not a picture", fault=True)
    webp_bytes = int.from_bytes(data[4:8], "little") + 8 if data[:4] == b"RIFF" else 0  # RIFF header: size of the rest
    said = str(error).lower()
    if any(word in said for word in CUT) or isinstance(error, EOFError) or webp_bytes > len(data):
        return Refused("truncated", fault=True, header=header)
    if _is_of_memory(error):
        return Refused(NO_MEMORY, fault=True, header=header)
    return Refused(f"broken data ({type(error).__name__})", fault=True, header=header)


def _is_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch and the libraries behind Pillow say so in words."""
    return isinstance(error, MemoryError) or "memory" in str(error).lower()
