"""Rows to look at: the first few of millions by some order, found in one pass, and fetched from the catalogue after it.

While the catalogue streams by, only the order's columns and the place of a row are kept; the whole rows are read at the
end, from the row groups that they lie in.
Reads: catalogue.parquet, rows/index/.

Kind: pure, but for files.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from sote.cluster import remote
from sote.cluster.storage import RunFolder

Row = dict[str, Any]
Order = Literal["ascending", "descending"]
pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

AT: Final = "at"  # the place of a row in the catalogue, counted from 0: the last key of every order, so none is a draw
# what a row that is shown brings along
SHOWN: Final = (
    *("id", "uri", "source", "format", "width", "height", "year", "rating", "words", "caption", "caption_tags"),
    *("aesthetic_score", "quality_score", "pick", "repeat", "skip_reason", "error"),
    *("duplicate_group", "keeper", "duplicate_distance"),
)
PLACE: Final = ("uri", "source", "shared_stem", "offset", "bytes")


class First:
    """The first `count` rows by the column `by` (then by id and place), of all tables that were added."""

    def __init__(self, count: int, *, by: str, order: Order = "ascending", keep: Sequence[str] = ()) -> None:
        self._count, self._by, self._order = count, by, order
        self._columns = list(dict.fromkeys([by, "id", AT, *keep]))
        self._keys = [(by, order), *((name, "ascending") for name in ("id", AT) if name != by)]
        self._rows: pa.Table | None = None

    def add(self, table: pa.Table) -> None:
        """Look at more rows; of these only the ones that may be among the first are kept."""
        table = table.select(self._columns)
        if self._rows is not None and self._rows.num_rows == self._count:
            last = self._rows[self._by][-1]
            compare = pc.less_equal if self._order == "ascending" else pc.greater_equal
            table = table.filter(compare(table[self._by], last))
        if not table.num_rows or not self._count:
            return
        rows = table if self._rows is None else pa.concat_tables([self._rows, table])
        order = pc.select_k_unstable(rows, k=min(self._count, rows.num_rows), sort_keys=self._keys)
        self._rows = rows.take(order).combine_chunks()

    def table(self) -> pa.Table | None:
        """What was kept, in order; None if nothing came."""
        return self._rows

    def places(self) -> list[int]:
        """The places of the kept rows in the catalogue, in order."""
        return [] if self._rows is None else [int(at) for at in self._rows[AT].to_numpy()]


def fetch(catalogue: Path, places: Collection[int], columns: Sequence[str] = SHOWN) -> dict[int, Row]:
    """The rows at `places`, read from their row groups only. Each knows its place."""
    found: dict[int, Row] = {}
    wanted = np.unique(np.array(sorted(places), dtype=np.int64))
    with pq.ParquetFile(catalogue) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        groups = np.searchsorted(starts, wanted, side="right") - 1
        for group in np.unique(groups):
            inside = wanted[groups == group]
            table = file.read_row_group(int(group), columns=list(columns))
            rows = table.take(pa.array(inside - starts[group])).to_pylist()
            found |= {int(at): row | {AT: int(at)} for at, row in zip(inside, rows, strict=True)}
    return found


@dataclass
class Index:
    """What only the index knows: pictures that share their stem with another, by source, and where bytes lie."""

    shared_stems: Counter[str] = field(default_factory=Counter)
    places: dict[int, Row] = field(default_factory=dict)


def index(folder: RunFolder, places: Iterable[int] = ()) -> Index:
    """Read the index once; the rows at `places` bring `offset` and `bytes`. An index that is gone knows nothing.

    The catalogue holds the rows of the index in the order of its shards.
    """
    found, start, wanted = Index(), 0, np.array(sorted(places), dtype=np.int64)
    for path in remote.fetch_tree(folder.root / "rows" / "index", "*.parquet"):
        with pq.ParquetFile(path) as file:
            there = [name for name in PLACE if name in file.schema_arrow.names]
            table = file.read(columns=there)
        if "shared_stem" in there:
            shared = table.filter(pc.fill_null(table["shared_stem"], False))
            for line in pc.value_counts(shared["source"]):
                found.shared_stems[line["values"].as_py()] += line["counts"].as_py()
        inside = wanted[(wanted >= start) & (wanted < start + table.num_rows)]
        for at, row in zip(inside, table.take(inside - start).to_pylist(), strict=True):
            found.places[int(at)] = row
        start += table.num_rows
    return found
