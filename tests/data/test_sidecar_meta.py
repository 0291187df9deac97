"""Files about many pictures."""

import json
from typing import Any

import pytest

from sote.data import sidecar_meta
from sote.data.sidecar_meta import BrokenMeta, Meta


def load(name: str, content: Any, *, folder: str = "/sets/train") -> Meta | None:
    if isinstance(content, list):
        content = "\n".join(map(json.dumps, content))
    elif isinstance(content, dict):
        content = json.dumps(content)
    data = content if isinstance(content, bytes) else content.encode()
    return sidecar_meta.load(name, data, uri=f"{folder}/{name}", folder=folder)


def tags(meta: Meta | None, picture: str) -> tuple[str, ...] | None:
    assert meta is not None
    found = meta.of(picture)
    return found and found.tags


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "a.jpg",
        "./a.jpg",
        "/sets/train/a.jpg",
        "/sets/train/a",
        "/elsewhere/train/a.jpg",
        "train/a.jpg",
        "sets/train/a",
        "C:\\train\\a.jpg".removeprefix("C:"),
    ],
)
def test_kohyas_keys_are_stems_or_paths_however_they_were_given(key: str) -> None:
    meta = load("meta_cap.json", {key: {"tags": "1girl, solo", "caption": "a girl"}, "other": {"tags": "x"}})
    assert tags(meta, "/sets/train/a.jpg") == ("1girl", "solo", "a girl")
    assert tags(meta, "/sets/train/b.jpg") is None
    assert tags(meta, "/sets/train/deep/a.jpg") is None


def test_a_path_below_the_folder_names_that_picture_only() -> None:
    meta = load("metadata.jsonl", [{"file_name": "deep/a.jpg", "text": "x, y"}])
    assert tags(meta, "/sets/train/deep/a.jpg") == ("x", "y")
    assert tags(meta, "/sets/train/a.jpg") is None


def test_lines_name_their_picture_as_kohya_hugging_face_or_gallery_dl_do() -> None:
    lines = [
        {"image_path": "/sets/train/a.jpg", "caption": "one", "tags": ["t, u"], "image_size": [1, 2]},
        {"file_name": "b.jpg", "text": "two"},
        {"filename": "c", "extension": "jpg", "category": "x", "tags": ["three"]},
        {"nothing": "here"},
    ]
    meta = load("data.jsonl", lines)
    assert [tags(meta, f"/sets/train/{name}.jpg") for name in "abc"] == [("t, u", "one"), ("two",), ("three",)]


def test_a_table_has_quoted_commas_and_dates() -> None:
    meta = load("metadata.csv", 'file_name,text,date\r\na.jpg,"x, y",2019-01-02\r\n')
    assert meta is not None
    found = meta.of("/sets/train/a.jpg")
    assert found is not None
    assert (found.tags, found.date) == (("x", "y"), "2019-01-02")


def test_records_that_were_asked_for_are_counted() -> None:
    meta = load("meta.json", {"a": {"tags": ""}, "b": {"tags": ""}})
    assert meta is not None
    for _ in range(2):
        meta.of("/sets/train/a.jpg")
        meta.of("/sets/train/c.jpg")
    assert (len(meta.records), len(meta.used)) == (2, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("album.json", {"title": "x"}),
        ("list.json", "[1, 2]"),
        ("x.json", {"a": {"b": 1}}),
        ("x.jsonl", [{"a": 1}, [2]]),
    ],
)
def test_json_about_something_else_is_not_ours(name: str, content: Any) -> None:
    assert load(name, content) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("meta.json", '{"a": {"tags"', "is not valid JSON (line 1)"),
        ("meta.jsonl", '{"a": 1}\n\nnonsense\n', "is not valid JSON (line 3)"),
        ("metadata.csv", "ü".encode("latin-1"), "is not UTF-8 text"),
        ("meta.jsonl", "ü".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_a_broken_file_is_told_with_the_place(name: str, content: Any, message: str) -> None:
    with pytest.raises(BrokenMeta) as caught:
        load(name, content)
    assert str(caught.value) == message
