"""Which files a source of tars names."""

import os
from pathlib import Path
from typing import Any

import pytest

from sote.cluster.errors import SourceError
from sote.data import index_files
from sote.data.recipe import Source


def found(folder: Path, pattern: str) -> list[tuple[str, bool, str | None]]:
    source = Source(name="x", path=str(folder / pattern), form="webdataset")
    return [(os.path.relpath(file.uri, folder), file.wanted, file.year) for file in index_files.found(source, ".tar")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("2018/00000.tar", "2018/00001.tar", "2018/notes.md", "2018/stats.json", "2019-05.tar", "x/a.TAR"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("2019-05.tar", [("2019-05.tar", True)]),
        (
            "",
            [
                ("2018/00000.tar", True),
                ("2018/00001.tar", True),
                ("2018/notes.md", False),
                ("2019-05.tar", True),
                ("x/a.TAR", True),
            ],
        ),
        ("2018/{00000..00001}.tar", [("2018/00000.tar", True), ("2018/00001.tar", True)]),
        ("{2019-05,2018/00001}.tar", [("2019-05.tar", True), ("2018/00001.tar", True)]),
        ("*/*.tar", [("2018/00000.tar", True), ("2018/00001.tar", True)]),
        ("{2018,x}/*.[tT]*", [("2018/00000.tar", True), ("2018/00001.tar", True), ("x/a.TAR", True)]),
    ],
)
def test_a_source_names_a_file_a_folder_a_range_or_a_glob(folder: Path, pattern: str, files: list[Any]) -> None:
    assert [(name, wanted) for name, wanted, _ in found(folder, pattern)] == files


def test_the_year_is_the_files_stems_or_a_folders_within_the_source(folder: Path) -> None:
    assert [year for *_, year in found(folder, "")] == ["2018", "2018", "2018", "2019", None]
    assert [year for *_, year in found(folder, "2018/*.tar")] == ["2018", "2018"]
    assert [year for *_, year in found(folder, "2018/00000.tar")] == ["2018"]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a{8..11}b", ["a8b", "a9b", "a10b", "a11b"]),
        ("{008..010}", ["008", "009", "010"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_ranges_or_choices(pattern: str, paths: list[str]) -> None:
    assert list(index_files.expanded(pattern)) == paths


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("no.tar", "source x: no such file: {}/no.tar; mend path"),
        ("2018/{00000..00002}.tar", "source x: no such file: {}/2018/00002.tar; mend path"),
        ("*.zip", "source x: no file matches {}/*.zip; mend path"),
    ],
)
def test_a_file_that_is_named_and_missing_is_told(folder: Path, pattern: str, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        found(folder, pattern)
    assert str(caught.value) == message.format(folder)
