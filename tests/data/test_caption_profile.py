"""Profiles: what ships, and what is refused."""

from pathlib import Path

import pytest

from sote.cluster.errors import RecipeError
from sote.data.caption_profile import SHIPPED, load_profile


def _changed(tmp_path: Path, old: str, new: str) -> str:
    text = (SHIPPED / "sote-v1.toml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    path = tmp_path / "own.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return str(path)


def _refusal(name_or_path: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_profile(name_or_path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_profile_is_had_by_name_and_by_path(tmp_path: Path) -> None:
    assert load_profile("sote-v1") == load_profile(str(SHIPPED / "sote-v1.toml"))
    own = load_profile(_changed(tmp_path, '"anime wallpaper"', '"wallpaper"'))
    assert own.custom["wallpaper"].tags == (("wallpaper",),)


def test_the_two_shipped_profiles_differ_in_one_bound_and_the_place_of_the_text() -> None:
    card, script = load_profile("sote-v1"), load_profile("sote-v1-script")
    differing = {name for name in type(card).model_fields if getattr(card, name) != getattr(script, name)}
    assert differing == {"aesthetic", "text_position"}
    assert (card.text_position, script.text_position) == ("card", "end")


def test_an_unknown_profile_names_those_that_ship() -> None:
    assert "'sote-v9': no such profile, shipped are sote-v1, sote-v1-script" in _refusal("sote-v9")


def test_a_missing_file_and_a_file_that_is_not_toml_are_refused(tmp_path: Path) -> None:
    assert str(tmp_path / "none.toml") in _refusal(str(tmp_path / "none.toml"))
    (tmp_path / "broken.toml").write_text("groups = [", encoding="utf-8")
    assert "not valid TOML" in _refusal(str(tmp_path / "broken.toml"))


@pytest.mark.parametrize("bound", ["0.95", "0.90"])
def test_bounds_that_do_not_fall_are_refused_by_name(tmp_path: Path, bound: str) -> None:
    path = _changed(tmp_path, '[0.80, "very aesthetic"]', f'[{bound}, "very aesthetic"]')
    message = _refusal(path)
    assert message.startswith(f"{path}: aesthetic: ")
    assert f"{float(bound)} ('very aesthetic') stands after 0.9" in message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('rest = "worst quality"', 'rest = "best quality"', "quality: the word 'best quality' stands twice"),
        ("[0.980, ", "[1.5, ", "quality.steps.0.0"),
        ('"mid"', '"mid, old"', "years.2.word: 'mid, old' is no tag"),
        ("first = 2015", "first = 2014", "years: 'early' and 'mid' both hold 2014"),
        ("first = 2005", "first = 2011", "years.4: first year 2011 of 'oldest' is after its last, 2010"),
        ("art by {artist}", "art by {painter}", "names {painter}, known: artist, short_title, title"),
        ("art by {artist}", "art by {}", "names {}"),
        ("art by {artist}", "art by {artist", "is no template"),
        ('"character", "series", "rest"]', '"character", "rest"]', "groups must list each of these once"),
        ("[custom.plain]\ndate = true\ntags = []\n", "", "custom has no table for the source kind 'plain'"),
        ("[custom.plain]", "[custom.photos]", "custom.photos"),
        ('text_position = "card"', 'text_place = "card"', "text_p"),
        ('explicit = "explicit nsfw"', 'explicit = ""', "rating.explicit: '' is no tag"),
    ],
)
def test_a_wrong_profile_is_refused_by_field(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = _changed(tmp_path, old, new)
    with pytest.raises(RecipeError) as caught:
        load_profile(path)
    assert says in str(caught.value)
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())


def test_a_profile_may_be_copied_to_another_process() -> None:
    import pickle

    profile = load_profile("sote-v1")
    assert profile.non_series_pattern.match("1st costume")
    assert pickle.loads(pickle.dumps(profile)) == profile
