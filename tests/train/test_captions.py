from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from sote.train.captions import SEPARATOR, caption
from sote.train.recipe import CaptionsPart

TAGS = ["newest", "ganyu", "keqing", "genshin impact", 'The text says "a, b"', "1girl", "red, blue", "sky"]
GROUPS = [0, 1, 1, 1, 4, 5, 6, 7]
ALONE = list(range(len(TAGS)))


def _made(seed: int, groups: list[int] = GROUPS, **changes: object) -> str:
    part = CaptionsPart.model_validate({"dropout": 0.0} | changes)
    return caption(TAGS, groups, part=part, random=np.random.default_rng(seed))


def _tags(made: str) -> list[str]:
    """The tags of a caption, told from the list and not by splitting."""
    found, rest = [], made
    while rest:
        tag = max((tag for tag in TAGS if rest.startswith(tag)), key=len)
        found.append(tag)
        rest = rest.removeprefix(tag).removeprefix(SEPARATOR)
    return found


def test_tags_are_shuffled_whole() -> None:
    captions = {_made(seed) for seed in range(40)}
    assert len(captions) > 30
    assert all(sorted(_tags(each)) == sorted(TAGS) for each in captions)


def test_every_order_of_tags_comes_as_often() -> None:
    firsts = Counter(_tags(_made(seed, ALONE))[0] for seed in range(1600))
    assert min(firsts.values()) > 150  # 200 each
    assert max(firsts.values()) < 250


def test_a_group_stays_together_and_in_order() -> None:
    assert all("ganyu, keqing, genshin impact" in _made(seed) for seed in range(40))
    assert {_made(seed).startswith("ganyu") for seed in range(40)} == {True, False}


def test_groups_are_shuffled_apart_where_the_recipe_says_so() -> None:
    assert not all("ganyu, keqing, genshin impact" in _made(seed, keep_groups=False) for seed in range(10))
    assert _made(3, keep_groups=False) == _made(3, ALONE)


def test_the_first_tags_stay_where_they_are() -> None:
    for seed in range(20):
        assert _tags(_made(seed, ALONE, keep_first=3))[:3] == TAGS[:3]
    assert _made(1, keep_first=100) == SEPARATOR.join(TAGS)


def test_what_belongs_to_a_first_tag_follows_it() -> None:
    for seed in range(20):
        assert _tags(_made(seed, keep_first=2))[:4] == TAGS[:4]


def test_the_share_of_empty_captions_is_the_recipes() -> None:
    made = [_made(seed, dropout=0.25, shuffle=False) for seed in range(1000)]
    assert set(made) == {"", SEPARATOR.join(TAGS)}
    assert 200 < made.count("") < 300


def test_tags_are_left_out_each_by_itself_but_not_the_first() -> None:
    found = [_tags(_made(seed, tag_dropout=0.3, keep_first=1, shuffle=False)) for seed in range(500)]
    counts = Counter(tag for tags in found for tag in tags)
    assert counts["newest"] == 500
    assert all(300 < counts[tag] < 400 for tag in TAGS[1:])
    assert all(TAGS.index(one) < TAGS.index(other) for tags in found for one, other in pairwise(tags))


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_tags_make_an_empty_caption(shuffle: bool) -> None:
    part = CaptionsPart(shuffle=shuffle, keep_first=2)
    assert caption([], [], part=part, random=np.random.default_rng(0)) == ""
