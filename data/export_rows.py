"""The rows that an export is made of: those that a curate run picked, or those of one of its sets, streamed.

The catalogue is read piece by piece, and beside it, row for row, what the run's stages told each other of the same
rows: where the bytes lie in a tar, and what the sidecars said.
Reads: catalogue.parquet; of rows/index and rows/duplicates the columns in BESIDE, where the run folder has them.

Kind: pure, but for reading files.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from sote.cluster import remote
from sote.cluster.errors import SourceError
from sote.cluster.storage import RunFolder

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

BESIDE = {
    "index": ("uri", "offset", "bytes", "artist", "title", "short_title"),
    "duplicates": ("date", "characters", "series"),
}
ADDED = tuple(name for names in BESIDE.values() for name in names if name != "uri")
# Of the catalogue, what an export has no use for
LEFT = ("phash", "duplicate_group", "keeper", "duplicate_distance", "skip_reason", "error")
BATCH_ROWS = 4096

Row = dict[str, Any]


def count(run: Path, *, chosen: str | None) -> int:
    """How many rows `picked` will give.

    Raises SourceError: no catalogue, nothing picked, or no picked row is of the set `chosen`.
    """
    path = RunFolder(run).catalogue
    try:
        remote.fetch(path).stat()
    except OSError:
        raise SourceError(f"{remote.named(run)}: has no catalogue.parquet; run `sote curate` to the end") from None
    found, names, file = 0, set[str](), pq.ParquetFile(path)
    if "sets" not in file.schema_arrow.names:
        raise SourceError(f"{path}: has no column 'sets'; curate again")
    for batch in file.iter_batches(BATCH_ROWS, columns=["pick", "sets"]):
        table = pa.Table.from_batches([batch])
        names.update(pc.unique(pc.list_flatten(table.filter(table["pick"])["sets"])).to_pylist())
        found += _wanted(table, chosen).num_rows
    if found == 0 and chosen is not None:
        known = ", ".join(sorted(names)) or "none"
        raise SourceError(f"{path}: no picked row is of the set {chosen!r}; sets with rows: {known}")
    if found == 0:
        raise SourceError(f"{path}: not one row is picked; loosen the recipe's [select] and curate again")
    return found


def picked(run: Path, *, chosen: str | None) -> Iterator[Row]:
    """The picked rows of a curate run in the catalogue's order; those of the set `chosen` have a repeat of 1."""
    for table in _tables(RunFolder(run)):
        for row in _wanted(table, chosen).to_pylist():
            yield row if chosen is None else row | {"repeat": 1}


def _wanted(table: pa.Table, chosen: str | None) -> pa.Table:
    table = table.filter(table["pick"])
    if chosen is None:
        return table
    sets = table["sets"].combine_chunks()
    places = pc.filter(pc.list_parent_indices(sets), pc.equal(pc.list_flatten(sets), pa.scalar(chosen)))
    return table.take(places)


def _tables(folder: RunFolder) -> Iterator[pa.Table]:
    """The catalogue in pieces, each with the columns of BESIDE; null where the run folder has no rows any more."""
    file = pq.ParquetFile(remote.fetch(folder.catalogue))
    names = [name for name in file.schema_arrow.names if name not in LEFT]
    pieces = (pa.Table.from_batches([batch]) for batch in file.iter_batches(BATCH_ROWS, columns=names))
    shards = [int(path.stem) for path in remote.paths(folder.root / "rows" / "index", "*.parquet")]
    if not shards:
        for piece in pieces:
            yield _with(piece, {name: pa.nulls(piece.num_rows) for name in ADDED})
        return
    waiting = next(pieces)
    for beside in _beside(folder, shards):
        while waiting.num_rows < beside.num_rows and (more := next(pieces, None)) is not None:
            waiting = pa.concat_tables([waiting, more])
        table, waiting = waiting.slice(0, beside.num_rows), waiting.slice(beside.num_rows)
        if not table["uri"].equals(beside["uri"]):
            raise SourceError(f"{folder.catalogue}: is not of the rows in {folder.root / 'rows'}; curate again")
        yield _with(table, {name: beside[name] for name in ADDED})


def _beside(folder: RunFolder, shards: Sequence[int]) -> Iterator[pa.Table]:
    """The columns of BESIDE, shard by shard."""
    for shard in shards:
        files = [(remote.fetch(folder.rows(stage, shard)), list(names)) for stage, names in BESIDE.items()]
        found = [pq.read_table(file, columns=names) for file, names in files]
        yield pa.table({name: table[name] for table in found for name in table.column_names})


def _with(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table
