"""Tars of pictures."""

import io
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sote.cluster.errors import SourceError
from sote.data import index_tar, places
from sote.data.recipe import Source


def tar(path: Path, **members: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def rows(path: Path | str, **more: Any) -> list[dict[str, Any]]:
    source = Source(name="mine", path=str(path), form="webdataset", **more)
    found = list(index_tar.rows(source))
    assert index_tar.count(source) == len(found)
    return found


def test_a_member_is_a_row_that_says_where_its_bytes_lie(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", **{"a.jpg": b"1234", "a.json": b'{"date": "2012-01-01"}', "a.txt": b"x, y"})
    (row,) = rows(path)
    assert row["uri"] == f"tar://a.jpg::{path}"
    assert (row["offset"], row["bytes"], row["shared_stem"]) == (512, 4, False)
    assert (row["post_date"], row["post_tags"]) == ("2012-01-01", ("x", "y"))
    assert places.read(row["uri"], offset=row["offset"], bytes=row["bytes"]) == b"1234"


def test_members_of_one_key_share_its_sidecars_wherever_those_stand(tmp_path: Path) -> None:
    members = {"d/a.txt": b"t", "d/a.one.png": b"", "e/a.png": b"", "d/a.two.png": b"", "d/a.two.txt": b"u"}
    found = rows(tar(tmp_path / "0.tar", **members))
    assert [places.name(row["uri"]) for row in found] == ["a.one.png", "a.png", "a.two.png"]
    assert [row["post_tags"] for row in found] == [("t",), (), ("u",)]
    assert [row["shared_stem"] for row in found] == [True, False, True]


def test_hidden_members_are_none_and_others_are_rows_with_their_reason(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", **{"./a.jpg": b"", "x/.b.jpg": b"", "__cls": b"1", "b.jpg": b"", "b.json": b"{"})
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "b.jpg"
        file.addfile(link)
    found = [(row["uri"].partition("::")[0], row.get("index_skip") or row.get("index_error")) for row in rows(path)]
    assert found == [
        ("tar://./a.jpg", None),
        ("tar://__cls", "index: not a picture file (no extension)"),
        ("tar://b.jpg", "index: sidecar is not valid JSON"),
        ("tar://c.jpg", "index: a link or a sparse file in a tar"),
    ]


def test_a_name_that_is_not_utf_8_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        file.addfile(tarfile.TarInfo("\udcff.jpg"))
    (row,) = rows(path)
    assert (row["uri"], row["index_error"]) == (f"tar://\ufffd.jpg::{path}", "index: file name is not UTF-8")


def test_a_truncated_tar_keeps_what_is_whole_and_is_a_row_itself(tmp_path: Path) -> None:
    whole = tar(tmp_path / "0.tar", **{"a.jpg": b"1", "a.txt": b"x", "b.jpg": b"2", "c.jpg": b"3"}).read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: 3 * 1024 + 100])
    tar(tmp_path / "1.tar", **{"d.jpg": b"4"})
    found = rows(tmp_path)
    assert [places.name(row["uri"]) for row in found] == ["a.jpg", "b.jpg", "0.tar", "d.jpg"]
    assert found[0]["post_tags"] == ("x",)
    assert found[2] == {
        "uri": f"{tmp_path}/0.tar",
        "source": "mine",
        "bytes": 3 * 1024 + 100,
        "index_error": "index: tar is truncated",
    }


def test_years_come_from_folders_in_the_tar_then_its_name_then_those_above(tmp_path: Path) -> None:
    tar(tmp_path / "2001" / "0.tar", **{"2011/x/a.jpg": b"", "b.jpg": b""})
    tar(tmp_path / "2001" / "2009-0001.tar", **{"c.jpg": b""})
    assert [row["post_date"] for row in rows(tmp_path, date=("folder",))] == ["2011", "2001", "2009"]


def test_tars_elsewhere_are_read_too(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", **{"a.jpg": b"1234", "a.txt": b"x"})
    memory = fsspec.filesystem("memory")
    memory.pipe("/tars/0.tar", path.read_bytes())
    for pattern in ("memory://tars", "memory://tars/*.tar", "memory://tars/{0..0}.tar"):
        (row,) = rows(pattern)
        assert row["post_tags"] == ("x",)
        assert places.read(row["uri"], offset=row["offset"], bytes=row["bytes"]) == b"1234"
    memory.rm("/tars", recursive=True)


def test_a_tar_that_cannot_be_read_at_all_ends_the_index(tmp_path: Path) -> None:
    (tmp_path / "0.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(SourceError, match=r"0\.tar cannot be read \(No such file or directory\); mend it"):
        rows(tmp_path)
