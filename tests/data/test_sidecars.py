"""What sidecars say."""

import json
from pathlib import Path
from typing import Any

import pytest

from sote.data import sidecars
from sote.data.sidecars import BrokenSidecar, Sidecar

# As gallery-dl writes it for a Danbooru post; the fields that matter and some of the others.
DANBOORU = {
    "category": "danbooru",
    "id": 4_500_000,
    "created_at": "2021-05-03T23:10:11.123-04:00",
    "date": "2021-05-04 03:10:11",
    "rating": "g",
    "score": 12,
    "tags_character": ["hatsune_miku", "ganyu_(genshin_impact)"],
    "tags_copyright": ["vocaloid", "genshin_impact"],
    "tags_artist": ["somebody"],
    "tag_string_character": "hatsune_miku ganyu_(genshin_impact)",
    "tag_string_copyright": "vocaloid genshin_impact",
}
# As gallery-dl writes it for a pixiv work.
PIXIV = {
    "category": "pixiv",
    "id": 88_000_000,
    "title": "夏の日",
    "tags": ["オリジナル"],
    "user": {"id": 11, "name": "水絵 Mie", "account": "mie"},
    "create_date": "2018-12-31T23:59:00+09:00",
    "date": "2018-12-31 14:59:00",
    "x_restrict": 0,
}


def parsed(post: Any) -> Sidecar:
    return sidecars.parse(json.dumps(post).encode())


def test_a_danbooru_post_gives_date_characters_and_series() -> None:
    assert parsed(DANBOORU) == Sidecar(
        date="2021-05-03T23:10:11.123-04:00",
        year=2021,
        characters=("hatsune_miku", "ganyu_(genshin_impact)"),
        series=("vocaloid", "genshin_impact"),
    )


def test_the_danbooru_api_has_its_tags_as_one_string() -> None:
    post = {name: value for name, value in DANBOORU.items() if not name.startswith("tags_")}
    assert parsed(post) == parsed(DANBOORU)
    assert parsed({"tag_string_character": ""}).characters == ()


def test_a_pixiv_work_gives_the_display_name_and_the_artists_own_day() -> None:
    found = parsed(PIXIV)
    assert (found.artist, found.year, found.date) == ("水絵 Mie", 2018, "2018-12-31T23:59:00+09:00")
    assert found.title == "夏の日"


def test_the_date_of_the_post_goes_before_that_of_the_file() -> None:
    dates = {"date": "2001-01-01 00:00:00", "create_date": "2002-01-01T00:00:00Z", "created_at": "2003-01-01"}
    assert parsed(dates).year == 2003
    del dates["created_at"]
    assert parsed(dates).year == 2002
    del dates["create_date"]
    assert parsed(dates).year == 2001


@pytest.mark.parametrize("date", ["", "2012", "yesterday", "2012-13-01", 1_600_000_000, None, ["2012-01-01"]])
def test_what_is_no_date_gives_no_year(date: Any) -> None:
    assert parsed({"created_at": date}) == Sidecar()


def test_a_date_that_is_none_does_not_hide_the_next() -> None:
    assert parsed({"created_at": "unknown", "date": "2009-02-03 04:05:06"}).year == 2009


def test_titles_are_taken_without_the_space_around_them() -> None:
    assert parsed({"title": " Full Name ", "short_title": "fnm"}) == Sidecar(title="Full Name", short_title="fnm")
    assert parsed({"title": "  "}) == Sidecar()


def test_fields_of_other_types_are_not_ours() -> None:
    assert parsed({"title": 7, "user": "name", "date": {"year": 2012}}) == Sidecar()
    assert parsed({"user": {"name": 5}}) == Sidecar()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "sidecar is not valid JSON"),
        (b'{"date": "2012', "sidecar is not valid JSON"),
        (b"\xff\xfe{", "sidecar is not valid JSON"),
        (b"[" * 100_000, "sidecar is not valid JSON"),
        (b"[]", "sidecar is not a JSON object"),
        (b'"text"', "sidecar is not a JSON object"),
        (b'{"tags_character": 3}', "sidecar field tags_character is neither a list of names nor a string"),
        (b'{"tags_copyright": [1]}', "sidecar field tags_copyright is neither a list of names nor a string"),
    ],
)
def test_a_broken_sidecar_is_told_with_a_reason_that_can_be_counted(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenSidecar) as caught:
        sidecars.parse(data)
    assert str(caught.value) == reason


def test_a_picture_without_a_sidecar_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert sidecars.read(tmp_path / "a.jpg") is None


def test_the_name_with_its_extension_goes_before_the_stem(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"date": "2001-01-01"}')
    (tmp_path / "a.png.json").write_text('{"date": "2002-01-01"}')
    png, jpg = sidecars.read(tmp_path / "a.png"), sidecars.read(tmp_path / "a.jpg")
    assert png is not None
    assert jpg is not None
    assert (png.year, jpg.year) == (2002, 2001)


def test_a_sidecar_that_cannot_be_read_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.jpg.json").mkdir()
    with pytest.raises(BrokenSidecar, match=r"could not be read \(IsADirectoryError\)"):
        sidecars.read(tmp_path / "a.jpg")
