"""Listing the sources."""

import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sote.cluster.errors import SourceError
from sote.data import index, scenes
from sote.data.recipe import Source, SourceKind
from sote.data.schema import written_by


def source(folder: Path, *, name: str = "mine", kind: SourceKind = "plain", **more: Any) -> Source:
    return Source(name=name, kind=kind, path=str(folder), **more)


def write(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def rows(*sources: Source, shard_rows: int = 100) -> list[dict[str, Any]]:
    tables = index.tables(sources, shard_rows=shard_rows)
    return [row for table in tables for row in table.to_pylist()]


def names(folder: Path, *sources: Source) -> list[str]:
    return [os.path.relpath(row["uri"], folder) for row in rows(*sources or (source(folder),))]


def test_every_file_is_a_row_but_hidden_ones_and_sidecars(tmp_path: Path) -> None:
    kept = ["a.jpg", "b.PNG", "deep/er/c.webp", "movie.mp4", "noname"]
    write(tmp_path, [*kept, ".hidden.jpg", ".git/x.jpg", "a.jpg.json", "b.txt", "deep/c.caption"])
    assert names(tmp_path) == kept


def test_rows_come_sorted_by_path_and_sources_in_the_recipes_order(tmp_path: Path) -> None:
    write(tmp_path, ["z/b.jpg", "z/a/c.jpg", "z/a.jpg", "z/a-b/d.jpg", "b/x.jpg"])
    found = names(tmp_path, source(tmp_path / "z", name="one"), source(tmp_path / "b", name="two"))
    assert found == ["z/a/c.jpg", "z/a-b/d.jpg", "z/a.jpg", "z/b.jpg", "b/x.jpg"]
    assert found[:4] == [str(path) for path in sorted(Path(name) for name in found[:4])]


def test_tables_have_the_schema_and_rows_are_numbered_within_each_shard(tmp_path: Path) -> None:
    write(tmp_path, [f"{number:02}.jpg" for number in range(7)])
    tables = list(index.tables([source(tmp_path)], shard_rows=3))
    assert [table.num_rows for table in tables] == [3, 3, 1]
    assert all(table.schema == written_by("index") for table in tables)
    assert [table.column("row").to_pylist() for table in tables] == [[0, 1, 2], [0, 1, 2], [0]]


def test_a_shard_can_hold_the_end_of_one_source_and_the_start_of_the_next(tmp_path: Path) -> None:
    write(tmp_path, ["a/1.jpg", "a/2.jpg", "b/3.jpg"])
    (table,) = index.tables([source(tmp_path / "a", name="a"), source(tmp_path / "b", name="b")], shard_rows=5)
    assert table.column("source").to_pylist() == ["a", "a", "b"]


def test_listing_twice_gives_equal_tables(tmp_path: Path) -> None:
    write(tmp_path, [f"{number % 3}/{number}.jpg" for number in range(20)])
    first, second = (pa.concat_tables(index.tables([source(tmp_path)], shard_rows=6)) for _ in range(2))
    assert first.equals(second)


def test_what_is_no_picture_by_its_name_is_skipped_with_the_extension(tmp_path: Path) -> None:
    write(tmp_path, ["a.mp4", "b.ZIP", "c"])
    assert [row["index_skip"] for row in rows(source(tmp_path))] == [
        "index: not a picture file (.mp4)",
        "index: not a picture file (.zip)",
        "index: not a picture file (no extension)",
    ]


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".heic", ".jxl", ".avif", ".tif"])
def test_pictures_by_their_name_are_not_skipped(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, [f"a{suffix}"])
    assert rows(source(tmp_path))[0]["index_skip"] is None


def test_a_broken_sidecar_is_an_error_of_its_row_only(tmp_path: Path) -> None:
    write(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "a.jpg.json").write_text("{")
    assert [row["index_error"] for row in rows(source(tmp_path))] == ["index: sidecar is not valid JSON", None]


