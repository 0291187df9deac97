"""What a catalogue holds, counted as it streams by: outcomes, scores, words, years, sets, and a few rows to look at.

The catalogue never lies in memory whole. The rows to look at are chosen by score, by name or by id, so that the same
catalogue always gives the same ones; ids are hashes, so those of the smallest ids are a fair sample.
Reads: catalogue.parquet, rows/index/.

Kind: pure, but for files.
"""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sote.cluster import remote
from sote.cluster.errors import RunFolderError
from sote.cluster.storage import RunFolder
from sote.data import examples, schema
from sote.data.examples import AT, First, Index, Row
from sote.data.tag_counts import TagCounts, count_tags

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

BATCH_ROWS: Final = 32_768
SCORE_BINS: Final = 50  # of 0.02 each
SCORES: Final = ("aesthetic_score", "quality_score")
WORDS: Final = tuple(schema.WORDS.field(at).name for at in range(schema.WORDS.num_fields))
REASONS_KEPT: Final = 200  # different reasons of which rows are kept to look at; all are counted
UNEXPLAINED: Final = "catalogue: neither picked nor with a reason"
# A row that left before it was judged by its scores is no example of a word: its keeper is.
JUDGED: Final = ("select:", "latents:")
COUNTED: Final = (
    *("id", "uri", "source", "year", "rating", "words", "caption", "pick", "repeat", "skip_reason", "error"),
    *("bucket", "latent_shard", "duplicate_group", "keeper", "duplicate_distance", "sets", *SCORES),
)


@dataclass(frozen=True)
class Limits:
    """How many rows to look at are kept of each sort, and from which probability on a tag is counted."""

    samples: int = 24
    refused: int = 24
    groups: int = 12
    members: int = 4  # of one group
    ends: int = 4  # the highest and the lowest of each word
    captions: int = 20_000  # their tokens are counted, at about 7 s
    general_threshold: float = 0.35
    character_threshold: float = 0.50


@dataclass
class Scores:
    """A histogram over 0..1 of all rows that have the score and of the picked ones."""

    every: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))
    picked: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))


@dataclass(frozen=True)
class Ends:
    """The rows of one word with the highest scores, the highest first, and those with the lowest, the lowest last.

    No row is among both. `count` is of all rows of the word that were judged by their scores.
    """

    count: int
    highest: list[Row]
    lowest: list[Row]


@dataclass(frozen=True)
class Group:
    """Some rows of one duplicate group, the keeper first, then the farthest from it; `size` counts all."""

    number: int
    size: int
    members: list[Row]


@dataclass
class Survey:
    """The counts. `outcomes` is by (source, reason); the reason of a picked row is None."""

    limits: Limits
    rows: int = 0
    outcomes: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    repeats: Counter[int] = field(default_factory=Counter)  # picked rows by how often an epoch sees them
    sets: Counter[str] = field(default_factory=Counter)
    scores: dict[str, Scores] = field(default_factory=lambda: {name: Scores() for name in SCORES})
    words: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in WORDS})
    ratings: Counter[str] = field(default_factory=Counter)
    years: Counter[int] = field(default_factory=Counter)
    undated: int = 0  # picked rows without a year
    buckets: Counter[str] = field(default_factory=Counter)
    distances: Counter[int] = field(default_factory=Counter)  # bits to the keeper, of rows that are not it
    group_count: int = 0
    grouped: int = 0  # rows in a duplicate group
    tags: TagCounts = field(default_factory=TagCounts)
    index: Index = field(default_factory=Index)
    # rows to look at
    samples: list[Row] = field(default_factory=list)
    refused: dict[str, list[Row]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    ends: dict[tuple[str, str], Ends] = field(default_factory=dict)  # by score and word
    captions: list[Row] = field(default_factory=list)  # id, uri and caption of picked rows

    @property
    def picked(self) -> int:
        return sum(count for (_, reason), count in self.outcomes.items() if reason is None)

    @property
    def images(self) -> int:
        """Images of one epoch."""
        return sum(times * count for times, count in self.repeats.items())

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


def survey(folder: RunFolder, limits: Limits) -> Survey:
    """Read the catalogue of a run and count.

    Raises RunFolderError if another version of Sote wrote it.
    """
    remote.fetch(folder.catalogue)
    refuse_other_version(folder)
    found, chosen, start = Survey(limits), _Chosen(limits), 0
    with ThreadPoolExecutor(1) as beside, pq.ParquetFile(folder.catalogue) as file:
        tags = beside.submit(
            count_tags,
            folder.catalogue,
            general_threshold=limits.general_threshold,
            character_threshold=limits.character_threshold,
        )
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(COUNTED)):
            table = pa.Table.from_batches([batch])
            places = pa.array(np.arange(start, start + table.num_rows))
            _add(found, chosen, table.append_column(AT, places))
            start += table.num_rows
        found.tags = tags.result()
    chosen.fill(found, folder)
    return found


