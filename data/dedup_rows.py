"""What decides about duplicates, read from all shards into arrays: 32 bytes a hash, and no Python object for a row.

Reads: the columns in FAILED, FACTS and LISTS, the hash that the recipe names, thumb_deviation, thumb.

Kind: wiring.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sote.cluster import logs, remote
from sote.cluster.errors import RunFailed
from sote.data import bands, dedup, schema
from sote.data.dedup import Bytes, Flags, Ints, Numbers
from sote.data.shards import Work

FAILED = ("index_error", "decode_error", "index_skip", "decode_skip")
SCORES = ("aesthetic_score", "quality_score")
FACTS = ("id", "pixel_id", "width", "height", "format", "bytes", "post_date", *SCORES)
# What rows inherit: by the name that it has afterwards, the column of what the sidecar says
LISTS = {"characters": "post_characters", "series": "post_series", "sidecar_tags": "post_tags"}

Column = Any  # a pyarrow.Array, whose stubs ask for the type of what is in it
Columns = dict[str, Column]


class Reader:
    """What decides about duplicates, of all rows of the run in their order. `starts`: the first row of each shard."""

    def __init__(self, work: Work) -> None:
        self.work, self.part, total = work, work.recipe.duplicates, work.row_count()
        self.starts = np.zeros(work.shard_count() + 1, np.int64)
        self.id, self._pixel_id, self._hash = (np.zeros((total, schema.HASH_BYTES), np.uint8) for _ in range(3))
        self.sound, self._compared, self.lossless = (np.zeros(total, np.bool_) for _ in range(3))
        self.pixels, self.bytes = np.zeros(total, np.int64), np.zeros(total, np.int64)
        self.metadata, self.day = np.zeros(total, np.int32), np.zeros(total, np.int32)
        self.score = np.zeros(total, np.float32)
        self._lists = tuple(LISTS.values()) if "metadata" in self.part.keep else ()
        with logs.progress("duplicates: read", total) as advance:
            for shard in range(work.shard_count()):
                count = self._add(shard, int(self.starts[shard]))
                self.starts[shard + 1] = self.starts[shard] + count
                advance(count)
        _, self.pixels_number = _numbered(self._pixel_id, self.sound)
        del self._pixel_id

    def distinct_hashes(self) -> Bytes:
        """The different hashes that are to be compared: [U, 32]. May be called once: the rows' own are let go."""
        first, self.hash_number = _numbered(self._hash, self._compared)
        hashes = self._hash[first]
        del self._hash
        return hashes

    def candidates(self) -> dedup.Candidates:
        """The rows, once `distinct_hashes` has numbered their hashes."""
        return dedup.Candidates(
            id=self.id,
            pixels_number=self.pixels_number,
            hash_number=self.hash_number,
            pixels=self.pixels,
            bytes=self.bytes,
            lossless=self.lossless,
            score=self.score,
            metadata=self.metadata,
            day=self.day,
        )

    def _add(self, shard: int, start: int) -> int:
        """Take over one shard, whose first row is `start`; returns how many rows it has."""
        columns = read(self.work, shard, (*FAILED, *FACTS, self.part.hash, "thumb_deviation", *self._lists))
        count = len(columns["id"])
        rows = slice(start, start + count)
        failed = np.logical_or.reduce([_is_there(columns[name]) for name in FAILED])
        self.sound[rows] = ~failed & _is_there(columns["id"]) & _is_there(columns["pixel_id"])
        for name, into in (("id", self.id), ("pixel_id", self._pixel_id)):
            digits = "".join(columns[name].filter(pa.array(self.sound[rows])).to_pylist())
            into[rows][self.sound[rows]] = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, into.shape[1])
        self._add_hashes(columns, shard, rows)
        self._add_facts(columns, rows)
        return count

    def _add_facts(self, columns: Columns, rows: slice) -> None:
        self.pixels[rows] = _numbers(columns["width"]) * _numbers(columns["height"])
        self.bytes[rows] = _numbers(columns["bytes"])
        self.lossless[rows] = _flags(pc.is_in(columns["format"], pa.array(sorted(dedup.LOSSLESS))))
        self.score[rows] = np.sum([_floats(columns[name]) for name in SCORES], axis=0)
        dates = columns["post_date"].dictionary_encode()
        days = [*(dedup.day_of(date) for date in dates.dictionary.to_pylist()), dedup.UNKNOWN_DAY]
        self.day[rows] = np.array(days)[_numbers(dates.indices, null=len(days) - 1)]
        self.metadata[rows] = self.day[rows] != dedup.UNKNOWN_DAY
        for name in self._lists:
            self.metadata[rows] += _numbers(pc.list_value_length(columns[name]))

    def _add_hashes(self, columns: Columns, shard: int, rows: slice) -> None:
        """Hashes of what is compared by them: no flat pictures (DCT hash), no nearly empty hashes (gradient hash)."""
        sound, column = self.sound[rows], columns[self.part.hash]
        if (sound & ~_is_there(column)).any():
            raise RunFailed(
                f"duplicates: shard {shard} was decoded without the hash {self.part.hash!r} that duplicates.hash asks "
                "for; run again with --stage decode"
            )
        hashes = _matrix(column, schema.HASH_BYTES)
        if self.part.hash == "phash":
            informative = self._deviation(columns["thumb_deviation"], shard, sound) >= dedup.FLAT_DEVIATION
        else:
            ones = np.bitwise_count(hashes).sum(axis=1, dtype=np.int64)
            informative = np.minimum(ones, bands.HASH_BITS - ones) >= dedup.FEWEST_BITS
        self._compared[rows] = sound & informative
        self._hash[rows][sound & informative] = hashes[sound & informative]

    def _deviation(self, column: Column, shard: int, sound: Flags) -> NDArray[np.float32]:
        """The column, or what the thumbnails say where a sound row lacks it."""
        if _is_there(column)[sound].all():
            return _floats(column)
        return dedup.deviation(_matrix(read(self.work, shard, ("thumb",))["thumb"], schema.THUMB_BYTES))


