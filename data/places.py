"""What a row's uri names, and its bytes, wherever it lies.

    /pictures/a.jpg                         a local file, by its absolute path
    s3://bucket/a.jpg                       a file that fsspec reaches (gs, http, memory, ...)
    tar://deep/a.jpg::/shards/00000.tar     a member of a tar; in its name `%` and `:` are written %25 and %3A
    parquet://17::/shards/00000.parquet     the image cell of one row, counted from 0

Kind: pure, but for reading files.
"""

import errno
from pathlib import PurePosixPath
from urllib.parse import unquote

from sote.data import files, tars

TAR, PARQUET, WITHIN = "tar://", "parquet://", "::"


def in_tar(member: str, tar: str) -> str:
    """The uri of a tar's member."""
    return f"{TAR}{member.replace('%', '%25').replace(':', '%3A')}{WITHIN}{tar}"


def in_parquet(row: int, file: str) -> str:
    """The uri of the picture in one row of a Parquet file."""
    return f"{PARQUET}{row}{WITHIN}{file}"


def name(uri: str) -> str:
    """The file's own name, for its suffix, its stem and for people; of a Parquet row `<file's stem>-<row>`."""
    if uri.startswith(TAR):
        return PurePosixPath(_member(uri)[0]).name
    if uri.startswith(PARQUET):
        row, _, file = uri.removeprefix(PARQUET).partition(WITHIN)
        return f"{PurePosixPath(file).stem}-{row}"
    last = uri.rstrip("/").rpartition("/")[2]
    return unquote(last) if uri.startswith(("http://", "https://")) else last


def read(
    uri: str,
    *,
    offset: int | None,
    bytes: int | None,
    limit: int | None = None,
) -> bytes:
    """The bytes that `uri` names, all or the first `limit` + 1. `offset` and `bytes` are the row's columns.

    Without them a tar's headers are read first, once in a process. Raises OSError as open() does: FileNotFoundError,
    PermissionError, ...; and SourceError for a protocol that cannot be had.
    """
    length = None if limit is None else limit + 1
    if uri.startswith(TAR):
        return _read_member(uri, offset, bytes, length)
    if uri.startswith(PARQUET):
        return _read_cell(uri, offset)[:length]
    return files.read(uri, length=length)


def _read_member(uri: str, offset: int | None, size: int | None, length: int | None) -> bytes:
    member, tar = _member(uri)
    if offset is None or size is None:
        place = tars.places(tar).get(member)
        if place is None or not place.regular:
            raise FileNotFoundError(errno.ENOENT, "no such file in the tar", uri)
        offset, size = place.offset, place.size
    wanted = size if length is None else min(size, length)
    data = files.read(tar, start=offset, length=wanted)
    if len(data) < wanted:
        raise OSError(errno.EIO, "the tar has become shorter", uri)
    return data


def _read_cell(uri: str, row: int | None) -> bytes:
    from sote.data import cells  # pyarrow: only where a row lies in Parquet

    number, _, file = uri.removeprefix(PARQUET).partition(WITHIN)
    if row is None:
        if not number.isdecimal():
            raise FileNotFoundError(errno.ENOENT, "a Parquet uri is parquet://<row>::<file>", uri)
        row = int(number)
    return cells.read(file, row)


def _member(uri: str) -> tuple[str, str]:
    """Name of the member as the tar has it, and the tar."""
    member, _, tar = uri.removeprefix(TAR).partition(WITHIN)
    return member.replace("%3A", ":").replace("%25", "%"), tar
