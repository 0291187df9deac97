"""Tars from their headers."""

import gzip
import io
import tarfile

import pytest

from sote.data import tars
from sote.data.tars import BrokenTar

LONG = "deep/" * 40 + "a.jpg"  # longer than a header's 100 + 155 letters


def made(names: list[str], *, form: int = tarfile.PAX_FORMAT, size: int = 700) -> bytes:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w", format=form) as file:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = size
            file.addfile(info, io.BytesIO(bytes([number]) * size))
    return into.getvalue()


def read(data: bytes) -> tuple[list[tuple[str, bytes]], str | None]:
    """Names and bytes of the members before the break, and why it breaks off."""
    found: list[tuple[str, bytes]] = []
    try:
        for member in tars.members(io.BytesIO(data)):
            found.append((member.name, data[member.offset : member.offset + member.size]))
    except BrokenTar as error:
        return found, str(error)
    return found, None


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_lie_where_they_are_said_to(form: int) -> None:
    names = ["a.jpg", LONG, "ü.jpg"]
    found, broken = read(made(names, form=form))
    assert found == [(name, bytes([number]) * 700) for number, name in enumerate(names)]
    assert broken is None


def test_folders_are_no_members_and_links_are_not_regular() -> None:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w") as file:
        for name, kind in (("deep", tarfile.DIRTYPE), ("a", tarfile.LNKTYPE), ("b", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "deep"
            file.addfile(info)
    found = list(tars.members(io.BytesIO(into.getvalue())))
    assert [(member.name, member.regular) for member in found] == [("a", False), ("b", False)]


# Each member takes 512 bytes of header and 1024 of data (700 and zeros): the second begins at 1536.
@pytest.mark.parametrize(
    ("cut", "whole"),
    [(3072, 2), (2760, 2), (2700, 1), (2100, 1), (2048, 1), (1800, 1), (1536, 1), (1000, 0), (512, 0), (100, 0)],
)
def test_a_truncated_tar_gives_what_is_whole_and_says_so(cut: int, whole: int) -> None:
    found, broken = read(made(["a", "b"])[:cut])
    assert [name for name, _ in found] == ["a", "b"][:whole]
    assert broken in ("tar is truncated", "not a tar")
    assert (broken == "not a tar") == (cut < 512)


def test_a_broken_header_in_the_midst_does_not_pass_for_the_end() -> None:
    data = bytearray(made(["a", "b", "c"]))
    data[1536 + 10] ^= 255
    assert read(bytes(data)) == ([("a", b"\0" * 700)], "tar has a broken header")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a tar"),
        (b"text " * 1000, "not a tar"),
        (gzip.compress(made(["a"]), mtime=0), "a compressed tar is not read, unpack it"),
    ],
)
def test_what_is_no_tar_is_told(data: bytes, reason: str) -> None:
    assert read(data) == ([], reason)


def test_a_size_below_zero_does_not_go_round_for_ever() -> None:
    data = bytearray(made(["a", "b"]))
    data[124:136] = (-1024).to_bytes(12, "big", signed=True)  # base-256 sizes can be negative
    header = data[:148] + b" " * 8 + data[156:512]
    data[148:156] = f"{sum(header):06o}\0 ".encode()
    assert read(bytes(data)) == ([], "tar has a broken header")
