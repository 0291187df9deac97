"""Selection: whether a row is trained on, how often, for which sets, and why not.

A rule with `most` is about all rows of a run: `Ranking` is shown every shard and says the last place that such a rule
takes; `select` then decides on each shard alone. Places go by the sum of both scores, highest first, then by the id.
Scores are compared as float32, the type they are stored in, and summed without rounding, as float64.
Reads: id, source, errors and skips of earlier stages, scores, words, caption. Writes: select_repeat, select_skip, sets.

Kind: pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from sote.cluster.errors import RecipeError
from sote.data.caption_profile import Profile
from sote.data.recipe import SelectPart, SetPart

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

ERRORS = ("index_error", "decode_error", "score_error", "tag_error", "text_error")
SKIPS = ("index_skip", "decode_skip", "duplicates_skip")
COLUMNS = ("id", "source", "aesthetic_score", "quality_score", "words", "caption", *ERRORS, *SKIPS)

SPARE = 1 << 16  # rows gathered past `most` before the lowest are let go
Mask = NDArray[np.bool_]
Column = Any  # pa.Array or pa.ChunkedArray


@dataclass(frozen=True)
class Place:
    """A place in the order of rows: a smaller id comes before a larger one where the totals are the same."""

    total: float
    id: str


@dataclass(frozen=True)
class Cutoffs:
    """The last place that each rule with `most` takes; a rule that takes all that it finds has none."""

    best: Place | None = None
    sets: Mapping[str, Place] = field(default_factory=dict)


class Ranking:
    """Finds the cutoffs of a run from all of its shards, shown one after the other, in any order."""

    def __init__(self, part: SelectPart) -> None:
        self._part = part
        self._best = None if part.best_most is None else _Highest(part.best_most)
        self._sets = {name: _Highest(rule.most) for name, rule in part.sets.items() if rule.most is not None}

    @staticmethod
    def is_needed(part: SelectPart) -> bool:
        """Whether any rule is about all rows of a run."""
        return part.best_most is not None or any(rule.most is not None for rule in part.sets.values())

    def add(self, table: pa.Table) -> None:
        """Look at one shard: a table with COLUMNS."""
        rows = _Rows.of(table)
        best = _above_best(rows, self._part) & _picked(rows, self._part)
        if self._best is not None:
            self._best.add(rows, best)
        for name, highest in self._sets.items():
            rule = self._part.sets[name]
            # the highest of a rule's rows that are of the best are the highest of its rows, as far as the best go
            highest.add(rows, _meets(rows, rule) & (best if rule.best else _picked(rows, self._part)))

    def cutoffs(self) -> Cutoffs:
        found = {name: place for name, highest in self._sets.items() if (place := highest.last()) is not None}
        return Cutoffs(self._best.last() if self._best is not None else None, found)


def select(table: pa.Table, part: SelectPart, *, cutoffs: Cutoffs) -> pa.Table:
    """Decide on every row of a table with COLUMNS. Returns select_repeat, select_skip and sets.

    A row that failed or was skipped before is not to be seen (repeat 0), and its reason stays where it is. Of the
    others, the first bound that is not met is the reason. `sets` is null where a row is in none.
    """
    rows = _Rows.of(table)
    unmet, reasons = _first_unmet(rows, part)
    picked = rows.sound & (unmet == 0)
    best = picked & _above_best(rows, part) & rows.up_to(cutoffs.best)
    repeat = np.where(picked, np.where(best, part.best_repeat, 1), 0)
    members = {
        name: (best if rule.best else picked) & _meets(rows, rule) & rows.up_to(cutoffs.sets.get(name))
        for name, rule in part.sets.items()
    }
    return pa.table(
        {
            "select_repeat": pa.array(repeat, pa.int32()),
            "select_skip": pa.array(np.array(reasons, dtype=object)[np.where(rows.sound, unmet, 0)], pa.string()),
            "sets": _lists(members, len(picked)),
        }
    )


def check(part: SelectPart, profile: Profile) -> None:
    """Raise RecipeError if a set asks for a date word that the profile does not have."""
    known = [years.word for years in profile.years]
    for name, rule in part.sets.items():
        if unknown := [word for word in rule.date_words if word not in known]:
            raise RecipeError(
                f"select.sets.{name}.date_words: {unknown[0]!r} is no word of the profile's years; known: "
                f"{', '.join(known) or 'none'}"
            )


@dataclass(frozen=True)
class _Rows:
    """The rows of one table. A missing score is NaN; `sound` is without an error or a skip of earlier stages."""

    id: Column
    source: Column
    date: Column
    aesthetic: NDArray[np.float32]
    quality: NDArray[np.float32]
    sound: Mask
    captioned: Mask

    @classmethod
    def of(cls, table: pa.Table) -> "_Rows":
        aesthetic, quality = (
            pc.fill_null(table[name], np.nan).to_numpy().astype(np.float32, copy=False)
            for name in ("aesthetic_score", "quality_score")
        )
        said = [_true(pc.is_valid(table[name])) for name in (*ERRORS, *SKIPS)]
        return cls(
            id=table["id"],
            source=table["source"],
            date=pc.struct_field(table["words"], "date"),
            aesthetic=aesthetic,
            quality=quality,
            sound=~np.logical_or.reduce(said),
            captioned=_true(pc.greater(pc.binary_length(table["caption"]), 0)),
        )

    @property
    def total(self) -> NDArray[np.float64]:
        return self.aesthetic.astype(np.float64) + self.quality.astype(np.float64)

    def up_to(self, last: Place | None) -> Mask:
        """Which rows lie up to a place; all of them if there is none."""
        if last is None:
            return np.ones(len(self.sound), np.bool_)
        total = self.total
        there = (total == last.total) & _true(pc.less_equal(self.id, last.id))
        return np.asarray((total > last.total) | there, np.bool_)


class _Highest:
    """The `most` highest places of what it is given. Holds 72 bytes for each of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._totals = np.empty(0, np.float64)
        self._ids = np.empty(0, "S64")

    def add(self, rows: _Rows, mask: Mask) -> None:
        ids = rows.id.filter(pa.array(mask)).to_numpy().astype("S64")
        self._totals = np.concatenate([self._totals, rows.total[mask]])
        self._ids = np.concatenate([self._ids, ids])
        if len(self._totals) > self._most + SPARE:
            self._trim()

    def last(self) -> Place | None:
        """The last of the places; None if there are no more rows than are taken."""
        if len(self._totals) < self._most:
            return None
        self._trim()
        return Place(float(self._totals[-1]), self._ids[-1].decode())

    def _trim(self) -> None:
        order = np.lexsort((self._ids, -self._totals))[: self._most]
        self._totals, self._ids = self._totals[order], self._ids[order]


