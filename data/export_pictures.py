"""The picture of a row as an export holds it: its very bytes, a link to its file, or what a trainer needs instead.

Kind: pure, but for files.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image

from sote.data import files, places
from sote.data.decode import BROKEN, ORIENTATION, UPRIGHT, Refused, open_picture
from sote.data.recipe import DecodePart

SUFFIXES = {"jpeg": "jpg", "tiff": "tif", "jpeg2000": "jp2"}  # others are called as their format
# What kohya's trainers look for (sd-scripts 48d368f, library/train_util.py, IMAGE_EXTENSIONS, without plugins)
KOHYA_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP")
OPAQUE = 255
ANY_PICTURE = DecodePart(min_pixels=1)  # stage decode has held it against the recipe's own rule

Row = dict[str, Any]


class LeftOut(Exception):
    """A picture that cannot be had any more. The message is a reason that can be counted."""


def read(row: Row) -> bytes:
    """The bytes of a row's picture, which are those that were curated. Raises LeftOut."""
    try:
        data = places.read(row["uri"], offset=row["offset"], bytes=row["bytes"])
    except FileNotFoundError:
        raise LeftOut("file vanished") from None
    except OSError as error:
        raise LeftOut(f"cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != row["id"]:
        raise LeftOut("file changed since it was looked at")
    return data


def suffix(row: Row) -> str:
    """The ending of a picture's name, without the dot, by its content."""
    return SUFFIXES.get(row["format"]) or str(row["format"])


def place(row: Row, folder: Path, *, for_kohya: bool) -> Path:
    """Put a row's picture into `folder` as `<id>.<ending>`: a symbolic link to a local file, else its bytes.

    kohya's trainers know few formats, ignore the EXIF orientation and drop transparency, so that what is hidden
    shows. `for_kohya`: a picture that they would not read, or would see otherwise, is written as a PNG of what was
    curated: upright, RGB, on white. Raises LeftOut.
    """
    local = Path(row["uri"]) if files.is_local(row["uri"]) else None
    if local is not None:
        _refuse_changed(local, row)
    data = None if local is not None else read(row)
    png = _for_kohya(local or data or b"") if for_kohya else None
    target = folder / f"{row['id']}.{suffix(row) if png is None else 'png'}"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # what a killed export left there: never write through a link
    if png is None and local is not None:
        target.symlink_to(local)
    else:
        target.write_bytes(png or data or b"")
    return target


def _refuse_changed(path: Path, row: Row) -> None:
    """A file that is linked is not read: its size must tell."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise LeftOut("file vanished") from None
    except OSError as error:
        raise LeftOut(f"cannot be read ({error.strerror})") from None
    if row["bytes"] is not None and size != row["bytes"]:
        raise LeftOut("file changed since it was looked at")


def _for_kohya(picture: Path | bytes) -> bytes | None:
    """A PNG in place of a picture that kohya's trainers would not read as it was curated; None for one they would."""
    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            if image.format in KOHYA_FORMATS and not _is_seen_otherwise(image):
                return None
        data = picture if isinstance(picture, bytes) else picture.read_bytes()
        made = io.BytesIO()
        open_picture(data, ANY_PICTURE).image.save(made, "PNG")
    except Refused as error:
        raise LeftOut(error.reason) from None
    except BROKEN as error:
        raise LeftOut(f"cannot be opened ({type(error).__name__})") from None
    return made.getvalue()


def _is_seen_otherwise(image: Image.Image) -> bool:
    """Whether `Image.open(...).convert("RGB")`, which is all that kohya does, is not what was curated."""
    asks_exif = image.format != "PNG" or "exif" in image.info  # of a PNG, Pillow would decode the pixels to find more
    if (asks_exif and image.getexif().get(ORIENTATION, 1) in UPRIGHT) or image.mode.startswith("I"):
        return True
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return image.convert("RGBA").getchannel("A").getextrema()[0] != OPAQUE
    return False
