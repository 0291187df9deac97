"""Which tags of a caption belong together."""

from dataclasses import replace

import pytest

from sote.data.caption import Caption, CaptionFacts, caption, load_profile
from sote.data.recipe import CaptionPart

CARD = load_profile("sote-v1")
KOHYA = CARD.model_copy(update={"assembly": "kohya"})
PLAIN = CaptionFacts(source_kind="plain")
NOVEL = replace(PLAIN, source_kind="visual novel")


def _together(made: Caption) -> list[list[str]]:
    return [[made.tags[place] for place in places] for places in made.together]


def _of(facts: CaptionFacts, *characters: str, profile=CARD) -> list[list[str]]:
    tags = [("1girl", 0.9, "general"), *((name, 0.9, "character") for name in characters)]
    return _together(caption(replace(facts, tags=tags), profile, part=CaptionPart()))


def test_characters_belong_to_the_series_that_they_name() -> None:
    assert _of(PLAIN, "ganyu_(genshin_impact)", "saber_(fate)", "keqing_(genshin_impact)") == [
        ["ganyu", "keqing", "genshin impact"],
        ["saber", "fate"],
    ]


def test_who_names_no_series_belongs_to_the_only_one() -> None:
    assert _of(replace(PLAIN, series=["vocaloid"]), "hatsune_miku") == [["hatsune miku", "vocaloid"]]
    assert _of(replace(PLAIN, series=["vocaloid", "fate"]), "hatsune_miku") == []
    assert _of(replace(PLAIN, series=["vocaloid"]), "saber_(fate)") == []
    assert _of(replace(PLAIN, series=["vocaloid", "___"]), "hatsune_miku") == [["hatsune miku", "vocaloid"]]


def test_without_a_character_or_a_series_every_tag_stands_by_itself() -> None:
    assert _of(PLAIN) == []
    assert _of(PLAIN, "hatsune_miku") == []
    assert _of(replace(PLAIN, series=["vocaloid"])) == []


def test_what_is_said_of_a_visual_novel_belongs_together() -> None:
    facts = replace(NOVEL, title="Some Title", short_title="st", source_tags=("drawn",))
    assert _of(facts) == [["Some Title (st)", "visual novel cg"]]
    assert _of(NOVEL) == []  # only one of them is known


def test_a_tag_is_of_one_group_only() -> None:
    facts = replace(NOVEL, title="fate")
    assert _of(facts, "saber_(fate)") == [["fate", "visual novel cg"]]


@pytest.mark.parametrize("doubled", [(), (("genshin_impact", 0.95, "general"), ("ganyu", 0.9, "general"))])
def test_the_authors_own_assembly_has_each_character_before_its_series(doubled: tuple[object, ...]) -> None:
    tags = [*doubled, ("1girl", 0.9, "general"), ("ganyu_(genshin_impact)", 0.9, "character")]
    tags += [("keqing_(genshin_impact)", 0.8, "character")]
    made = caption(replace(PLAIN, tags=tags), KOHYA, part=CaptionPart())
    assert sorted(_together(made)) == [["ganyu", "genshin impact"], ["keqing", "genshin impact"]]
    places = [place for group in made.together for place in group]
    assert len(set(places)) == len(places)
