"""Captions in the seed's format."""

import math
import random
from dataclasses import replace

import pytest

from sote.cluster.errors import RecipeError
from sote.data.caption import SEPARATOR, CaptionFacts, caption, check_source, load_profile, one_tag, split_series
from sote.data.recipe import CaptionPart, Source

CARD = load_profile("sote-v1")
SCRIPT = load_profile("sote-v1-script")
KOHYA = CARD.model_copy(update={"assembly": "kohya"})
PART = CaptionPart()  # the seed's thresholds, 0.35 and 0.50

POST = CaptionFacts(
    source_kind="image board",
    aesthetic_score=0.93,
    quality_score=0.99,
    rating=(0.1, 0.2, 0.6, 0.1),
    tags=[
        ("1girl", 0.99, "general"),
        ("long_hair", 0.80, "general"),
        ("^_^", 0.50, "general"),
        ("(o)_(o)", 0.50, "general"),
        ("english_text", 0.36, "general"),
        ("hat", 0.349, "general"),
        ("ganyu_(genshin_impact)", 0.90, "character"),
        ("keqing_(genshin_impact)", 0.50, "character"),
        ("hatsune_miku", 0.499, "character"),
    ],
    year=2023,
    text='The text says "HELLO. WORLD"',
)


def _tags(**changes) -> tuple[str, ...]:
    return caption(replace(POST, **changes), CARD, part=PART).tags


def _of_characters(*names: str, **changes) -> tuple[str, ...]:
    facts = CaptionFacts(source_kind="plain", tags=[(name, 0.9, "character") for name in names])
    return caption(replace(facts, **changes), CARD, part=PART).tags


def test_a_whole_caption_has_the_cards_order() -> None:
    made = caption(POST, CARD, part=PART)
    assert made.text == (
        'extremely aesthetic, best quality, newest, The text says "HELLO. WORLD", nsfw, ganyu, keqing, genshin impact, '
        "1girl, long hair, ^_^, (o)_(o), english text"
    )
    assert made.tags == tuple(made.text.split(SEPARATOR))
    assert made.words == {
        "aesthetic": "extremely aesthetic",
        "quality": "best quality",
        "date": "newest",
        "rating": "nsfw",
    }


def test_the_scripts_profile_puts_the_text_last() -> None:
    card, script = (caption(POST, profile, part=PART).tags for profile in (CARD, SCRIPT))
    assert script[-1] == POST.text
    assert [tag for tag in script if tag != POST.text] == [tag for tag in card if tag != POST.text]


def test_the_order_of_the_groups_is_the_profiles() -> None:
    turned = CARD.model_copy(update={"groups": tuple(reversed(CARD.groups))})
    tags = caption(POST, turned, part=PART).tags
    assert tags[0] == "1girl"
    assert tags[-3:] == ("newest", "best quality", "extremely aesthetic")


def test_what_is_unknown_is_left_out() -> None:
    assert _tags(aesthetic_score=None)[0] == "best quality"
    assert _tags(aesthetic_score=math.nan, quality_score=math.nan, year=None, text=None)[0] == "nsfw"
    assert _tags(year=2004)[:3] == ("extremely aesthetic", "best quality", POST.text)
    assert "nsfw" not in _tags(rating=None)
    nothing = caption(CaptionFacts(source_kind="plain"), CARD, part=PART)
    assert (nothing.tags, nothing.text) == ((), "")
    assert set(nothing.words.values()) == {None}


def test_thresholds_take_what_lies_on_them() -> None:
    on = CaptionFacts(source_kind="plain", tags=[("a", 0.35, "general"), ("b", 0.5, "character")])
    assert caption(on, CARD, part=PART).tags == ("b", "a")
    below = CaptionFacts(source_kind="plain", tags=[("a", 0.34999, "general"), ("b", 0.49999, "character")])
    assert caption(below, CARD, part=PART).tags == ()
    stored = CaptionFacts(source_kind="plain", tags=[("a", 0.3499999940395355, "general")])  # float32 of 0.35
    assert caption(stored, CARD, part=PART).tags == ("a",)


@pytest.mark.parametrize(
    ("kind", "custom"),
    [
        ("image board", ("newest",)),
        ("plain", ("newest",)),
        ("pixiv", ("art by Some One",)),
        ("visual novel", ("Long Title (abc)", "visual novel cg")),
        ("wallpaper", ("newest", "anime wallpaper")),
    ],
)
def test_each_kind_of_source_has_its_custom_tags(kind, custom) -> None:
    made = _tags(source_kind=kind, artist="Some One", title="Long Title", short_title="abc", text=None)
    assert made[2 : 2 + len(custom) + 1] == (*custom, "nsfw")


def test_the_word_of_the_year_is_known_even_where_the_caption_does_not_say_it() -> None:
    made = caption(replace(POST, source_kind="pixiv"), CARD, part=PART)
    assert made.words["date"] == "newest"
    assert "newest" not in made.tags


