"""What a catalogue holds, counted in one pass: outcomes, scores, words, tags, years, and a few rows to look at.

The catalogue is read batch by batch and never lies in memory whole. The rows to look at are chosen by name or by id,
so that the same catalogue always gives the same ones.
Reads: catalogue.parquet.

Kind: pure, but for files.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sote.data import schema

Row = dict[str, Any]
Column = Any  # pa.Array or pa.ChunkedArray
pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

BATCH_ROWS: Final = 32_768  # at about 2 kB a row with its tags, one batch is about 64 MB
SCORE_BINS: Final = 50  # of 0.02 each
SCORES: Final = ("aesthetic_score", "quality_score")
WORDS: Final = tuple(schema.WORDS.field(at).name for at in range(schema.WORDS.num_fields))
REASONS_KEPT: Final = 200  # different reasons of which rows are kept to look at; all are counted
UNEXPLAINED: Final = "catalogue: neither picked nor with a reason"

# the columns of rows that are kept to look at
SHOWN: Final = (
    *("id", "uri", "source", "width", "height", "year", "rating", "words", "caption", "caption_tags", "repeat"),
    *SCORES,
)
SHOWN_REFUSED: Final = ("id", "uri", "rating")
SHOWN_GROUPS: Final = (
    "id",
    "uri",
    "phash",
    "duplicate_group",
    "keeper",
    "skip_reason",
    "error",
    "width",
    "height",
    "format",
    "rating",
)


@dataclass(frozen=True)
class Limits:
    """How many rows to look at are kept of each sort, and from which probability on a tag is counted."""

    samples: int = 24
    refused: int = 24
    groups: int = 12
    general_threshold: float = 0.35
    character_threshold: float = 0.50


@dataclass
class Scores:
    """A histogram over 0..1 of all rows that have the score and of the picked ones."""

    every: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))
    picked: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))


@dataclass
class Survey:
    """The counts. `outcomes` is by (source, reason); the reason of a picked row is None."""

    limits: Limits
    rows: int = 0
    outcomes: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    repeats: int = 0  # images of one epoch
    scores: dict[str, Scores] = field(default_factory=lambda: {name: Scores() for name in SCORES})
    words: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in WORDS})
    ratings: Counter[str] = field(default_factory=Counter)
    years: Counter[int] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    tagged: int = 0  # rows with tags
    buckets: Counter[str] = field(default_factory=Counter)
    samples: list[Row] = field(default_factory=list)
    refused: dict[str, list[Row]] = field(default_factory=dict)
    groups: dict[int, list[Row]] = field(default_factory=dict)
    group_numbers: set[int] = field(default_factory=set)
    grouped: int = 0  # rows in a duplicate group

    @property
    def picked(self) -> int:
        return sum(count for (_, reason), count in self.outcomes.items() if reason is None)

    def reasons(self, source: str | None = None) -> Counter[str]:
        """How many rows are not picked, by reason; of one source, or of all."""
        found: Counter[str] = Counter()
        for (where, reason), count in self.outcomes.items():
            if reason is not None and source in (None, where):
                found[reason] += count
        return found

    def sources(self) -> list[str]:
        """The sources in order of name."""
        return sorted({source for source, _ in self.outcomes})

    def refused_rows(self) -> list[tuple[str, Row]]:
        """At most `limits.refused` rows that are not picked, with their reasons: of each reason in turn."""
        found: list[tuple[str, Row]] = []
        for turn in range(self.limits.refused):
            found += [(reason, rows[turn]) for reason, rows in sorted(self.refused.items()) if turn < len(rows)]
        return sorted(found[: self.limits.refused], key=lambda item: item[0])


def survey(catalogue: Path, limits: Limits) -> Survey:
    """Read `catalogue` once and count."""
    found = Survey(limits)
    with pq.ParquetFile(catalogue) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            _add(found, pa.Table.from_batches([batch]))
    return found


def _add(found: Survey, table: pa.Table) -> None:
    reason = pc.coalesce(table["error"], table["skip_reason"], pa.scalar(UNEXPLAINED))
    is_pick = pc.fill_null(table["pick"], False)
    table = table.append_column("reason", pc.if_else(is_pick, pa.scalar(None, pa.string()), reason))
    found.rows += table.num_rows
    for line in table.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist():
        found.outcomes[line["source"], line["reason"]] += line["count_all"]
    found.repeats += pc.sum(table["repeat"]).as_py() or 0
    _add_scores(found, table, is_pick)
    _add_words(found, table)
    _add_tags(found, table)
    _add_samples(found, table.filter(is_pick))
    _add_refused(found, table.filter(pc.invert(is_pick)))
    _add_groups(found, table.filter(pc.is_valid(table["duplicate_group"])).select(SHOWN_GROUPS))


def _add_scores(found: Survey, table: pa.Table, is_pick: Column) -> None:
    picked = is_pick.to_numpy()
    for name, scores in found.scores.items():
        values = pc.fill_null(table[name], np.nan).to_numpy()
        there = np.isfinite(values)
        scores.every += np.histogram(values[there], bins=SCORE_BINS, range=(0, 1))[0]
        scores.picked += np.histogram(values[there & picked], bins=SCORE_BINS, range=(0, 1))[0]


def _add_words(found: Survey, table: pa.Table) -> None:
    for name in WORDS:
        _count(found.words[name], pc.struct_field(table["words"], name))
    _count(found.years, table["year"])
    _count(found.buckets, table["bucket"].filter(pc.is_valid(table["latent_shard"])))
    ratings = table["rating"].filter(pc.is_valid(table["rating"]))
    parts = [pc.fill_null(pc.struct_field(ratings, name), np.nan).to_numpy() for name in schema.RATINGS]
    values_NR = np.stack(parts, axis=1)
    likeliest = np.argmax(values_NR[np.isfinite(values_NR).all(axis=1)], axis=1)
    for at, count in enumerate(np.bincount(likeliest, minlength=len(schema.RATINGS))):
        found.ratings[schema.RATINGS[at]] += int(count)


def _add_tags(found: Survey, table: pa.Table) -> None:
    """Count the tags that reach the threshold of their category, as a caption counts them."""
    found.tagged += table.num_rows - table["tags"].null_count
    tags = pc.list_flatten(table["tags"])
    category, probability = pc.struct_field(tags, "category"), pc.struct_field(tags, "probability")
    limits = found.limits
    floor = pc.if_else(pc.equal(category, "character"), limits.character_threshold, limits.general_threshold)
    _count(
        found.tags, pc.struct_field(tags, "name").filter(pc.greater_equal(pc.cast(probability, pa.float64()), floor))
    )


def _count(into: Counter[Any], values: Column) -> None:
    for line in pc.value_counts(pc.drop_null(values)):
        into[line["values"].as_py()] += line["counts"].as_py()


def _add_samples(found: Survey, picked: pa.Table) -> None:
    """Keep the picked rows of the smallest ids: ids are hashes, so this is a fair sample, and always the same one."""
    rows = _first(picked, SHOWN, by="id", count=found.limits.samples)
    found.samples = sorted([*found.samples, *rows], key=lambda row: str(row["id"]))[: found.limits.samples]


def _add_refused(found: Survey, refused: pa.Table) -> None:
    for reason in sorted(pc.unique(refused["reason"]).to_pylist()):
        if reason not in found.refused and len(found.refused) >= REASONS_KEPT:
            continue
        of_it = refused.filter(pc.equal(refused["reason"], reason))
        rows = [*found.refused.get(reason, []), *_first(of_it, SHOWN_REFUSED, by="uri", count=found.limits.refused)]
        found.refused[reason] = sorted(rows, key=lambda row: str(row["uri"]))[: found.limits.refused]


def _first(table: pa.Table, columns: Sequence[str], *, by: str, count: int) -> list[Row]:
    """The `count` rows of `table` with the smallest value in the column `by`."""
    if not table.num_rows or not count:
        return []
    order = pc.select_k_unstable(table, k=min(count, table.num_rows), sort_keys=[(by, "ascending")])
    return list(table.select(list(columns)).take(order).to_pylist())


def _add_groups(found: Survey, members: pa.Table) -> None:
    """Count the groups, and keep the members of the groups with the smallest numbers."""
    found.group_numbers.update(pc.unique(members["duplicate_group"]).to_pylist())
    found.grouped += members.num_rows
    wanted = sorted({*found.groups, *pc.unique(members["duplicate_group"]).to_pylist()})[: found.limits.groups]
    kept = members.filter(pc.is_in(members["duplicate_group"], pa.array(wanted, pa.int64())))
    found.groups = {number: found.groups.get(number, []) for number in wanted}
    for row in kept.to_pylist():
        found.groups[row["duplicate_group"]].append(row)


def distances(group: Iterable[Row]) -> list[tuple[Row, int | None]]:
    """The rows of a duplicate group, keeper first, each with its Hamming distance to the keeper in bits.

    The distance is None where a hash or the keeper is not there.
    """
    rows = sorted(group, key=lambda row: (not is_kept(row), str(row["uri"])))
    kept = rows[0]["phash"] if rows and is_kept(rows[0]) else None
    return [(row, _bits(kept, row["phash"])) for row in rows]


def is_kept(row: Row) -> bool:
    """Is this row its group's keeper? Files with the same bytes share an id: only one of them was not skipped."""
    return row["id"] == row["keeper"] and not str(row["skip_reason"]).startswith("duplicates:")


def _bits(one: bytes | None, other: bytes | None) -> int | None:
    if one is None or other is None:
        return None
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()
