"""Columns of one shard as an Arrow table, each from the file of the stage that writes it.

Kind: pure, but for files.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sote.cluster import remote
from sote.cluster.storage import RunFolder
from sote.data import schema


def read_columns(folder: RunFolder, shard: int, columns: Iterable[str], *, coded: Iterable[str] = ()) -> pa.Table:
    """The named columns of one shard, in this order.

    `coded` are columns in Parquet's notation (`tags.list.element.name`) whose strings are of few kinds: they are read
    as dictionaries, which is twice as fast.
    """
    wanted = list(columns)
    by_stage: dict[str, list[str]] = {}
    for name in wanted:
        by_stage.setdefault(schema.BY_NAME[name].stage, []).append(name)
    found: dict[str, Any] = {}
    for stage, names in by_stage.items():
        of_it = [path for path in coded if path.partition(".")[0] in names]
        with pq.ParquetFile(remote.known(folder.rows(stage, shard)), read_dictionary=of_it) as file:
            table = file.read(columns=names, use_threads=False)
            rows = file.metadata.num_rows
        for name in names:  # rows of an earlier version have not every column of this one
            there = name in table.column_names
            found[name] = table[name] if there else pa.array([None] * rows, schema.BY_NAME[name].type)
    return pa.table({name: found[name] for name in wanted})