def test_a_custom_tag_without_its_fields_falls_back_or_is_left_out() -> None:
    assert _tags(source_kind="pixiv", text=None)[2] == "nsfw"
    assert _tags(source_kind="pixiv", artist=" ,\n", text=None)[2] == "nsfw"
    assert _tags(source_kind="visual novel", title="Long", text=None)[2:4] == ("Long", "visual novel cg")
    assert _tags(source_kind="visual novel", short_title="abc", text=None)[2:4] == ("visual novel cg", "nsfw")


def test_names_cannot_break_out_of_their_tag() -> None:
    assert _tags(source_kind="pixiv", artist=" a, {b|c}\n\u2028d\ud800 ", text=None)[2] == "art by a b|c d"
    assert _tags(source_kind="pixiv", artist="{artist.__class__}", text=None)[2] == "art by artist.__class__"
    assert one_tag("\t,{}\x00\u200b") == ""
    assert one_tag("喜多川、海夢 (初)") == "喜多川、海夢 (初)"


def test_the_text_is_one_tag_and_its_commas_are_full_stops() -> None:
    assert _tags(text='The text says "a, b {c} d,e"')[3] == 'The text says "a. b c d.e"'
    assert _tags(text='The text says "a,\nb"')[3] == 'The text says "a. b"'


@pytest.mark.parametrize(
    ("name", "character", "series"),
    [
        ("hatsune_miku", "hatsune miku", None),
        ("ganyu_(genshin_impact)", "ganyu", "genshin impact"),
        (
            "jeanne_d'arc_(swimsuit_archer)_(second_ascension)_(fate)",
            "jeanne d'arc (swimsuit archer) (second ascension)",
            "fate",
        ),
        ("puru-see_(hoshizuki_(seigetsu))", "puru-see", "hoshizuki (seigetsu)"),
        ("takanashi_kiara_(casual)", "takanashi kiara (casual)", None),
        ("gawr_gura_(1st_costume)", "gawr gura (1st costume)", None),
        ("kamisato_ayaka_(springbloom_missive)", "kamisato ayaka (springbloom missive)", None),
        ("murasaki_shion_(gothic_lolita)", "murasaki shion (gothic lolita)", None),
        ("black_rock_shooter_(character)", "black rock shooter (character)", None),
        ("racing_miku_(2022)", "racing miku (2022)", None),
        ("naruse_shiroha_(summer_pockets)", "naruse shiroha", "summer pockets"),
        ("a_(b", "a (b", None),
        ("a_b)", "a b)", None),
        ("(a)", "(a)", None),
        ("a_()", "a ()", None),
        ("a_(,)", "a ( )", None),
    ],
)
def test_the_last_parentheses_are_the_series_unless_they_name_none(name, character, series) -> None:
    assert split_series(name, CARD) == (character, series)


def test_a_series_is_said_once_after_all_characters() -> None:
    assert _of_characters("ganyu_(genshin_impact)", "keqing_(genshin_impact)", "saber_(fate)") == (
        *("ganyu", "keqing", "saber"),
        *("genshin impact", "fate"),
    )


def test_the_sidecars_series_goes_before_the_one_in_the_name() -> None:
    names = ["saber_(fate)", "hatsune_miku"]
    assert _of_characters(*names, series=["fate/stay_night", "fate_(series)"]) == (
        *("saber", "hatsune miku"),
        *("fate/stay night", "fate (series)"),
    )
    assert _of_characters(*names, series=[" , "]) == ("saber", "hatsune miku", "fate")


def test_the_sidecars_characters_are_merged_with_the_taggers() -> None:
    assert _of_characters(
        "ganyu_(genshin_impact)", "keqing_(genshin_impact)", characters=["keqing_(genshin_impact)"]
    ) == (
        *("keqing", "ganyu"),
        "genshin impact",
    )
    sidecar_only = CaptionFacts(source_kind="plain", characters=["square_knight_(shape_saga)"])
    assert caption(sidecar_only, CARD, part=PART).tags == ("square knight", "shape saga")


def test_the_nineteen_kaomoji_keep_their_underscores_and_other_tags_do_not() -> None:
    # SmilingWolf/wd-tagger's list, as the facts of its demo have it.
    listed = "0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||"
    kaomoji = listed.split()
    assert len(kaomoji) == 19
    facts = CaptionFacts(source_kind="plain", tags=[(name, 0.9, "general") for name in [*kaomoji, "n_n", "star_(sky)"]])
    assert caption(facts, CARD, part=PART).tags == (*kaomoji, "n n", "star (sky)")


def test_a_sources_own_tags_follow_those_of_its_kind() -> None:
    own = ("game cg", "a,b")
    made = _tags(source_kind="wallpaper", source_tags=own)
    assert made[2:7] == ("newest", "anime wallpaper", "game cg", "a b", POST.text)
    assert _tags(source_kind="plain", source_tags=own, text=None)[2:6] == ("newest", "game cg", "a b", "nsfw")


