"""Which rows are picked, how often, for which sets, and why not."""

import math
import random
from typing import Any

import pyarrow as pa
import pytest

from sote.cluster.errors import RecipeError
from sote.data import schema
from sote.data.caption_profile import load_profile
from sote.data.recipe import SelectPart, SetPart
from sote.data.selection import COLUMNS, ERRORS, SKIPS, Cutoffs, Place, Ranking, check, select

GOOD: dict[str, Any] = {
    "id": "0" * 64,
    "source": "board",
    "aesthetic_score": 0.6,
    "quality_score": 0.7,
    "words": {"date": "newest"},
    "caption": "1girl",
}
BOUNDED = SelectPart(min_aesthetic_score=0.5, min_quality_score=0.25)
BEST = SelectPart(best_aesthetic_score=0.5, best_quality_score=0.5)


def table_of(*rows: dict[str, Any]) -> pa.Table:
    return pa.table({name: pa.array([row.get(name) for row in rows], schema.BY_NAME[name].type) for name in COLUMNS})


def _selected(part: SelectPart, *rows: dict[str, Any], cutoffs: Cutoffs | None = None) -> list[dict[str, Any]]:
    return select(table_of(*rows), part, cutoffs=cutoffs or Cutoffs()).to_pylist()


def _over_shards(part: SelectPart, rows: list[dict[str, Any]], *, size: int) -> list[dict[str, Any]]:
    """Rank all shards, then select on each alone."""
    shards = [rows[at : at + size] for at in range(0, len(rows), size)]
    ranking = Ranking(part)
    for shard in shards:
        ranking.add(table_of(*shard))
    return [one for shard in shards for one in _selected(part, *shard, cutoffs=ranking.cutoffs())]


def _reason(part: SelectPart = BOUNDED, **changes: Any) -> str | None:
    (chosen,) = _selected(part, GOOD | changes)
    assert chosen["select_repeat"] == 0
    return chosen["select_skip"]


def test_a_sound_row_is_picked_once() -> None:
    assert _selected(SelectPart(), GOOD) == [{"select_repeat": 1, "select_skip": None, "sets": None}]


def test_a_row_that_failed_or_was_skipped_before_is_not_seen_and_its_reason_stays_where_it_is() -> None:
    part = SelectPart(sets={"all": SetPart()})
    for name in (*ERRORS, *SKIPS):
        (chosen,) = _selected(part, GOOD | {name: "stage: reason"})
        assert chosen == {"select_repeat": 0, "select_skip": None, "sets": None}, name
    (bad,) = _selected(BOUNDED, GOOD | {"decode_skip": "decode: small", "aesthetic_score": None, "caption": None})
    assert bad["select_skip"] is None


def test_the_bounds_come_in_order_and_name_their_value() -> None:
    assert _reason(aesthetic_score=0.4, quality_score=0.1, caption="") == "select: aesthetic score below 0.5"
    assert _reason(quality_score=0.1, caption="") == "select: quality score below 0.25"
    assert _reason(caption="") == "select: no caption"
    assert _reason(caption=None) == "select: no caption"


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_score_matters_only_where_a_bound_asks_for_it(missing: float | None) -> None:
    assert _reason(aesthetic_score=missing) == "select: no aesthetic score"
    assert _reason(quality_score=missing) == "select: no quality score"
    (chosen,) = _selected(SelectPart(), GOOD | {"aesthetic_score": missing, "quality_score": missing})
    assert chosen["select_repeat"] == 1


def test_a_score_on_the_lower_bound_is_picked() -> None:
    part = SelectPart(min_aesthetic_score=0.7, min_quality_score=0.7)
    scores = [(0.7, 0.699999988079071), (0.7, 0.6999)]  # the former is float32 of 0.7
    rows = [GOOD | {"aesthetic_score": aesthetic, "quality_score": quality} for aesthetic, quality in scores]
    assert [chosen["select_repeat"] for chosen in _selected(part, *rows)] == [1, 0]


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
    (chosen,) = _selected(SelectPart(), GOOD | {"aesthetic_score": aesthetic, "quality_score": quality})
    assert chosen["select_repeat"] == repeat


def test_the_seeds_three_runs_are_sets_of_one_selection() -> None:
    part = SelectPart(
        sets={
            "final": SetPart(best=True),
            "decoder": SetPart(aesthetic_above=0.98, quality_above=0.98, date_words=("newest",)),
            "board": SetPart(sources=("board",)),
        }
    )
    high = {"aesthetic_score": 0.99, "quality_score": 0.99}
    rows = [
        GOOD,
        GOOD | high,
        GOOD | high | {"words": {"date": "recent"}},
        GOOD | high | {"words": None, "source": "pixiv"},
        GOOD | high | {"aesthetic_score": 0.98},  # on the bound
        GOOD | {"source": "pixiv"},
        GOOD | high | {"duplicates_skip": "duplicates: near-duplicate"},
    ]
    assert [chosen["sets"] for chosen in _selected(part, *rows)] == [
        ["board"],
        ["final", "decoder", "board"],
        ["final", "board"],
        ["final"],
        ["final", "board"],
        None,
        None,
    ]


