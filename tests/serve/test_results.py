"""Pictures by address: names, time, traversal, a full disk."""

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from sote.cluster.errors import DiskFull, RunFailed
from sote.serve import disk
from sote.serve.pictures import Painted
from sote.serve.results import Results, content_type


class Clock:
    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


def painted(data: bytes = b"a picture") -> Painted:
    return Painted(data, "png", 256, 384, 7, "1girl", np.zeros((16, 6, 9), np.float32))


def test_a_picture_is_had_by_its_name_until_its_time_is_over(tmp_path: Path) -> None:
    clock = Clock()
    results = Results(tmp_path / "results", 10, now=clock)
    name = results.keep(painted())
    assert len(name) == 36
    assert content_type(name) == "image/png"
    clock.time += 9
    assert results.read(name) == b"a picture"
    assert results.seconds_left(name) == 1
    clock.time += 1
    assert results.path(name) is None
    assert results.read(name) is None
    assert results.sweep() == 1
    assert list((tmp_path / "results").iterdir()) == []


def test_a_sweep_leaves_what_is_still_kept_and_takes_half_written_files(tmp_path: Path) -> None:
    clock = Clock()
    results = Results(tmp_path, 10, now=clock)
    half = tmp_path / ".half.png.1.tmp"
    half.write_bytes(b"ha")
    os.utime(half, (clock.time, clock.time))
    clock.time += 5
    name = results.keep(painted())
    clock.time += 5
    assert results.sweep() == 1
    assert results.read(name) == b"a picture"


def test_two_pictures_never_share_a_name_and_are_private(tmp_path: Path) -> None:
    results = Results(tmp_path, 10)
    names = {results.keep(painted()) for _ in range(20)}
    assert len(names) == 20
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names} == {0o600}


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "..%2fsecret.png",
        "/etc/passwd",
        "",
        ".",
        "0" * 32,
        "0" * 32 + ".txt",
        "0" * 32 + ".png\n",
        "A" * 32 + ".png",
        "٣" * 32 + ".png",
        "0" * 32 + ".png/../../secret.png",
        "0" * 32 + ".png\0",
    ],
)
def test_a_name_that_is_none_reaches_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    results = Results(tmp_path / "results", 10)
    results.keep(painted())
    assert results.path(name) is None
    assert results.read(name) is None
    results.remove([name])
    assert (tmp_path / "secret.png").exists()


def test_removed_pictures_and_a_missing_folder_are_no_trouble(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", 10)
    assert results.sweep() == 0
    name = results.keep(painted())
    results.remove([name, name])
    assert results.read(name) is None


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    def fill() -> None:
        with disk.in_words("the picture"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskFull, match=r"disk is full: the picture cannot be kept; ask for data URIs"):
        fill()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_write_that_finds_no_room_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_a_full_disk(path: Path, data: bytes) -> int:
        with Path("/dev/full").open("wb", buffering=0) as file:
            return file.write(data)

    monkeypatch.setattr(Path, "write_bytes", to_a_full_disk)
    with pytest.raises(DiskFull):
        Results(tmp_path, 10).keep(painted())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(RunFailed, match=r"the picture cannot be kept: "):
        Results(tmp_path / "results", 10).keep(painted())
