"""Which sidecars a picture has, and their order."""

import json

import pytest

from sote.data import sidecars
from sote.data.sidecar_facts import BrokenSidecar, Sidecar

ALL = {"a.json", "a.jpg.json", "a.txt", "a.jpg.txt", "a.caption", "a.jpg.caption", "b.json", "A.txt", "a.png.txt"}


def test_the_name_with_its_ending_goes_before_the_stem_and_json_before_text() -> None:
    assert sidecars.beside("a.jpg", ALL) == ["a.jpg.json", "a.json", "a.jpg.txt", "a.txt", "a.jpg.caption", "a.caption"]
    assert sidecars.beside("c.jpg", ALL) == []


def test_of_a_shared_stem_a_picture_takes_its_own_sidecar_or_else_the_stems() -> None:
    assert sidecars.beside("a.png", ALL, shared=True) == ["a.json", "a.png.txt", "a.caption"]
    assert sidecars.beside("a.jpg", ALL, shared=True) == ["a.jpg.json", "a.jpg.txt", "a.jpg.caption"]


def test_in_a_tar_the_keys_sidecars_belong_to_all_its_pictures() -> None:
    listed = {"x/a.json", "x/a.b.txt", "a.json"}
    assert sidecars.beside("x/a.b.jpg", listed, key="x/a") == ["x/a.json", "x/a.b.txt"]


@pytest.mark.parametrize(
    ("name", "stem"), [("a.jpg", "a"), ("a.b.jpg", "a.b"), ("noname", "noname"), ("x.y/a", "x.y/a"), (".a", ".a")]
)
def test_a_stem_is_the_name_without_its_last_ending(name: str, stem: str) -> None:
    assert sidecars.stem_of(name) == stem


def test_facts_come_from_json_then_records_then_text_and_all_tags_count() -> None:
    parsed = {
        "a.json": sidecars.parse("a.json", json.dumps({"date": "2011-01-01", "tags": ["x"]}).encode()),
        "a.txt": sidecars.parse("a.txt", b"creator:c\nz\nx\n"),
    }
    record = Sidecar(date="2012", artist="b", tags=("y",))
    assert sidecars.together(["a.json", "a.txt"], parsed, [record]) == Sidecar(
        date="2011-01-01", artist="b", tags=("x", "y", "z")
    )


def test_one_broken_sidecar_is_told_though_others_are_sound() -> None:
    parsed = {"a.json": sidecars.parse("a.json", b"{"), "a.txt": sidecars.parse("a.txt", b"x")}
    with pytest.raises(BrokenSidecar, match="sidecar is not valid JSON"):
        sidecars.together(["a.json", "a.txt"], parsed, [])


def test_a_sidecar_that_cannot_be_read_is_broken() -> None:
    found = sidecars.parse("a.json", PermissionError())
    assert isinstance(found, BrokenSidecar)
    assert str(found) == "sidecar could not be read (PermissionError)"
