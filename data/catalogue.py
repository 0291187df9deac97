"""All rows of a run as one file: `catalogue.parquet`, one row for every file that was looked at.

A row's `error` is the first error of any stage, `skip_reason` the first skip; a row with neither is picked. The file is
written shard by shard, so six million rows never lie in memory together.
Reads: every stage's columns. Writes: pick, repeat, skip_reason, error.

Kind: pure, but for files.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sote.cluster import storage
from sote.data import schema
from sote.data.shards import Work

ERRORS = ("index_error", "decode_error", "score_error", "tag_error", "text_error", "latents_error")
SKIPS = ("index_skip", "decode_skip", "duplicates_skip", "select_skip", "latents_skip")


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
    with (
        storage.atomic(work.folder.catalogue) as path,
        pq.ParquetWriter(path, schema.CATALOGUE, compression="zstd") as to,
    ):
        for shard in range(work.shard_count()):
            table = shard_table(work, shard)
            to.write_table(table)
            _add(count, table)
    return count


def shard_table(work: Work, shard: int) -> pa.Table:
    """The catalogue's rows of one shard."""
    columns: dict[str, Any] = {}
    for stage in dict.fromkeys(column.stage for column in schema.COLUMNS if column.stage != "catalogue"):
        table = pq.read_table(work.folder.rows(stage, shard))
        columns |= {name: table[name] for name in table.column_names}
    error = pc.coalesce(*(columns[name] for name in ERRORS))
    skip = pc.if_else(pc.is_null(error), pc.coalesce(*(columns[name] for name in SKIPS)), pa.scalar(None, pa.string()))
    pick = pc.and_(pc.is_null(error), pc.is_null(skip))
    repeat = pc.if_else(pick, columns["select_repeat"], pa.scalar(0, pa.int32()))
    columns |= {"error": error, "skip_reason": skip, "pick": pick, "repeat": repeat}
    return pa.table({name: columns[name] for name in schema.CATALOGUE.names}).cast(schema.CATALOGUE)


def _add(count: Count, table: pa.Table) -> None:
    count.rows += table.num_rows
    count.picked += pc.sum(table["pick"]).as_py() or 0
    count.skips.update(reason for reason in table["skip_reason"].to_pylist() if reason)
    count.errors.update(reason for reason in table["error"].to_pylist() if reason)