def test_a_source_says_its_date_word_where_no_year_is_known() -> None:
    assert _tags(year=None, source_word="recent")[2] == "recent"
    assert _tags(year=2023, source_word="recent")[2] == "newest"
    assert _tags(year=2004, source_word="recent")[2] == POST.text, "a known year without a word has none"
    made = caption(replace(POST, year=None, source_word="recent", source_kind="pixiv"), CARD, part=PART)
    assert made.words["date"] == "recent"
    assert "recent" not in made.tags


def test_peoples_tags_come_last_and_are_not_said_twice() -> None:
    given = ["1girl", "red_dress", "(o)_(o)", "ganyu", "Genshin Impact", "a,b\n{c}", " , ", "red dress"]
    assert _tags(sidecar_tags=given)[-4:] == ("english text", "red dress", "Genshin Impact", "a b c")
    both = caption(replace(POST, sidecar_tags=given), SCRIPT, part=PART).tags
    assert both[-4:] == ("red dress", "Genshin Impact", "a b c", POST.text)


def test_words_of_an_older_caption_among_peoples_tags_do_not_contradict_the_new_one() -> None:
    older = ["very displeasing", "low quality", "oldest", "explicit", "questionable", "sensitive", "extremely asthetic"]
    assert _tags(sidecar_tags=[*older, "very_displeasing", "hat"]) == (*_tags(), "hat")


def test_a_kohya_profile_takes_peoples_tags_too() -> None:
    plain = caption(POST, KOHYA, part=PART).tags
    assert caption(replace(POST, sidecar_tags=["hat", "1girl", "hat"]), KOHYA, part=PART).tags == (*plain, "hat")


def test_a_source_must_fit_the_profile() -> None:
    source = Source(name="old", path="pictures", date_word="oldest", tags=("art book", "scan"))
    check_source(source, CARD)
    for changed, says in (
        (
            {"date_word": "ancient"},
            "sources: old: date_word: 'ancient' is no word of the profile's years; known: newest,",
        ),
        ({"tags": ("a, b",)}, "sources: old: tags: 'a, b' must be one tag, .*; write 'a b'"),
        ({"tags": ("ok", "{")}, "sources: old: tags: '{' must be one tag, .*; leave it out"),
        ({"tags": ("",)}, "sources: old: tags: ''"),
        ({"tags": (" a\n",)}, "write 'a'"),
    ):
        with pytest.raises(RecipeError, match=says) as caught:
            check_source(source.model_copy(update=changed), CARD)
        assert "\n" not in str(caught.value)


def test_no_caption_holds_an_unfit_tag_whatever_goes_in() -> None:
    draw = random.Random(0)
    signs = "ab_(),{}|\n\r\t \x00\x85\u200b\u2028\ud83d^é漢🙂\"'"

    def name() -> str:
        return "".join(draw.choices(signs, k=draw.randrange(8)))

    def names() -> list[str]:
        return [name() for _ in range(draw.randrange(4))]

    for _ in range(2000):
        facts = CaptionFacts(
            source_kind=draw.choice(["image board", "pixiv", "visual novel", "wallpaper", "plain"]),
            aesthetic_score=draw.choice([None, math.nan, draw.random()]),
            quality_score=draw.choice([None, math.nan, draw.random()]),
            rating=draw.choice([None, [draw.random() for _ in range(4)]]),
            tags=[(name(), draw.random(), draw.choice(["general", "character"])) for _ in range(draw.randrange(9))],
            year=draw.choice([None, 2000, 2010, 2020]),
            artist=draw.choice([None, name()]),
            title=draw.choice([None, name()]),
            short_title=draw.choice([None, name()]),
            characters=names(),
            series=names(),
            sidecar_tags=names(),
            source_tags=names(),
            text=draw.choice([None, f'The text says "{name()}"']),
        )
        profile = draw.choice([CARD, SCRIPT])
        made = caption(facts, profile, part=PART)
        assert made == caption(facts, profile, part=PART)
        assert tuple(made.text.split(SEPARATOR)) == (made.tags or ("",))
        assert len(set(made.tags)) == len(made.tags)
        assert all(tag and tag == tag.strip() and not set(tag) & set(",{}\n\r\t\x00") for tag in made.tags)
        made.text.encode("utf-8")


def test_a_kohya_profile_has_the_taggers_own_order_split_at_commas() -> None:
    made = caption(replace(POST, year=2023, text=None), KOHYA, part=PART)
    assert made.text == (
        "extremely aesthetic, best quality, newest, nsfw, keqing, genshin impact, ganyu, genshin impact, "
        "1girl, long hair, ^_^, (o) (o), english text"
    )
    assert made.tags == tuple(made.text.split(SEPARATOR))
