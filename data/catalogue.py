"""All rows of a run as one file: `catalogue.parquet`, one row for every file that was looked at.

A row's `error` is the first error of any stage, `skip_reason` the first skip; a row with neither is picked. The file is
written some shards at a time, so six million rows never lie in memory together.
Reads: every stage's columns. Writes: pick, repeat, skip_reason, error.

Kind: pure, but for files.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from sote.cluster import logs, storage
from sote.data import ahead, schema
from sote.data.columns import read_columns
from sote.data.shards import Work

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

ERRORS = ("index_error", "decode_error", "score_error", "tag_error", "text_error", "latents_error")
SKIPS = ("index_skip", "decode_skip", "duplicates_skip", "select_skip", "latents_skip")
READ = (
    *(column.name for column in schema.COLUMNS if column.catalogue and column.stage != "catalogue"),
    *(*ERRORS, *SKIPS, "select_repeat"),
)

# A row group is whole shards, this many rows or a few more: about 2.5 kB a row in memory, 1 kB in the file. Readers
# hold one at a time, and the footer of six million rows stays below 2 MB.
GROUP_ROWS: Final = 32_768
# Hardly two rows have the same value: no dictionary is tried for them.
UNLIKE: Final = {"id", "uri", "phash", "keeper", "text", "caption", "duplicate_group", "bytes", "offset"} | {
    "latent_offset",
    "vqgan_offset",
}


@dataclass
class Count:
    """How the rows of a run ended. in = picked + skipped + failed."""

    rows: int = 0
    picked: int = 0
    skips: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def skipped(self) -> int:
        return sum(self.skips.values())

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def __str__(self) -> str:
        return f"{self.rows} files: {self.picked} picked, {self.skipped} skipped, {self.failed} failed"


def write(work: Work) -> Count:
    """Write `catalogue.parquet` of a run all of whose stages are committed; returns how its rows ended."""
    count = Count()
    alike = list(_alike(schema.CATALOGUE))
    with (
        logs.progress("catalogue", work.row_count()) as advance,
        storage.atomic(work.folder.catalogue) as path,
        pq.ParquetWriter(path, schema.CATALOGUE, compression="zstd", use_dictionary=alike) as to,  # type: ignore[arg-type]
    ):
        for table in _groups(_tables(work)):
            to.write_table(table, row_group_size=max(table.num_rows, 1))
            _add(count, table)
            advance(table.num_rows)
    return count


def shard_table(work: Work, shard: int) -> pa.Table:
    """The catalogue's rows of one shard."""
    table = read_columns(work.folder, shard, READ)
    columns: dict[str, Any] = {name: table[name] for name in READ}
    error = pc.coalesce(*(columns[name] for name in ERRORS))
    skip = pc.if_else(pc.is_null(error), pc.coalesce(*(columns[name] for name in SKIPS)), pa.scalar(None, pa.string()))
    pick = pc.and_(pc.is_null(error), pc.is_null(skip))
    columns |= {
        "error": error,
        "skip_reason": skip,
        "pick": pick,
        "repeat": pc.if_else(pick, columns["select_repeat"], pa.scalar(0, pa.int32())),
        "sets": pc.if_else(pick, columns["sets"], pa.scalar(None, schema.NAMES)),
    }
    return pa.table({name: columns[name] for name in schema.CATALOGUE.names}).cast(schema.CATALOGUE)


def _tables(work: Work) -> Iterator[pa.Table]:
    """Every shard's rows in order; the next shard is read while one is written."""
    return ahead.in_order(lambda shard: shard_table(work, shard), range(work.shard_count()), threads=1, ahead=2)


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Shards put together until they are a row group."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(each.num_rows for each in held) >= GROUP_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _alike(wanted: pa.Schema) -> Iterator[str]:
    """The paths of the columns whose values repeat, as Parquet names them: a dictionary makes them small."""
    for column in wanted:
        if column.name not in UNLIKE:
            yield from _leaves(column.name, column.type)


def _leaves(path: str, kind: pa.DataType) -> Iterator[str]:
    if isinstance(kind, pa.ListType | pa.FixedSizeListType):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif isinstance(kind, pa.StructType):
        for at in range(kind.num_fields):
            yield from _leaves(f"{path}.{kind.field(at).name}", kind.field(at).type)
    elif not pa.types.is_floating(kind):
        yield path


def _add(count: Count, table: pa.Table) -> None:
    count.rows += table.num_rows
    count.picked += pc.sum(table["pick"]).as_py() or 0
    for column, reasons in (("skip_reason", count.skips), ("error", count.errors)):
        for line in pc.value_counts(pc.drop_null(table[column])):
            reasons[line["values"].as_py()] += line["counts"].as_py()
