"""One row of the index: what every kind of source says in the same way.

Kind: pure.
"""

import re
from collections.abc import Iterable
from typing import Any

from sote.data.recipe import Source
from sote.data.sidecar_facts import YEARS, Sidecar

# Names that pictures have. Whether one is a picture is told by its content, in stage decode; HEIC and JPEG XL are
# pictures too, and refused there by name.
PICTURE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".heic", ".heif", ".jxl"),
}
# `2019`, `2019-05`, `2019 summer`; but for a range of two years or numbers, as in `2000-2999`
_YEAR = re.compile(r"([0-9]{4})(?![0-9A-Za-z])(?:[-_. ~]([0-9]{4})(?![0-9]))?")

Row = dict[str, Any]


def blank(source: Source, uri: str, *, size: int | None) -> Row:
    """The row of a file of which no more is known yet. A name that is not UTF-8 is an error of its row."""
    stored = fit(uri)
    row: Row = {"uri": stored, "source": source.name, "bytes": size}
    return row if stored == uri else row | {"index_error": "index: file name is not UTF-8"}


def not_a_picture(row: Row, name: str) -> Row:
    """The row of a file that no picture's name has."""
    return row | {"index_skip": f"index: not a picture file ({suffix(name) or 'no extension'})"}


def described(row: Row, source: Source, sidecar: Sidecar, *, year: str | None) -> Row:
    """The row of a picture with what is known of it. `year` is what the folders above it say."""
    dates = {"sidecar": sidecar.date, "folder": year}
    known = {
        "post_date": next((dates[rule] for rule in source.date if dates[rule]), None),
        "post_characters": sidecar.characters,
        "post_series": sidecar.series,
        "post_tags": sidecar.tags,
        "artist": sidecar.artist,
    }
    if source.kind == "visual novel":
        known |= {"title": sidecar.title or source.title, "short_title": sidecar.short_title or source.short_title}
    return row | known


def suffix(name: str) -> str:
    """The ending of a name or path with its dot, in small letters; empty if there is none."""
    base = name.rpartition("/")[2]
    dot = base.rfind(".")
    return base[dot:].lower() if 0 < dot < len(base) - 1 else ""


def is_picture(name: str) -> bool:
    """Whether a name is one that pictures have."""
    return suffix(name) in PICTURE_SUFFIXES


def year_in(names: Iterable[str]) -> str | None:
    """The year that the first of these names begins with that begins with one."""
    for name in names:
        found = _YEAR.match(name)
        if found and int(found[1]) in YEARS and not (found[2] and int(found[2]) > int(found[1])):
            return found[1]
    return None


def fit(name: str) -> str:
    """A file name as text that can be stored: what is not UTF-8 in it becomes U+FFFD."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
