"""Folders and what lies beside pictures."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sote.cluster.errors import SourceError
from sote.data import index_folder
from sote.data.recipe import Source


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def rows(folder: Path | str, **more: Any) -> list[dict[str, Any]]:
    return list(index_folder.rows(Source(name="mine", path=str(folder), **more)))


def tags(folder: Path | str) -> dict[str, tuple[str, ...]]:
    found = rows(folder)
    return {row["uri"].removeprefix(f"{folder}/"): row["post_tags"] for row in found}


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    for name in filesystem.ls("/", detail=False):
        filesystem.rm(name, recursive=True)


def test_two_pictures_of_one_stem_share_its_sidecar_and_are_flagged(tmp_path: Path) -> None:
    write(tmp_path, **{"a.jpg": "", "a.png": "", "a.txt": "x, y", "a.json": {"date": "2012-01-01"}, "b.jpg": ""})
    found = rows(tmp_path)
    assert [row["shared_stem"] for row in found] == [True, True, False]
    assert [row["post_tags"] for row in found] == [("x", "y"), ("x", "y"), ()]
    assert [row["post_date"] for row in found] == ["2012-01-01", "2012-01-01", None]


def test_of_one_stem_a_picture_with_a_sidecar_of_its_own_leaves_the_stems_to_the_other(tmp_path: Path) -> None:
    write(tmp_path, **{"a.jpg": "", "a.png": "", "a.json": {"tags": ["j"]}, "a.png.json": {"tags": ["p"]}})
    assert tags(tmp_path) == {"a.jpg": ("j",), "a.png": ("p",)}


def test_one_stem_in_two_folders_or_with_a_film_is_not_shared(tmp_path: Path) -> None:
    write(tmp_path, **{"x/a.jpg": "", "y/a.jpg": "", "a.jpg": "", "a.mp4": ""})
    assert [row.get("shared_stem") for row in rows(tmp_path)] == [False, None, False, False]


def test_a_meta_file_speaks_of_its_folder_and_those_below_the_nearest_first(tmp_path: Path) -> None:
    root = {"a": {"tags": "x"}, "in/b": {"tags": "y", "caption": "far"}, "in/c.jpg": {"tags": "z"}}
    write(tmp_path, **{"meta.json": root, "a.jpg": "", "in/b.jpg": "", "in/c.jpg": "", "in/d.jpg": ""})
    write(tmp_path, **{"in/metadata.jsonl": {"file_name": "b.jpg", "text": "near", "date": "2012"}})
    assert tags(tmp_path) == {"a.jpg": ("x",), "in/b.jpg": ("near", "y", "far"), "in/c.jpg": ("z",), "in/d.jpg": ()}


def test_records_of_no_picture_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, **{"meta.json": {"a": {"tags": "x"}, "b": {"tags": ""}}, "a.jpg": ""})
    with caplog.at_level(logging.WARNING):
        rows(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"records of no picture source=mine file={tmp_path}/meta.json records=1"
    ]


def test_json_that_belongs_to_a_file_or_to_a_picture_that_is_gone_is_no_meta_file(tmp_path: Path) -> None:
    broken = dict.fromkeys(("a.json", "b.jpg.json", "film.mp4.json", "film.json", "gone.png.json"), "{")
    write(tmp_path, **broken, **{"a.jpg": "", "b.jpg": "", "film.mp4": ""})
    assert [row.get("index_error") for row in rows(tmp_path)] == ["index: sidecar is not valid JSON"] * 2 + [None]


@pytest.mark.parametrize("name", ["meta.json", "deep/meta.jsonl", "metadata.csv"])
def test_a_broken_meta_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, **{"a.jpg": "", "deep/b.jpg": "", name: b'{"a": \xff'})
    with pytest.raises(SourceError) as caught:
        rows(tmp_path)
    assert str(caught.value).startswith(f"source mine: {tmp_path}/{name} is not ")
    assert str(caught.value).endswith(", mend it or take it away")


def test_a_folder_called_by_a_year_dates_what_lies_below(tmp_path: Path) -> None:
    names = ["2011/a.jpg", "2011/deep/b.jpg", "2011/2019-05/c.jpg", "other/d.jpg"]
    write(tmp_path / "2001", **dict.fromkeys(names, ""))
    dated = [row["post_date"] for row in rows(tmp_path / "2001", date=("folder",))]
    assert dated == ["2019", "2011", "2011", "2001"]
    assert {row["post_date"] for row in rows(tmp_path / "2001" / "other", date=("folder",))} == {None}


def test_a_source_elsewhere_is_listed_as_one_here(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    files = {"a.jpg": "xx", "2012/b.png": "", "a.txt": "x, y", "2012/b.png.json": {"tags": ["z"]}, "c.mp4": ""}
    write(tmp_path, **files, **{".hidden.jpg": "", "meta.json": {"a": {"tags": "m"}}})
    memory.put(f"{tmp_path}/", "/pictures", recursive=True)
    here, there = (rows(place, date=("folder",)) for place in (tmp_path, "memory://pictures/"))
    for row in here:
        row["uri"] = row["uri"].replace(str(tmp_path), "memory://pictures")
    assert here == there
    assert [row["uri"] for row in there] == [f"memory://pictures/{name}" for name in ("2012/b.png", "a.jpg", "c.mp4")]
    assert there[1]["post_tags"] == ("m", "x", "y")


def test_more_files_than_are_asked_for_at_once_keep_their_order(tmp_path: Path) -> None:
    count = index_folder.AT_ONCE * 2 + 3
    write(tmp_path, **{f"{number:04}.jpg": "" for number in range(count)}, **{"0001/x.jpg": "", "0300.txt": "t"})
    found = [row["uri"].removeprefix(f"{tmp_path}/") for row in rows(tmp_path)]
    assert found == sorted(found, key=lambda name: name.split("/"))
    assert len(found) == count + 1 == index_folder.count(Source(name="mine", path=str(tmp_path)))
    assert rows(tmp_path)[301]["post_tags"] == ("t",)
