"""What rows that go hand on to the row that is kept: their names of characters, series and tags.

Millions of rows may go, so their names are kept as numbers into one vocabulary, 4 bytes each.

Shapes: G rows that go.

Kind: pure.
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]


class Names:
    """One column of lists of names, row by row, of which some are asked for once all are added."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._pieces: list[Numbers] = [np.empty(0, np.int32)]
        self._lengths: list[Numbers] = [np.empty(0, np.int32)]

    def add(self, lists: Any) -> None:
        """Add rows: an Arrow array of lists of strings, in which null is as good as empty."""
        encoded = lists.flatten().dictionary_encode()
        number = [self._number.setdefault(name, len(self._number)) for name in encoded.dictionary.to_pylist()]
        self._pieces.append(np.array(number, np.int32)[encoded.indices.to_numpy()])
        self._lengths.append(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))

    @functools.cached_property
    def lengths(self) -> Numbers:
        """How many names each row has."""
        return np.concatenate(self._lengths)

    def of(self, rows: Ints) -> list[str]:
        """The names of these rows, one after the other."""
        ends, lengths = self._ends, self.lengths
        return [
            self._names[number]
            for row in rows.tolist()
            for number in self._numbers[ends[row] - lengths[row] : ends[row]].tolist()
        ]

    @functools.cached_property
    def _numbers(self) -> Numbers:
        return np.concatenate(self._pieces)

    @functools.cached_property
    def _ends(self) -> Ints:
        return np.cumsum(self.lengths, dtype=np.int64)

    @functools.cached_property
    def _names(self) -> list[str]:
        return list(self._number)


class Inheritance:
    """Which rows go to which keeper, and the names that they bring along, column by column."""

    def __init__(self, keeper_G: Numbers, columns: tuple[str, ...]) -> None:
        self._order = np.argsort(keeper_G, kind="stable")  # of one keeper, in the order of the rows
        self._keeper = keeper_G[self._order]
        self._names = {column: Names() for column in columns}

    def add(self, columns: dict[str, Any]) -> None:
        """Add the lists (Arrow arrays) of the next rows that go, in their order."""
        for column, names in self._names.items():
            names.add(columns[column])

    def heirs(self, column: str, keepers: Ints) -> NDArray[np.bool_]:
        """To which of these keepers somebody brings a name."""
        brought = self._brought[column]
        first, last = self._places(keepers)
        return brought[last] > brought[first]

    def merged(self, column: str, keepers: Ints, own: Iterable[list[str] | None]) -> list[list[str]]:
        """For each keeper its own names, then those that others bring, each once."""
        places = zip(*self._places(keepers), own, strict=True)
        names = self._names[column]
        return [
            list(dict.fromkeys([*(mine or []), *names.of(self._order[first:last])])) for first, last, mine in places
        ]

    @functools.cached_property
    def _brought(self) -> dict[str, Ints]:
        """Of each column, how many names are brought by all before each place of the order."""
        return {
            column: np.cumsum(np.append(0, names.lengths[self._order]), dtype=np.int64)
            for column, names in self._names.items()
        }

    def _places(self, keepers: Ints) -> tuple[Ints, Ints]:
        wanted = keepers.astype(self._keeper.dtype)  # of one type, or all would be converted at every search
        return np.searchsorted(self._keeper, wanted), np.searchsorted(self._keeper, wanted, side="right")