def _picked(rows: _Rows, part: SelectPart) -> Mask:
    unmet, _ = _first_unmet(rows, part)
    return np.asarray(rows.sound & (unmet == 0), np.bool_)


def _first_unmet(rows: _Rows, part: SelectPart) -> tuple[NDArray[np.int64], list[str | None]]:
    """For each row the number of the first bound that it does not meet, or 0; and what each number means."""
    unmet: list[tuple[Mask, str]] = []
    for name, scores, least in (
        ("aesthetic", rows.aesthetic, part.min_aesthetic_score),
        ("quality", rows.quality, part.min_quality_score),
    ):
        if least is not None:
            unmet.append((np.isnan(scores), f"select: no {name} score"))
            unmet.append((scores < np.float32(least), f"select: {name} score below {least:g}"))
    unmet.append((~rows.captioned, "select: no caption"))
    found = np.zeros(len(rows.sound), np.int64)
    for number in range(len(unmet), 0, -1):
        found[unmet[number - 1][0]] = number
    return found, [None, *(reason for _, reason in unmet)]


def _above_best(rows: _Rows, part: SelectPart) -> Mask:
    """A missing score is above nothing."""
    high = (rows.aesthetic > np.float32(part.best_aesthetic_score)) & (
        rows.quality > np.float32(part.best_quality_score)
    )
    return np.asarray(high, np.bool_)


def _meets(rows: _Rows, rule: SetPart) -> Mask:
    """Which rows meet a set's own rules, but for `best` and `most`. A rule with `most` takes no row without scores."""
    meets = np.ones(len(rows.sound), np.bool_)
    for scores, bound in ((rows.aesthetic, rule.aesthetic_above), (rows.quality, rule.quality_above)):
        if bound is not None:
            meets &= scores > np.float32(bound)
    for column, wanted in ((rows.date, rule.date_words), (rows.source, rule.sources)):
        if wanted:
            meets &= _true(pc.is_in(column, pa.array(wanted, pa.string())))
    return meets & ~np.isnan(rows.total) if rule.most is not None else meets


def _true(values: Column) -> Mask:
    """Where it is true; null is false."""
    return np.asarray(pc.fill_null(values, False).to_numpy(), np.bool_)


def _lists(members: Mapping[str, Mask], rows: int) -> Column:
    """For each row the names of the sets that it is in, in the recipe's order; null where it is in none."""
    matrix_RS = np.stack([*members.values(), np.zeros(rows, np.bool_)], axis=1)
    names = np.array([*members, ""], dtype=object)
    sizes = matrix_RS.sum(axis=1)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    values = pa.array(names[np.nonzero(matrix_RS)[1]], pa.string())
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(sizes == 0))
