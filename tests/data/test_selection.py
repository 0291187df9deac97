"""Which rows are picked, how often, and why not."""

import math
import random
from dataclasses import replace

import pytest

from sote.data.recipe import SelectPart
from sote.data.selection import SelectFacts, Selection, select

GOOD = SelectFacts(errors=(None, None), skips=(None,), caption_tags=("1girl",), aesthetic_score=0.6, quality_score=0.7)
BOUNDED = SelectPart(min_aesthetic_score=0.5, min_quality_score=0.25)


def _reason(part: SelectPart = BOUNDED, **changes) -> str | None:
    chosen = select(replace(GOOD, **changes), part)
    assert not chosen.pick
    return chosen.skip_reason


def test_a_sound_row_is_picked_once() -> None:
    assert select(GOOD, SelectPart()) == Selection(pick=True, repeat=1, skip_reason=None, error=None)


def test_the_first_error_goes_before_every_skip_and_every_bound() -> None:
    bad = replace(GOOD, errors=(None, "score: NaN", "tag: NaN"), skips=("decode: small",), aesthetic_score=0.0)
    assert select(bad, BOUNDED) == Selection(pick=False, repeat=0, skip_reason=None, error="score: NaN")


def test_the_first_skip_of_earlier_stages_goes_before_the_bounds() -> None:
    assert (
        _reason(skips=(None, "duplicates: copy", "later: x"), aesthetic_score=0.0, caption_tags=())
        == "duplicates: copy"
    )


def test_the_bounds_come_in_order_and_name_their_value() -> None:
    assert _reason(aesthetic_score=0.4, quality_score=0.1, caption_tags=()) == "select: aesthetic score below 0.5"
    assert _reason(quality_score=0.1, caption_tags=()) == "select: quality score below 0.25"
    assert _reason(caption_tags=()) == "select: no caption"


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_score_matters_only_where_a_bound_asks_for_it(missing: float | None) -> None:
    assert _reason(aesthetic_score=missing) == "select: no aesthetic score"
    assert _reason(quality_score=missing) == "select: no quality score"
    assert select(replace(GOOD, aesthetic_score=missing, quality_score=missing), SelectPart()).repeat == 1


def test_a_score_on_the_lower_bound_is_picked() -> None:
    part = SelectPart(min_aesthetic_score=0.7, min_quality_score=0.7)
    assert select(replace(GOOD, aesthetic_score=0.7, quality_score=0.699999988079071), part).pick  # float32 of 0.7
    assert not select(replace(GOOD, aesthetic_score=0.7, quality_score=0.6999), part).pick


@pytest.mark.parametrize(
    ("aesthetic", "quality", "repeat"),
    [
        (0.91, 0.99, 5),
        (0.90, 0.99, 1),
        (0.91, 0.98, 1),
        (0.91, None, 1),
        (0.8999999761581421, 0.99, 1),  # float32 of 0.90
        (math.nan, 0.99, 1),
    ],
)
def test_only_rows_above_both_best_bounds_are_repeated(aesthetic, quality, repeat) -> None:
    assert select(replace(GOOD, aesthetic_score=aesthetic, quality_score=quality), SelectPart()).repeat == repeat


def test_every_row_is_picked_or_says_why_not() -> None:
    draw = random.Random(0)
    part = SelectPart(min_aesthetic_score=0.3, min_quality_score=0.3, best_repeat=3)
    for _ in range(2000):
        facts = SelectFacts(
            errors=[draw.choice([None, None, None, "", "tag: x"])],
            skips=[draw.choice([None, None, None, "", "decode: y"])],
            caption_tags=draw.choice([(), ("a",), ("a", "b")]),
            aesthetic_score=draw.choice([None, math.nan, draw.random()]),
            quality_score=draw.choice([None, math.nan, draw.random()]),
        )
        chosen = select(facts, part)
        assert [chosen.pick, chosen.error is not None, chosen.skip_reason is not None].count(True) == 1
        assert chosen.repeat in ((1, 3) if chosen.pick else (0,))
        assert all(": " in reason for reason in (chosen.error, chosen.skip_reason) if reason is not None)
