"""Sources -> rows: every file that lies there, with what its sidecar knows. Pictures are not opened here.

Reads: the sources' folders. Writes: the columns of stage `index`.

Kind: pure, but for reading folders and sidecars.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from sote.cluster.errors import SourceError
from sote.data import sidecars
from sote.data.recipe import Source
from sote.data.schema import written_by

# What lies beside pictures and belongs to them (facts: on-disk conventions of gallery-dl, kohya, Hugging Face).
SIDECAR_SUFFIXES = {".json", ".jsonl", ".txt", ".caption"}
# Names that pictures have. Whether one is a picture is told by its content, in stage decode; HEIC and JPEG XL are
# pictures too, and refused there by name.
PICTURE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".heic", ".heif", ".jxl"),
}

Entry = os.DirEntry[str]


def tables(sources: Sequence[Source], *, shard_rows: int) -> Iterator[pa.Table]:
    """One table for each shard, `shard_rows` rows each (the last may be shorter), in the order of sources and paths.

    Every regular file is a row, but for hidden ones and sidecars. Raises SourceError, before the first table, for a
    source that is no folder, cannot be read, or has no file in it; and on the way for a folder that is closed to us.
    """
    for source in sources:
        check(source)
    rows = (row for source in sources for row in _rows(source))
    schema = written_by("index")
    while shard := list(islice(rows, shard_rows)):
        numbered = [{**row, "row": number} for number, row in enumerate(shard)]
        yield pa.Table.from_pylist(numbered, schema=schema)


def check(source: Source) -> None:
    """Raise SourceError in one line for a source that is no folder, cannot be read, or has no file in it."""
    folder = Path(source.path)
    if not folder.exists():
        raise SourceError(f"source {source.name}: no such folder: {source.path}")
    if not folder.is_dir():
        raise SourceError(f"source {source.name}: {source.path} is a file, path must name the folder that it lies in")
    if next(files(source), None) is None:
        raise SourceError(f"source {source.name}: no file in {source.path}, path must name a folder with pictures")


def files(source: Source) -> Iterator[Entry]:
    """Every file of a source that becomes a row, in the order of their paths."""
    return _files(source, Path(source.path).absolute())


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    for entry in files(source):
        yield _row(source, entry)


def _files(source: Source, folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Entry]:
    """The files below `folder` in the order of their paths; memory holds one folder's names at each depth.

    Links are followed, but not to a folder that lies above (`above`: device and inode of those).
    """
    try:
        here = folder.stat()
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"source {source.name}: {folder} cannot be read ({error.strerror})") from None
    if (here.st_dev, here.st_ino) in above:
        return
    for entry in entries:
        if _is_folder(entry):
            yield from _files(source, Path(entry.path), above | {(here.st_dev, here.st_ino)})
        elif _is_file(entry) and Path(entry.name).suffix.lower() not in SIDECAR_SUFFIXES:
            yield entry


def _is_folder(entry: Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: Entry) -> bool:
    """Whether it is a regular file, or a link that leads nowhere: of that, stage decode says what is wrong."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True


def _row(source: Source, entry: Entry) -> dict[str, Any]:
    path, suffix = Path(entry.path), Path(entry.name).suffix.lower()
    row: dict[str, Any] = {"uri": _text(entry.path), "source": source.name, "bytes": _size(entry)}
    if row["uri"] != entry.path:
        return row | {"index_error": "index: file name is not UTF-8"}
    if suffix not in PICTURE_SUFFIXES:
        return row | {"index_skip": f"index: not a picture file ({suffix or 'no extension'})"}
    try:
        sidecar = sidecars.read(path) or sidecars.Sidecar()
    except sidecars.BrokenSidecar as error:
        return row | {"index_error": f"index: {error}"}
    known = {f"post_{name}": getattr(sidecar, name) for name in ("date", "characters", "series")}
    known["artist"] = sidecar.artist
    if source.kind == "visual novel":
        known |= {"title": sidecar.title or source.title, "short_title": sidecar.short_title or source.short_title}
    return row | known


def _text(name: str) -> str:
    """A file name as text that can be stored: what is not UTF-8 in it becomes U+FFFD."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def _size(entry: Entry) -> int | None:
    """Size in bytes; None for a file that is gone since its folder was read."""
    try:
        return entry.stat().st_size
    except OSError:
        return None
