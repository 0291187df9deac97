"""Tars read raw: where each member's bytes lie, told from the headers alone; nothing is unpacked.

Kind: pure, but for reading files.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO

from sote.data import files

BLOCK = 512  # POSIX.1-1988 (ustar): headers and data begin at multiples of it, two blocks of zeros are the end
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


class BrokenTar(ValueError):
    """A tar cannot be read from some place on. The message is a reason that can be counted."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar. `regular`: its bytes lie there in one piece (else it is a link or has holes)."""

    name: str
    offset: int
    size: int
    regular: bool


def members(file: IO[bytes], *, size: int | None = None) -> Iterator[Member]:
    """Every member but folders, in the tar's order. `size` is the tar's, asked of `file` itself if not given.

    Raises BrokenTar, after the members before the break: a member that is not whole is not among them.
    """
    if size is None:
        size = file.seek(0, 2)
    file.seek(0)
    if file.read(6).startswith(COMPRESSED):
        raise BrokenTar("a compressed tar is not read, unpack it")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            yield from _members(tar, file, size)
    except tarfile.ReadError as error:
        raise BrokenTar("tar is truncated" if "unexpected end" in str(error) else "not a tar") from error
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise error if isinstance(error, BrokenTar) else BrokenTar("tar has a broken header") from error


@lru_cache(maxsize=4)
def places(uri: str) -> dict[str, Member]:
    """The members of a tar by name (the last of a name), as far as it is whole; kept in this process for a few tars."""
    found: dict[str, Member] = {}
    with files.opened(uri) as file:
        try:
            for member in members(file):
                found[member.name] = member
        except BrokenTar:
            return found
    return found


def _members(tar: tarfile.TarFile, file: IO[bytes], size: int) -> Iterator[Member]:
    last = -1
    while (header := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # or it would hold all headers
        if header.offset <= last or header.size < 0:
            raise BrokenTar("tar has a broken header")
        last = header.offset
        whole = header.isreg() and not header.issparse()
        if whole and header.offset_data + header.size > size:
            raise BrokenTar("tar is truncated")
        if not header.isdir():
            yield Member(header.name, header.offset_data, header.size if whole else 0, whole)
    file.seek(tar.offset)
    end = file.read(BLOCK)
    if len(end) < BLOCK:  # tarfile takes the end of the file for the end of the tar, and a broken header too
        raise BrokenTar("tar is truncated")
    if end.strip(b"\0"):
        raise BrokenTar("tar has a broken header")