def test_the_most_are_those_with_the_highest_sums_and_ties_fall_to_the_id() -> None:
    part = BEST.model_copy(update={"best_most": 2, "sets": {"two": SetPart(most=2), "one": SetPart(best=True, most=1)}})
    scores = [(0.75, 0.75), (1.0, 0.5625), (0.625, 0.875), (0.25, 1.0)]
    rows = [
        GOOD | {"id": f"{9 - at}" * 64, "aesthetic_score": aesthetic, "quality_score": quality}
        for at, (aesthetic, quality) in enumerate(scores)
    ]
    chosen = _over_shards(part, rows, size=3)
    assert [row["select_repeat"] for row in chosen] == [1, 5, 5, 1], "sums 1.5, 1.5625, 1.5 with a smaller id, 1.25"
    assert [row["sets"] for row in chosen] == [None, ["two", "one"], ["two"], None]


def test_no_more_are_taken_than_asked_for_whatever_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    monkeypatch.setattr("sote.data.selection.SPARE", 3)
    part = BEST.model_copy(
        update={
            "best_most": 30,
            "min_aesthetic_score": 0.3,
            "sets": {"some": SetPart(most=25, sources=("a",)), "best": SetPart(best=True, quality_above=0.7, most=15)},
        }
    )
    rows = [
        GOOD
        | {
            "id": f"{draw.getrandbits(256):064x}",
            "source": draw.choice("ab"),
            "aesthetic_score": draw.choice([None, math.nan, *[draw.randrange(9) / 8] * 8]),  # many ties
            "quality_score": draw.randrange(9) / 8,
            "tag_error": draw.choice([None, None, "tag: NaN"]),
        }
        for _ in range(400)
    ]
    whole = _over_shards(part, rows, size=400)
    assert whole == _over_shards(part, rows, size=7)

    def place(at: int) -> tuple[float, str]:
        return -rows[at]["aesthetic_score"] - rows[at]["quality_score"], rows[at]["id"]

    def highest(some: list[int], most: int) -> set[int]:
        return set(sorted(some, key=place)[:most])

    sound = [at for at, row in enumerate(rows) if not row["tag_error"] and (row["aesthetic_score"] or 0) >= 0.3]
    best = highest([at for at in sound if min(rows[at]["aesthetic_score"], rows[at]["quality_score"]) > 0.5], 30)
    some = highest([at for at in sound if rows[at]["source"] == "a"], 25)
    both = highest([at for at in best if rows[at]["quality_score"] > 0.7], 15)
    assert {at for at, row in enumerate(whole) if row["select_repeat"] == 5} == best
    assert {at for at, row in enumerate(whole) if "some" in (row["sets"] or ())} == some
    assert {at for at, row in enumerate(whole) if "best" in (row["sets"] or ())} == both
    assert [len(each) for each in (best, some, both)] == [30, 25, 15]


def test_a_rule_that_takes_all_there_are_has_no_cutoff() -> None:
    ranking = Ranking(BEST.model_copy(update={"best_most": 3, "sets": {"two": SetPart(most=2)}}))
    ranking.add(table_of(GOOD, GOOD | {"id": "1" * 64}))
    assert ranking.cutoffs() == Cutoffs(best=None, sets={"two": Place(_sum(0.6, 0.7), "1" * 64)})
    assert not Ranking.is_needed(BEST)
    assert Ranking.is_needed(SelectPart(sets={"one": SetPart(most=1)}))


def _sum(*scores: float) -> float:
    """The sum as it is defined: of the scores as they are stored, not rounded."""
    return sum(pa.array(scores, pa.float32()).to_pylist())


def test_a_set_may_only_ask_for_words_that_the_profile_has() -> None:
    profile = load_profile("sote-v1")
    check(SelectPart(sets={"decoder": SetPart(date_words=("newest", "mid"))}), profile)
    with pytest.raises(RecipeError, match=r"^select\.sets\.decoder\.date_words: 'new' is no word .*; known: newest, "):
        check(SelectPart(sets={"decoder": SetPart(date_words=("newest", "new"))}), profile)


def test_every_row_is_picked_or_says_why_not() -> None:
    draw = random.Random(0)
    part = SelectPart(min_aesthetic_score=0.3, min_quality_score=0.3, best_repeat=3, sets={"all": SetPart()})
    rows = [
        GOOD
        | {
            "tag_error": draw.choice([None, None, None, "tag: x"]),
            "decode_skip": draw.choice([None, None, None, "decode: y"]),
            "caption": draw.choice([None, "", "a", "a, b"]),
            "aesthetic_score": draw.choice([None, math.nan, draw.random()]),
            "quality_score": draw.choice([None, math.nan, draw.random()]),
        }
        for _ in range(2000)
    ]
    for row, chosen in zip(rows, _selected(part, *rows), strict=True):
        ends = [chosen["select_repeat"] > 0, bool(row["tag_error"] or row["decode_skip"]), bool(chosen["select_skip"])]
        assert ends.count(True) == 1
        assert chosen["select_repeat"] in (0, 1, 3)
        assert chosen["sets"] == (["all"] if chosen["select_repeat"] else None)
