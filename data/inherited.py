"""What rows that go hand on to the row that is kept: their names of characters, series and tags.

Millions of rows may go, so their names are kept as numbers into one vocabulary, 4 bytes each.

Shapes: G rows that go.

Kind: pure.
"""

from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]


class Names:
    """One column of lists of names, row by row, of which some are asked for at a time."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._pieces: list[Numbers] = [np.empty(0, np.int32)]
        self._lengths: list[Numbers] = [np.empty(0, np.int32)]
        self._ends: Ints | None = None
        self._names: list[str] = []

    def add(self, lists: Any) -> None:
        """Add rows: an Arrow array of lists of strings, in which null is as good as empty."""
        encoded = lists.flatten().dictionary_encode()
        number = [self._number.setdefault(name, len(self._number)) for name in encoded.dictionary.to_pylist()]
        self._pieces.append(np.array(number, np.int32)[encoded.indices.to_numpy()])
        self._lengths.append(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
        self._ends = None

    def of(self, rows: Ints) -> list[str]:
        """The names of these rows, one after the other."""
        if self._ends is None:
            self._pieces, self._lengths = [np.concatenate(self._pieces)], [np.concatenate(self._lengths)]
            self._ends, self._names = np.cumsum(self._lengths[0], dtype=np.int64), list(self._number)
        ends, lengths, numbers = self._ends, self._lengths[0], self._pieces[0]
        return [
            self._names[number] for row in rows for number in numbers[ends[row] - lengths[row] : ends[row]].tolist()
        ]


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

    def merged(self, column: str, keeper: int, own: list[str] | None) -> list[str] | None:
        """The keeper's own names, then those that others bring, each once; `own` if nobody brings any."""
        first, last = np.searchsorted(self._keeper, [keeper, keeper + 1])
        brought = self._names[column].of(self._order[first:last])
        return list(dict.fromkeys([*(own or []), *brought])) or own