class Thumbs:
    """The thumbnails of some rows, kept in a file."""

    def __init__(self, work: Work, starts: Ints, file: IO[bytes]) -> None:
        self._work, self._starts, self._file = work, starts, file
        self._rows: Ints = np.empty(0, np.int64)

    def fetch(self, rows: Ints) -> None:
        """Copy the thumbnails of these rows, ascending, out of the shards."""
        self._rows = rows
        for shard, places in by_shard(rows, self._starts):
            column = read(self._work, shard, ("thumb",))["thumb"]
            self._file.write(_matrix(column, schema.THUMB_BYTES)[places].tobytes())
        self._file.flush()

    def of(self, rows: Ints) -> Bytes:
        """The thumbnails [M, 768] of some of the rows that were fetched."""
        # mapped anew each time, so that only what is used at once counts as this process's memory
        shape = (len(self._rows), schema.THUMB_BYTES)
        mapped = np.memmap(self._file, np.uint8, mode="r", shape=shape)
        return np.asarray(mapped[np.searchsorted(self._rows, rows)])


@contextlib.contextmanager
def thumbs(work: Work, starts: Ints) -> Iterator[Thumbs]:
    """Thumbnails in a file of the run folder that has no name, so that even a killed process leaves none behind."""
    with tempfile.TemporaryFile(dir=work.folder.root) as file:
        yield Thumbs(work, starts, file)


def read(work: Work, shard: int, names: Sequence[str]) -> Columns:
    """Columns of one shard, each from the stage that writes it."""
    found: Columns = {}
    for stage in dict.fromkeys(schema.BY_NAME[name].stage for name in names):
        columns = [name for name in names if schema.BY_NAME[name].stage == stage]
        with pq.ParquetFile(remote.known(work.folder.rows(stage, shard))) as file:
            table = file.read(columns=columns, use_threads=False)
        found |= {name: table[name].combine_chunks() for name in columns}
    return found


def by_shard(rows: Ints, starts: Ints) -> Iterator[tuple[int, Ints]]:
    """Rows of the run, ascending -> the shards that have some of them, with their places there."""
    cuts = np.searchsorted(rows, starts)
    for shard in np.flatnonzero(np.diff(cuts)).tolist():
        yield shard, rows[cuts[shard] : cuts[shard + 1]] - starts[shard]


def _numbered(values_NB: Bytes, chosen: Flags) -> tuple[Ints, Numbers]:
    """`bands.distinct` of the chosen rows; the others, which must be all zeros, get the number -1."""
    first, number = bands.distinct(values_NB)
    number[~chosen] = -1
    return first, number


def _is_there(column: Column) -> Flags:
    return _flags(column.is_valid())


def _flags(column: Column) -> Flags:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.bool_)


def _matrix(column: Column, width: int) -> Bytes:
    """A column of fixed-size bytes as [n, width]; a row that is null holds anything."""
    cells = np.frombuffer(column.buffers()[1], np.uint8)
    return cells[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)


def _numbers(column: Column, *, null: int = 0) -> Ints:
    return np.asarray(pc.fill_null(column, null).to_numpy(zero_copy_only=False), np.int64)


def _floats(column: Column) -> NDArray[np.float32]:
    """A column of numbers, null as NaN."""
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float32)