def refuse_other_version(folder: RunFolder) -> None:
    """Raise RunFolderError if the catalogue lacks a column: it is another version's."""
    there = pq.read_schema(folder.catalogue).names
    if lacking := [name for name in schema.CATALOGUE.names if name not in there]:
        raise RunFolderError(
            f"{remote.named(folder.catalogue)}: has no column {lacking[0]!r}, so another version of Sote wrote it; "
            "run `sote curate` again"
        )


def _add(found: Survey, chosen: "_Chosen", table: pa.Table) -> None:
    reason = pc.coalesce(table["error"], table["skip_reason"], pa.scalar(UNEXPLAINED))
    is_pick = pc.fill_null(table["pick"], False)
    table = table.append_column("reason", pc.if_else(is_pick, pa.scalar(None, pa.string()), reason))
    picked = table.filter(is_pick)
    found.rows += table.num_rows
    for line in table.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist():
        found.outcomes[line["source"], line["reason"]] += line["count_all"]
    _count(found.repeats, picked["repeat"])
    _count(found.sets, pc.list_flatten(picked["sets"]))
    found.undated += picked["year"].null_count
    _add_scores(found, table, is_pick)
    _add_words(found, table)
    chosen.add(table, picked, is_pick)


def _add_scores(found: Survey, table: pa.Table, is_pick: Any) -> None:
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


def _count(into: Counter[Any], values: Any) -> None:
    for line in pc.value_counts(pc.drop_null(values)):
        into[line["values"].as_py()] += line["counts"].as_py()


