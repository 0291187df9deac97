"""What JSON says of a picture."""

import json
from typing import Any

import pytest

from sote.data import sidecar_json
from sote.data.sidecar_facts import BrokenSidecar, Sidecar

# As gallery-dl writes it for a Danbooru post; the fields that matter and some of the others.
DANBOORU = {
    "category": "danbooru",
    "id": 4_500_000,
    "created_at": "2021-05-03T23:10:11.123-04:00",
    "date": "2021-05-04 03:10:11",
    "rating": "g",
    "score": 12,
    "tags": ["hatsune_miku", "ganyu_(genshin_impact)", "vocaloid", "genshin_impact", "somebody", "1girl", "highres"],
    "tags_character": ["hatsune_miku", "ganyu_(genshin_impact)"],
    "tags_copyright": ["vocaloid", "genshin_impact"],
    "tags_artist": ["somebody"],
    "tags_general": ["1girl", "long_hair"],
    "tags_meta": ["highres"],
    "tag_string_character": "hatsune_miku ganyu_(genshin_impact)",
    "tag_string_copyright": "vocaloid genshin_impact",
    "tag_string_general": "1girl long_hair",
    "title": None,
}
# As gallery-dl writes it for a pixiv work.
PIXIV = {
    "category": "pixiv",
    "id": 88_000_000,
    "title": "夏の日",
    "caption": "夏です。<br />お仕事, です",
    "tags": ["オリジナル", "a, b"],
    "user": {"id": 11, "name": "水絵 Mie", "account": "mie"},
    "create_date": "2018-12-31T23:59:00+09:00",
    "date": "2018-12-31 14:59:00",
    "x_restrict": 0,
}


def parsed(post: Any) -> Sidecar:
    return sidecar_json.parse(json.dumps(post).encode())


def test_a_danbooru_post_gives_date_characters_series_and_general_tags() -> None:
    assert parsed(DANBOORU) == Sidecar(
        date="2021-05-03T23:10:11.123-04:00",
        characters=("hatsune_miku", "ganyu_(genshin_impact)"),
        series=("vocaloid", "genshin_impact"),
        tags=("1girl", "long_hair"),
    )


def test_the_danbooru_api_has_its_tags_as_strings() -> None:
    post = {name: value for name, value in DANBOORU.items() if not name.startswith("tags")}
    assert parsed(post) == parsed(DANBOORU)
    assert parsed({"tag_string_character": ""}).characters == ()


def test_a_pixiv_work_gives_the_display_name_the_artists_own_day_and_tags_but_not_its_caption() -> None:
    assert parsed(PIXIV) == Sidecar(
        date="2018-12-31T23:59:00+09:00", artist="水絵 Mie", tags=("オリジナル", "a, b"), title="夏の日"
    )


def test_tags_with_commas_newlines_and_braces_stay_one_tag_each() -> None:
    odd = ["hello, world", "two\nlines", "{a|b}", 'quo"te', "back\\slash"]
    assert parsed({"tags": odd}).tags == tuple(odd)
    assert parsed({"tags_general": odd, "tags_character": odd[:2]}).tags == tuple(odd)
    assert parsed(odd).tags == tuple(odd)


def test_hydrus_lists_have_namespaces() -> None:
    tags = ["character:saber", "series:fate/stay night", "creator:mika", "long hair", "rating:safe"]
    expected = Sidecar(artist="mika", characters=("saber",), series=("fate/stay night",), tags=("long hair",))
    assert parsed(tags) == parsed({"tags": tags}) == parsed({"tags": {"my tags": tags, "ptr": tags[:2]}}) == expected


@pytest.mark.parametrize(
    ("post", "tags"),
    [
        ({"tags": "1girl, long hair"}, ("1girl", "long hair")),
        ({"tags": "long hair"}, ("long hair",)),
        ({"tags": "1girl long_hair", "category": "gelbooru"}, ("1girl", "long_hair")),
        ({"tags": "1girl long_hair", "md5": "0"}, ("1girl", "long_hair")),
        ({"tags": ["a", 1, {"name": "b"}, "c"]}, ("a", "c")),
        ({"tags": 7}, ()),
    ],
)
def test_tags_in_one_string_are_parted_by_commas_or_a_boards_blanks(post: Any, tags: tuple[str, ...]) -> None:
    assert parsed(post).tags == tags


def test_the_date_of_the_post_goes_before_that_of_the_file() -> None:
    dates = {"date": "2001-01-01 00:00:00", "create_date": "2002-01-01T00:00:00Z", "created_at": "2003-01-01"}
    assert parsed(dates).date == "2003-01-01"
    del dates["created_at"]
    assert parsed(dates).date == "2002-01-01T00:00:00Z"
    del dates["create_date"]
    assert parsed(dates).date == "2001-01-01 00:00:00"


def test_a_date_that_is_none_does_not_hide_the_next() -> None:
    assert parsed({"created_at": "unknown", "date": "2009-02-03 04:05:06"}).date == "2009-02-03 04:05:06"


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
        (b'"text"', "sidecar is neither a JSON object nor a list of tags"),
        (b"[1]", "sidecar is a list, but not of tags"),
        (b'{"tags_character": 3}', "sidecar field tags_character is neither a list of names nor a string"),
        (b'{"tags_copyright": [1]}', "sidecar field tags_copyright is neither a list of names nor a string"),
    ],
)
def test_a_broken_sidecar_is_told_with_a_reason_that_can_be_counted(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenSidecar) as caught:
        sidecar_json.parse(data)
    assert str(caught.value) == reason


def test_a_record_has_captions_whose_terms_are_tags_and_may_hold_a_post() -> None:
    record = {"caption": "a girl, in a field", "tags": "1girl, long hair", "category": "anime", "text": None}
    assert sidecar_json.of_record(record).tags == ("1girl", "long hair", "a girl", "in a field")
    assert sidecar_json.of_record({"tags": "long hair", "category": "anime"}).tags == ("long hair",)
    for post in (DANBOORU, json.dumps(DANBOORU)):
        assert sidecar_json.of_record({"json": post}) == parsed(DANBOORU)
    with pytest.raises(BrokenSidecar, match="sidecar is not valid JSON"):
        sidecar_json.of_record({"json": "{"})
