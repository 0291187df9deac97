"""Latent shards, here or wherever fsspec reaches: what they say of themselves, and single rows of them.

A shard is one safetensors file with the tensor `latents` [N,C,h,w]. Its header is read once; of its data only the rows
that are asked for. Rows near each other are read at once, and those of a server all at the same time.

Shapes: N rows, C channels, h and w latent cells.
Reads: latents/<bucket>/<shard>.safetensors, latents/vqgan/<bucket>/<shard>.safetensors.
Kind: actor.
"""

import bisect
import errno
import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sote.cluster.errors import SourceError
from sote.data import files
from sote.data.latentfile import DTYPES, STAGE_A, STAGE_C, VQGAN_STRIDE, Kind, latent_cells
from sote.train import nearby, retries
from sote.train.nearby import Nearby
from sote.train.recipe import DataPart
from sote.train.rows import Places, Rows

FOLDER = "latents"  # of a curate run
HEADER_BYTES = 1 << 13  # read at first: the header of a shard of a hundred rows
MOST_HEADER_BYTES = 100_000_000  # safetensors' own limit
GAP_BYTES = 1 << 18  # on a server, rows so near are read at once: less than a request takes
AT_ONCE = 512  # headers asked for at a time
ASKING = 32  # threads that ask for sizes: they only wait
TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
SAYS = {
    STAGE_C: ("compression", "encoder_sha256", "bucket", "dtype"),
    STAGE_A: ("scale", "vqgan_sha256", "bucket", "dtype"),
}
AGAIN = "run `sote curate` on it to the end"


@dataclass(frozen=True)
class LatentFacts:
    """What all latent files of one kind have in common. `compression` is pixels per cell: 4 for Stage A's."""

    compression: float
    encoder_sha256: str
    dtype: str
    channels: int

    def __str__(self) -> str:
        return f"compression {self.compression:g}, encoder {self.encoder_sha256[:10]}, {self.dtype}"


@dataclass(frozen=True)
class Shard:
    """The header of one file: where its data begins and ends, and what it says of itself."""

    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]
    says: dict[str, str]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * TYPES[self.dtype].itemsize