def test_sidecars_fill_the_columns(tmp_path: Path) -> None:
    scenes.draw(tmp_path, count=4)
    board = rows(source(tmp_path / "board", kind="image board"))
    pixiv = rows(source(tmp_path / "pixiv", kind="pixiv"))
    planned = {scenes.plan(0, number).year: scenes.plan(0, number) for number in range(3)}
    assert {int(row["post_date"][:4]) for row in board[:1]} <= set(planned)
    for row in pixiv:
        assert row["artist"] in scenes.ARTISTS
        assert row["post_date"][4] == "-"
    for row in board:
        scene = planned[int(row["post_date"][:4])]
        assert row["post_characters"] == ([scene.character] if scene.character else [])
        assert row["post_series"] == ([scene.series] if scene.series else [])
        assert row["artist"] is None
        assert row["bytes"] == Path(row["uri"]).stat().st_size


def test_only_a_visual_novel_has_titles_and_the_recipe_fills_in(tmp_path: Path) -> None:
    write(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "a.json").write_text('{"title": "From the Sidecar"}')
    novel = source(tmp_path, kind="visual novel", title="From the Recipe", short_title="ftr")
    assert [row["title"] for row in rows(novel)] == ["From the Sidecar", "From the Recipe"]
    assert [row["short_title"] for row in rows(novel)] == ["ftr", "ftr"]
    assert [row["title"] for row in rows(source(tmp_path, kind="pixiv"))] == [None, None]


def test_pictures_of_one_stem_are_rows_apart_and_said_once_for_a_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, ["a.jpg", "a.png", "b.jpg", "deep/a.jpg"])
    with caplog.at_level(logging.WARNING):
        found = rows(source(tmp_path))
    assert [row["shared_stem"] for row in found] == [True, True, False, False]
    assert [record.getMessage() for record in caplog.records] == [
        "pictures of one stem share their sidecars source=mine pictures=2"
    ]


def test_every_form_of_source_counts_what_it_lists(tmp_path: Path) -> None:
    write(tmp_path / "folder", ["a.jpg", "deep/b.png", "c.mp4", "a.txt"])
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(tmp_path / "folder", arcname=".")
    pq.write_table(pa.table({"image": [b"1", b"2"], "text": ["x", "y"]}), tmp_path / "a.parquet")
    sources = [
        source(tmp_path / "folder", name="folder"),
        source(tmp_path / "a.tar", name="tar", form="webdataset"),
        source(tmp_path / "a.parquet", name="parquet", form="parquet"),
    ]
    (table,) = index.tables(sources, shard_rows=100)
    assert table.schema == written_by("index")
    assert {one.name: index.count(one) for one in sources} == {"folder": 3, "tar": 3, "parquet": 2}
    assert Counter(table["source"].to_pylist()) == {"folder": 3, "tar": 3, "parquet": 2}


@pytest.mark.parametrize("spelling", ["{}/a/", "{}/link", "{}/b/../a", "a", "~/a", "file://{}/a"])
def test_a_source_listed_twice_is_refused_however_it_is_spelled(
    tmp_path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ["a/1.jpg", "b/2.jpg"])
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = spelling.format(tmp_path)
    again = Source(name="again", path=path)
    with pytest.raises(SourceError) as caught:
        index.check_all([source(tmp_path / "a"), source(tmp_path / "b", name="b"), again])
    assert str(caught.value) == f"source again: {path} is {tmp_path}/a of source mine, list it once"


def test_a_source_within_another_is_refused_in_either_order(tmp_path: Path) -> None:
    write(tmp_path, ["a/1.jpg", "a/b/2.jpg", "ab/3.jpg"])
    outer, inner = source(tmp_path / "a", name="outer"), source(tmp_path / "a" / "b", name="inner")
    for several in ([outer, inner], [inner, outer]):
        with pytest.raises(SourceError, match=r"^source inner: .*/a/b lies in .*/a of source outer, so that its files"):
            index.check_all(several)
    index.check_all([outer, source(tmp_path / "ab", name="beside")])


