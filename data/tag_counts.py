"""How often each tag, each character and each pair of characters stands in a catalogue.

Six million rows with eighty tags each are counted by dictionary codes, a row group at a time: no tag ever becomes a
Python object but for its name in the dictionary.
Reads: catalogue.parquet (tags).

Kind: pure, but for files.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sote.data.ahead import in_order
from sote.data.words import float32

# read as dictionaries: a tenth of the time of reading 480 million strings
DICTIONARIES: Final = ["tags.list.element.name", "tags.list.element.category"]
CHARACTER: Final = "character"
PAIRS_HELD: Final = 4_000_000  # pairs that wait to be added up before they are, 64 MB
CODE_BITS: Final = 32  # a pair of names is one number: the lower code in the upper half
LOW_CODE: Final = (1 << CODE_BITS) - 1

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """Two characters that stand in one picture, and in how many; `of_first` and `of_second` have one of them."""

    first: str
    second: str
    count: int
    of_first: int
    of_second: int


@dataclass
class TagCounts:
    """Rows by tag, above the thresholds of a caption. `cast` counts rows by their number of characters."""

    tagged: int = 0
    general: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    cast: Counter[int] = field(default_factory=Counter)
    pairs: list[Pair] = field(default_factory=list)


def count_tags(
    catalogue: Path, *, general_threshold: float, character_threshold: float, most_pairs: int = 100
) -> TagCounts:
    """Count the tags of `catalogue` that reach the threshold of their category, as a caption counts them.

    `most_pairs` pairs of characters are kept: the most common; draws go by name.
    """
    tally = _Tally(_floor(general_threshold), _floor(character_threshold))
    with pq.ParquetFile(catalogue, read_dictionary=DICTIONARIES) as file:
        read = partial(file.read_row_group, columns=["tags"])
        for table in in_order(read, range(file.num_row_groups), threads=1, ahead=2):
            for chunk in table["tags"].chunks:
                tally.add(chunk)
    return tally.result(most_pairs)


def _floor(threshold: float) -> float:
    """A tag stored at the threshold's own float32 passes, as in a caption."""
    return min(threshold, float32(threshold))


class _Tally:
    def __init__(self, general_floor: float, character_floor: float) -> None:
        self._floors = (general_floor, character_floor)
        self._codes: dict[str, int] = {}
        self._counts: dict[bool, Ints] = {flag: np.zeros(0, np.int64) for flag in (False, True)}
        self._cast: Counter[int] = Counter()
        self._pairs = _PairSums()
        self._tagged = 0

    def add(self, lists: Any) -> None:
        """Count one chunk of the column: a list of (name, probability, category) for each row."""
        self._tagged += len(lists) - lists.null_count
        tags = lists.flatten()
        names, is_character = self._read(tags)
        probability = tags.field("probability").to_numpy(zero_copy_only=False)
        passes = probability >= np.where(is_character, self._floors[1], self._floors[0])
        lengths = np.diff(_offsets(lists))
        rows = np.repeat(np.arange(len(lists)), lengths)
        for flag in (False, True):
            self._count(names[passes & (is_character == flag)], flag)
        chosen = passes & is_character
        in_row = np.bincount(rows[chosen], minlength=len(lists))
        in_row[lengths == 0] = -1  # no tags at all: not a picture that was looked at
        for number, count in zip(*np.unique(in_row[in_row >= 0], return_counts=True), strict=True):
            self._cast[int(number)] += int(count)
        self._pairs.add(names[chosen], rows[chosen])

    def _read(self, tags: Any) -> tuple[Ints, NDArray[np.bool_]]:
        names, categories = tags.field("name"), tags.field("category")
        words = names.dictionary.to_pylist()
        for name in words:
            if name not in self._codes:
                self._codes[name] = len(self._codes)
        codes = [self._codes[name] for name in words]
        characters = [name == CHARACTER for name in categories.dictionary.to_pylist()]
        return _decoded(codes, names, np.int64), _decoded(characters, categories, np.bool_)

    def _count(self, names: Ints, flag: bool) -> None:
        counts = np.bincount(names, minlength=len(self._codes))
        counts[: len(self._counts[flag])] += self._counts[flag]
        self._counts[flag] = counts

    def result(self, most_pairs: int) -> TagCounts:
        names = list(self._codes)
        general, characters = (_named(self._counts[flag], names) for flag in (False, True))
        often = self._pairs.most_common(most_pairs)
        pairs = [_pair(names[one], names[other], count, characters) for one, other, count in often]
        pairs.sort(key=lambda pair: (-pair.count, pair.first, pair.second))
        return TagCounts(self._tagged, general, characters, self._cast, pairs[:most_pairs])


class _PairSums:
    """Adds up pairs of codes; what waits to be added up is bounded."""

    def __init__(self) -> None:
        self._keys: list[Ints] = []
        self._counts: list[Ints] = []
        self._held = 0

    def add(self, codes: Ints, rows: Ints) -> None:
        """The pairs of codes that stand in one row; `rows` rises."""
        distance = 1
        while (same := rows[distance:] == rows[:-distance]).any():
            one, other = codes[:-distance][same], codes[distance:][same]
            low, high = np.minimum(one, other), np.maximum(one, other)
            keys, counts = np.unique(((low << CODE_BITS) | high)[low != high], return_counts=True)
            self._hold(keys, counts)
            distance += 1

    def _hold(self, keys: Ints, counts: Ints) -> None:
        self._keys.append(keys)
        self._counts.append(counts)
        self._held += len(keys)
        if self._held > PAIRS_HELD + 2 * len(self._keys[0]):
            self._add_up()

    def _add_up(self) -> None:
        keys, where = np.unique(np.concatenate(self._keys), return_inverse=True)
        sums = np.bincount(where, weights=np.concatenate(self._counts)).astype(np.int64)
        self._keys, self._counts, self._held = [keys], [sums], 0

    def most_common(self, most: int) -> list[tuple[int, int, int]]:
        """The pairs with the highest counts, in no order: `most` of them, and all that draw with the last."""
        if not self._keys or not most:
            return []
        self._add_up()
        keys, counts = self._keys[0], self._counts[0]
        often = counts >= np.partition(counts, -min(most, len(counts)))[-min(most, len(counts))]
        keys, counts = keys[often], counts[often]
        return list(zip((keys >> CODE_BITS).tolist(), (keys & LOW_CODE).tolist(), counts.tolist(), strict=True))


def _pair(one: str, other: str, count: int, rows: Counter[str]) -> Pair:
    first, second = min(one, other), max(one, other)
    return Pair(first, second, count, rows[first], rows[second])


def _offsets(lists: Any) -> Ints:
    """Where each row's tags begin and end in `lists.flatten()`. Null rows have none."""
    lengths = np.array(pa.compute.fill_null(pa.compute.list_value_length(lists), 0), dtype=np.int64)
    return np.concatenate([[0], np.cumsum(lengths)])


def _decoded(values: list[Any], column: Any, dtype: Any) -> NDArray[Any]:
    """The values of a dictionary column whose dictionary stands for `values`."""
    table = np.array(values, dtype=dtype)
    return table[column.indices.to_numpy(zero_copy_only=False)] if len(column) else table[:0]


def _named(counts: Ints, names: list[str]) -> Counter[str]:
    return Counter({names[at]: int(counts[at]) for at in np.flatnonzero(counts)})