class Store:
    """The latent files of a curate run (its path or URI). Those at a URI are brought here as long as a `free_share` of
    the disk is left. For any number of threads."""

    def __init__(
        self,
        curated: str | Path,
        *,
        waits: Sequence[float] = retries.WAITS_SECONDS,
        free_share: float = nearby.FREE_SHARE,
    ) -> None:
        self.folder = files.join(files.absolute(str(curated)), FOLDER)
        self._waits = waits
        self._shards: dict[str, Shard] = {}
        self._nearby = Nearby(self.folder, free_share=free_share)

    def uri(self, shard: str) -> str:
        """Where a file lies."""
        return files.join(self.folder, shard)

    def facts(self, shard: str) -> Shard:
        """What a file says of itself. Raises SourceError: missing or not a latent file; RunFailed: a network."""
        return self.all_facts([shard])[shard]

    def all_facts(self, shards: Iterable[str]) -> dict[str, Shard]:
        """The same of many, read at the same time. Each is read once."""
        wanted = list(dict.fromkeys(shards))
        new = [shard for shard in wanted if shard not in self._shards]
        for start in range(0, len(new), AT_ONCE):
            some = new[start : start + AT_ONCE]
            heads = self._ranges([(shard, 0, HEADER_BYTES) for shard in some])
            lengths = [int.from_bytes(head[:8], "little") for head in heads]
            long = [at for at, length in enumerate(lengths) if HEADER_BYTES - 8 < length <= MOST_HEADER_BYTES]
            for at, head in zip(long, self._ranges([(some[at], 0, lengths[at] + 8) for at in long]), strict=True):
                heads[at] = head
            self._shards |= {shard: _parsed(head, self.uri(shard)) for shard, head in zip(some, heads, strict=True)}
        return {shard: self._shards[shard] for shard in wanted}

    def sizes(self, shards: Sequence[str]) -> list[int | None]:
        """Sizes of files in bytes, as far as their server says them."""
        uris = [self.uri(shard) for shard in shards]
        with ThreadPoolExecutor(ASKING) as pool:
            return retries.each(
                lambda left: list(pool.map(lambda at: retries.or_error(files.size, uris[at]), left)),
                uris,
                waits=self._waits,
            )

    def read(self, places: Places, rows: Sequence[int]) -> Tensor:
        """The latents [N,C,h,w] of rows of one bucket, in float32 and without the scale that Stage A's may have.

        Raises SourceError: missing, broken or too short a file; RunFailed where a network does not get well.
        """
        names = [places.shards[places.which[row]] for row in rows]
        offsets = [int(places.offset[row]) for row in rows]
        self._nearby.bring(names)
        facts = self.all_facts(names)
        are_here = all(files.is_local(self._nearby.uri(name)) for name in names)
        spans = _spans(facts, names, offsets, gap=0 if are_here else GAP_BYTES)
        parts = self._ranges([(name, start, end - start) for name, start, end in spans])
        starts = [(name, start) for name, start, _ in spans]
        found = []
        for name, offset in zip(names, offsets, strict=True):
            shard = facts[name]
            begin = shard.begin + offset * shard.row_bytes
            at = bisect.bisect_right(starts, (name, begin)) - 1
            data = parts[at][begin - starts[at][1] :][: shard.row_bytes]
            if len(data) < shard.row_bytes:
                raise SourceError(f"{self.uri(name)}: data.curated: ends before its row {offset}; {AGAIN}")
            values_Chw = torch.frombuffer(bytearray(data), dtype=TYPES[shard.dtype]).reshape(shard.shape[1:])
            found.append(values_Chw.float() / float(shard.says.get("scale", 1.0)))
        return torch.stack(found)

    def _ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Parts of files: name, start, length."""
        uris = [self._nearby.uri(name) for name, _, _ in wanted]

        def read(left: Sequence[int]) -> list[bytes | OSError]:
            starts, lengths = [wanted[at][1] for at in left], [wanted[at][2] for at in left]
            return files.read_ranges([uris[at] for at in left], starts, lengths)

        try:
            return retries.each(read, uris, waits=self._waits)
        except FileNotFoundError as error:
            raise SourceError(f"{error.filename}: data.curated: no such latent file; {AGAIN}") from None
        except OSError as error:
            why = error.strerror or errno.errorcode.get(error.errno or 0, str(error))
            raise SourceError(f"{error.filename}: data.curated: cannot be read ({why})") from None


def check(rows: Rows, store: Store, part: DataPart) -> LatentFacts:
    """Look at every latent file that a row names, of Stage C and of Stage A; returns what those of Stage C have in
    common (of Stage A, if only those are read).

    Raises SourceError: missing, cut off, not of one kind, of another bucket or of another compression than asked for.
    """
    found = [
        _check(rows, places, store, kind) for places, kind in ((rows.vqgan, STAGE_A), (rows.latents, STAGE_C)) if places
    ]
    if not found:
        raise ValueError("these rows are not of latents")
    facts = found[-1]
    if rows.latents and part.compression and not math.isclose(part.compression, facts.compression, rel_tol=1e-3):
        raise SourceError(
            f"{store.folder}: data.compression: is {part.compression:g}, but these latents are of "
            f"{facts.compression:g} pixels a cell; set it to that, or curate again with latents.compression = "
            f"{part.compression:g}"
        )
    return facts


def _check(rows: Rows, places: Places, store: Store, kind: Kind) -> LatentFacts:
    last, buckets = _named(rows, places, store)
    order = sorted(range(len(places.shards)), key=lambda at: places.shards[at])
    shards = store.all_facts(places.shards[at] for at in order)
    sizes = store.sizes(list(shards))
    found: dict[LatentFacts, list[str]] = {}
    for at, size, (name, shard) in zip(order, sizes, shards.items(), strict=True):
        facts = _facts(shard, store.uri(name), kind)
        _refuse(shard, store.uri(name), last=int(last[at]), bucket=rows.buckets[buckets[at]], facts=facts)
        if size is not None and size < shard.end:
            raise SourceError(f"{store.uri(name)}: data.curated: is cut off, {size} bytes of {shard.end}; {AGAIN}")
        found.setdefault(facts, []).append(name)
    if len(found) > 1:
        (one, first), (two, second) = sorted(found.items(), key=lambda item: len(item[1]))[:2]
        raise SourceError(
            f"{store.uri(first[0])}: data.curated: latents of two kinds: this is {one}, {second[0]} is {two}; "
            f"curate again"
        )
    return next(iter(found))


def _named(rows: Rows, places: Places, store: Store) -> tuple[Any, Any]:
    """Of each file that the rows name: the highest offset, and the bucket."""
    last, least, most = (np.zeros(len(places.shards), np.int64) for _ in range(3))
    least += len(rows.buckets)
    np.maximum.at(last, places.which, places.offset)
    np.minimum.at(least, places.which, rows.bucket)
    np.maximum.at(most, places.which, rows.bucket)
    if len(mixed := np.flatnonzero(least != most)):
        at = int(mixed[0])
        one, two = rows.buckets[least[at]], rows.buckets[most[at]]
        raise SourceError(
            f"{store.uri(places.shards[at])}: data.curated: the catalogue has it hold "
            f"buckets {one} and {two}; curate again"
        )
    return last, most


def _refuse(shard: Shard, uri: str, *, last: int, bucket: str, facts: LatentFacts) -> None:
    """Raise SourceError if a file is not what the catalogue takes it for."""
    count, _, *cells = shard.shape
    if shard.says["bucket"] != bucket:
        raise SourceError(
            f"{uri}: data.curated: is of bucket {shard.says['bucket']}, the catalogue says {bucket}; curate again"
        )
    width, height = (latent_cells(int(side), facts.compression) for side in bucket.split("x"))
    if cells != [height, width]:
        raise SourceError(
            f"{uri}: data.curated: has latents of {cells[1]}x{cells[0]} cells, bucket {bucket} at compression "
            f"{facts.compression:g} has {width}x{height}; curate again"
        )
    if count <= last:
        raise SourceError(
            f"{uri}: data.curated: holds {count} latents, the catalogue names number {last}; curate again"
        )


def _facts(shard: Shard, uri: str, kind: Kind) -> LatentFacts:
    if missing := [name for name in SAYS[kind] if name not in shard.says]:
        raise SourceError(f"{uri}: data.curated: does not say its {missing[0]}, no latent file of Sote; curate again")
    if DTYPES.get(shard.says["dtype"]) != shard.dtype:
        raise SourceError(
            f"{uri}: data.curated: says that it is {shard.says['dtype']}, but holds {shard.dtype}; curate again"
        )
    if kind is STAGE_A:
        return LatentFacts(float(VQGAN_STRIDE), shard.says["vqgan_sha256"], shard.says["dtype"], shard.shape[1])
    return LatentFacts(
        float(shard.says["compression"]), shard.says["encoder_sha256"], shard.says["dtype"], shard.shape[1]
    )


def _parsed(head: bytes, uri: str) -> Shard:
    """The header at the beginning of a file. Raises SourceError if there is none."""
    length = int.from_bytes(head[:8], "little")
    try:
        if len(head) < 8 + length:
            raise ValueError
        header = json.loads(head[8 : 8 + length])
        tensor, says = header["latents"], header.get("__metadata__", {})
        first, last = tensor["data_offsets"]
        shard = Shard(8 + length + first, 8 + length + last, tensor["dtype"], tuple(tensor["shape"]), says)
        if len(shard.shape) != 4 or shard.row_bytes * shard.shape[0] != last - first:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise SourceError(f"{uri}: data.curated: is no latent file of Sote, or a broken one; curate again") from None
    says.pop("ids", None)
    return shard


def _spans(
    facts: dict[str, Shard], names: Sequence[str], offsets: Sequence[int], *, gap: int
) -> list[tuple[str, int, int]]:
    """The parts of files to read for rows: name, first byte, last byte + 1; those with at most `gap` between as one."""
    spans: list[tuple[str, int, int]] = []
    for name, offset in sorted(set(zip(names, offsets, strict=True))):
        start = facts[name].begin + offset * facts[name].row_bytes
        end = start + facts[name].row_bytes
        if spans and spans[-1][0] == name and start - spans[-1][2] <= gap:
            spans[-1] = (name, spans[-1][1], end)
        else:
            spans.append((name, start, end))
    return spans