def test_a_tar_that_two_patterns_name_is_refused_by_its_own_name(tmp_path: Path) -> None:
    write(tmp_path, ["0.tar", "1.tar", "2.tar"])
    patterns = (source(tmp_path / pattern, name=pattern, form="webdataset") for pattern in ("{0..1}.tar", "[12].tar"))
    with pytest.raises(SourceError, match=r"^source \[12\]\.tar: .*/1\.tar is listed by source \{0\.\.1\}\.tar too"):
        index.check_all(list(patterns))


def test_uris_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ["in/a.jpg"])
    monkeypatch.chdir(tmp_path)
    assert rows(source(Path("in")))[0]["uri"] == str(tmp_path / "in" / "a.jpg")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path, ["in/a.jpg", "else/b.jpg"])
    (tmp_path / "in" / "link").symlink_to(tmp_path / "else")
    (tmp_path / "else" / "back").symlink_to(tmp_path / "in")
    assert names(tmp_path, source(tmp_path / "in")) == ["in/a.jpg", "in/link/b.jpg"]


def test_a_link_that_leads_nowhere_is_a_row_and_a_pipe_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "c.jpg")
    found = rows(source(tmp_path))
    assert [(Path(row["uri"]).name, row["bytes"]) for row in found] == [("a.jpg", None), ("b.jpg", None)]


def test_a_name_that_is_not_utf_8_is_an_error_of_its_row(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).touch()
    (row,) = rows(source(tmp_path))
    assert row["index_error"] == "index: file name is not UTF-8"
    assert row["uri"] == f"{tmp_path}/\ufffd.jpg"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "source mine: no such folder: {path}"),
        (lambda path: path.touch(), "source mine: {path} is a file, path must name the folder that it lies in"),
        (lambda path: write(path, ["a.txt"]), "source mine: no file in {path}, path must name a folder with pictures"),
        (lambda path: path.mkdir(), "source mine: no file in {path}, path must name a folder with pictures"),
        (lambda path: write(path, [".a.jpg"]), "source mine: no file in {path}, path must name a folder with pictures"),
    ],
)
def test_a_source_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "pictures"
    make(path)
    with pytest.raises(SourceError) as caught:
        next(index.tables([source(path)], shard_rows=10))
    assert str(caught.value) == message.format(path=path)


@pytest.mark.parametrize(
    ("path", "form", "message"),
    [
        ("a.tar", "folder", 'source mine: {path} is a file, say form = "webdataset"'),
        ("a.parquet", "folder", 'source mine: {path} is a file, say form = "parquet"'),
        ("in", "webdataset", "source mine: no .tar file in {path}, path must name a folder with .tar files"),
        ("in", "parquet", "source mine: no .parquet file in {path}, path must name a folder with .parquet files"),
        ("none", "webdataset", "source mine: no .tar file in {path}, path must name a folder with .tar files"),
        ("no", "parquet", "source mine: no such file: {path}; mend path"),
    ],
)
def test_a_source_of_another_form_is_told_in_one_line(tmp_path: Path, path: str, form: str, message: str) -> None:
    write(tmp_path, ["a.tar", "a.parquet", "in/a.jpg"])
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError) as caught:
        index.check(source(tmp_path / path, form=form))
    assert str(caught.value) == message.format(path=tmp_path / path)


@pytest.mark.parametrize(("path", "what"), [("gs://bucket/a", "install gcsfs"), ("nonsense://a", "is not known")])
def test_a_source_that_needs_a_package_or_is_of_no_protocol_is_told_in_one_line(path: str, what: str) -> None:
    with pytest.raises(SourceError) as caught:
        index.check(Source(name="mine", path=path))
    assert str(caught.value).startswith(f"source mine: {path} cannot be read: ")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_second_source_is_checked_before_the_first_table_comes(tmp_path: Path) -> None:
    write(tmp_path, ["a/1.jpg", "a/2.jpg"])
    with pytest.raises(SourceError, match="source b: no such folder"):
        next(index.tables([source(tmp_path / "a"), source(tmp_path / "b", name="b")], shard_rows=1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_folder_is_told_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, ["in/a.jpg"])
    (tmp_path / "in").chmod(0)
    try:
        with pytest.raises(SourceError, match="cannot be read"):
            rows(source(tmp_path))
    finally:
        (tmp_path / "in").chmod(0o700)