class _Chosen:
    """The places of the rows to look at, while the catalogue streams by."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._samples = First(limits.samples, by="id")
        self._captions = First(limits.captions, by="id", keep=("uri", "caption"))
        self._refused: dict[str, First] = {}
        self._ends: dict[tuple[str, str], tuple[First, First]] = {}
        self._judged: Counter[tuple[str, str]] = Counter()
        self._groups: list[pa.Table] = []

    def add(self, table: pa.Table, picked: pa.Table, is_pick: Any) -> None:
        self._samples.add(picked)
        self._captions.add(picked.filter(pc.is_valid(picked["caption"])))
        self._add_refused(table.filter(pc.invert(is_pick)))
        self._add_ends(table)
        self._add_groups(table.filter(pc.is_valid(table["duplicate_group"])))

    def _add_refused(self, refused: pa.Table) -> None:
        for reason in sorted(pc.unique(refused["reason"]).to_pylist()):
            if reason in self._refused or len(self._refused) < REASONS_KEPT:
                kept = self._refused.setdefault(reason, First(self._limits.refused, by="uri"))
                kept.add(refused.filter(pc.equal(refused["reason"], reason)))

    def _add_ends(self, table: pa.Table) -> None:
        stayed = pc.is_null(table["reason"])
        for stage in JUDGED:
            stayed = pc.or_(stayed, pc.fill_null(pc.starts_with(table["reason"], stage), False))
        table = table.filter(stayed)
        for score in SCORES:
            words = pc.struct_field(table["words"], score.removesuffix("_score"))
            for word in pc.unique(pc.drop_null(words)).to_pylist():
                rows = table.filter(pc.and_(pc.equal(words, word), pc.is_finite(table[score])))
                self._judged[score, word] += rows.num_rows
                count = self._limits.ends
                ends = First(count, by=score, order="descending"), First(count, by=score)
                for end in self._ends.setdefault((score, word), ends):
                    end.add(rows)

    def _add_groups(self, members: pa.Table) -> None:
        skipped = pc.fill_null(pc.starts_with(members["skip_reason"], "duplicates:"), False)
        kept = pc.and_(pc.fill_null(pc.equal(members["id"], members["keeper"]), False), pc.invert(skipped))
        distance = pc.fill_null(members["duplicate_distance"], 0)
        columns = {"group": members["duplicate_group"], "at": members[AT], "distance": distance, "kept": kept}
        self._groups.append(pa.table(columns))

    def fill(self, found: Survey, folder: RunFolder) -> None:
        """Put the rows into the survey."""
        groups = _chosen_groups(found, pa.concat_tables(self._groups), self._limits) if self._groups else []
        firsts = [self._samples, *self._refused.values(), *(end for ends in self._ends.values() for end in ends)]
        places = {at for first in firsts for at in first.places()} | {at for _, _, some in groups for at in some}
        rows = examples.fetch(folder.catalogue, places)
        found.index = examples.index(folder, places)
        for at, row in rows.items():
            place = found.index.places.get(at, {})
            row |= {name: place.get(name) for name in ("offset", "bytes")}
        captions = self._captions.table()
        found.captions = captions.to_pylist() if captions is not None else []
        found.samples = [rows[at] for at in self._samples.places()]
        found.refused = {reason: [rows[at] for at in kept.places()] for reason, kept in self._refused.items()}
        found.ends = {
            key: _ends(rows, *map(First.places, ends), count=self._judged[key]) for key, ends in self._ends.items()
        }
        found.groups = [Group(number, size, [rows[at] for at in some]) for number, size, some in groups]


def _ends(rows: dict[int, Row], highest: list[int], lowest: list[int], *, count: int) -> Ends:
    """Both ends of a word; of few rows the lower half counts as the lowest."""
    both = [*highest, *(at for at in reversed(lowest) if at not in highest)]
    half = len(both) - len(both) // 2 if len(both) < 2 * len(highest) else len(highest)
    return Ends(count, [rows[at] for at in both[:half]], [rows[at] for at in both[half:]])


def _chosen_groups(found: Survey, members: pa.Table, limits: Limits) -> list[tuple[int, int, list[int]]]:
    """Number, size and some places of the groups to look at: two thirds the farthest apart, the rest the largest."""
    number, at, distance, kept = (members[name].to_numpy() for name in ("group", "at", "distance", "kept"))
    numbers, where, sizes = np.unique(number, return_inverse=True, return_counts=True)
    found.group_count, found.grouped = len(numbers), len(number)
    found.distances.update(distance[~kept].tolist())
    if not len(numbers):
        return []
    farthest = np.zeros(len(numbers), np.int64)
    np.maximum.at(farthest, where, distance)
    apart = np.lexsort((numbers, -farthest))[: limits.groups - limits.groups // 3]
    large = [group for group in np.lexsort((numbers, -sizes))[: limits.groups] if group not in apart]
    chosen = [*apart, *large[: limits.groups - len(apart)]]
    inside = np.flatnonzero(np.isin(where, chosen))
    order = inside[np.lexsort((at[inside], -distance[inside], ~kept[inside], where[inside]))]
    places = {group: at[order[where[order] == group]][: limits.members].tolist() for group in chosen}
    return [(int(numbers[group]), int(sizes[group]), places[group]) for group in chosen]


def is_kept(row: Row) -> bool:
    """Is this row its group's keeper? Files with the same bytes share an id: only one of them was not skipped."""
    return row["id"] == row["keeper"] and not str(row["skip_reason"]).startswith("duplicates:")


def named(counts: Iterable[tuple[str, int]], most: int | None = None) -> list[tuple[str, int]]:
    """The most common first; draws go by name. Underscores become blanks."""
    ordered = sorted(counts, key=lambda item: (-item[1], item[0]))[:most]
    return [(name.replace("_", " "), count) for name, count in ordered]
