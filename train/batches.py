"""Which images a step sees, with which caption, time and noise: a pure function of (seed, step, place in the batch).

All images of a step have one bucket. Each bucket is an endless stream: its images in a new order every epoch, end to
end, cut into batches; so what does not fill a batch is carried over to the next epoch and nothing is lost. A run of
whole epochs ends with one more batch for each bucket that has a remainder, filled up with the start of another epoch.

Random numbers come from Philox generators whose key is the seed and the purpose, and whose counter is the place.

Reads: catalogue.parquet, latents/<shard> (safetensors).
Kind: actor.
"""

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from sote.cluster.errors import SourceError
from sote.train.recipe import BatchPart, CaptionsPart, LengthPart

COLUMNS = ["id", "caption", "caption_tags", "pick", "repeat", "bucket", "latent_shard", "latent_offset"]
SETS = "sets"
SEPARATOR = ", "  # between the tags of a caption
OPEN_FILES = 64  # latent files held open at a time

Strings: TypeAlias = "pa.ChunkedArray[Any]"
Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.integer[Any]]]

# Purposes of random numbers: never renumber, it would change every run
ORDER_OF_IMAGES, ORDER_OF_BATCHES, WORDS, TIME, NOISE, DROPOUT = range(6)


@dataclass(frozen=True)
class Rows:
    """The picked rows of a catalogue that have latents. Arrays are aligned; `bucket` indexes `buckets`."""

    id: Strings
    caption: Strings
    tags: Strings
    shard: Strings
    offset: Numbers
    repeat: Numbers
    bucket: Numbers
    buckets: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True)
class Batch:
    """What one step sees: `rows` [effective_batch] index Rows, in order; all of one bucket."""

    step: int
    epoch: int
    bucket: str
    rows: Numbers


@dataclass(frozen=True)
class Micro:
    """What a worker computes at a time. `seed` is for the model's own dropout."""

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    time_B: Tensor
    captions: list[str]
    seed: int


def read_rows(curated: Path, *, chosen: str | None = None) -> Rows:
    """Read the picked rows of a curate run, or those of its set `chosen`, where each counts once. Rows are sorted by
    id: the order of curation does not matter.

    Raises SourceError: no catalogue, nothing picked, no such set, or picked rows without caption, bucket or latents.
    """
    path = curated / "catalogue.parquet"
    if not path.is_file():
        raise SourceError(f"{curated}: data.curated: has no catalogue.parquet; run `sote curate` on it to the end")
    columns = COLUMNS if chosen is None else [*COLUMNS, SETS]
    if lacking := sorted(set(columns) - set(pq.read_schema(path).names)):
        raise SourceError(f"{path}: data.curated: has no column {lacking[0]!r}; curate again")
    table = pq.read_table(path, columns=columns, filters=pc.field("pick"))
    if not table.num_rows:
        raise SourceError(f"{path}: data.curated: not one row is picked; loosen the recipe's [select] and curate again")
    if chosen is not None:
        table = _members(path, table, chosen)
    for name in ("caption", "bucket", "latent_shard", "latent_offset"):
        if missing := table[name].null_count:
            raise SourceError(
                f"{path}: column {name}: missing in {missing} of {table.num_rows} picked rows; curate again"
            )
    if pc.min(table["repeat"]).as_py() < 1:
        raise SourceError(f"{path}: column repeat: a picked row is repeated less than once; curate again")
    table = _roomy(table).sort_by("id")
    buckets = tuple(sorted(str(name) for name in table["bucket"].unique().to_pylist()))
    return Rows(
        id=table["id"],
        caption=table["caption"],
        tags=table["caption_tags"],
        shard=table["latent_shard"],
        offset=table["latent_offset"].to_numpy(),
        repeat=table["repeat"].to_numpy(),
        bucket=pc.index_in(table["bucket"], pa.array(buckets)).to_numpy(),
        buckets=buckets,
    )


def _members(path: Path, picked: pa.Table, chosen: str) -> pa.Table:
    """The rows of one set, each once. Raises SourceError if it has none, naming the sets that have."""
    sets = picked[SETS].combine_chunks()
    names = pc.list_flatten(sets)
    places = pc.filter(pc.list_parent_indices(sets), pc.equal(names, pa.scalar(chosen)))
    if not len(places):
        known = ", ".join(sorted(str(name) for name in names.unique().to_pylist())) or "none"
        raise SourceError(f"{path}: data.set: no picked row is of the set {chosen!r}; sets with rows: {known}")
    table = picked.take(places)
    once = pa.array(np.ones(table.num_rows, dtype=np.int32))
    return table.set_column(table.column_names.index("repeat"), "repeat", once)


def _roomy(table: pa.Table) -> pa.Table:
    """The table with 64-bit string offsets: sorting joins the chunks of a column, and six million captions are more
    than the 2 GiB that 32-bit offsets reach."""
    roomy = {"caption": pa.large_string(), "caption_tags": pa.large_list(pa.large_string())}
    return table.cast(pa.schema([(field.name, roomy.get(field.name, field.type)) for field in table.schema]))


class Order:
    """The batches of a run, by step (from 1)."""

    def __init__(self, rows: Rows, *, effective_batch: int, seed: int) -> None:
        self.size, self.seed, self.buckets = effective_batch, seed, rows.buckets
        seen = np.repeat(np.arange(len(rows)), rows.repeat)
        self.seen = [seen[rows.bucket[seen] == bucket] for bucket in range(len(rows.buckets))]
        self._orders: OrderedDict[tuple[int, int], Numbers] = OrderedDict()
        self._schedules: OrderedDict[int, Numbers] = OrderedDict()

    def images(self) -> int:
        """Images of one epoch, repeats counted."""
        return sum(len(seen) for seen in self.seen)

    def steps(self, epochs: int) -> int:
        """Steps of a run of `epochs` epochs: all full batches, and one for each bucket with a remainder."""
        return sum(-(-epochs * len(seen) // self.size) for seen in self.seen)

    def batch(self, step: int, *, epochs: int | None = None) -> Batch:
        """The batch of `step`; `epochs` is where the run ends, if it ends so."""
        number = step - 1
        if epochs is not None and number >= (full := self._full(epochs)):
            left = [bucket for bucket, seen in enumerate(self.seen) if epochs * len(seen) % self.size]
            bucket = left[number - full]
            return self._cut(step, epoch=epochs - 1, bucket=bucket, place=epochs * len(self.seen[bucket]) // self.size)
        epoch = self._epoch(number)
        schedule = self._schedule(epoch)
        within = number - self._full(epoch)
        bucket = int(schedule[within])
        before = epoch * len(self.seen[bucket]) // self.size
        return self._cut(step, epoch=epoch, bucket=bucket, place=before + int(np.sum(schedule[:within] == bucket)))

    def _full(self, epochs: int) -> int:
        """Full batches of the first `epochs` epochs."""
        return sum(epochs * len(seen) // self.size for seen in self.seen)

    def _epoch(self, number: int) -> int:
        """The epoch that batch `number` (from 0) is in."""
        low, high = 0, 1
        while self._full(high) <= number:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._full(middle) <= number else (low, middle)
        return low

    def _schedule(self, epoch: int) -> Numbers:
        """The bucket of each batch of the epoch, mixed."""
        if epoch not in self._schedules:
            counts = [(epoch + 1) * len(seen) // self.size - epoch * len(seen) // self.size for seen in self.seen]
            buckets = np.repeat(np.arange(len(counts)), counts)
            _keep(self._schedules, epoch, generator(self.seed, ORDER_OF_BATCHES, epoch).permutation(buckets), most=2)
        return self._schedules[epoch]

    def _cut(self, step: int, *, epoch: int, bucket: int, place: int) -> Batch:
        """Batch `place` of the endless stream of `bucket`."""
        seen = self.seen[bucket]
        places = np.arange(place * self.size, (place + 1) * self.size)
        turns, offsets = places // len(seen), places % len(seen)
        rows = np.empty(self.size, dtype=np.int64)
        for turn in np.unique(turns):
            rows[turns == turn] = self._turn(bucket, int(turn))[offsets[turns == turn]]
        return Batch(step=step, epoch=epoch, bucket=self.buckets[bucket], rows=rows)

    def _turn(self, bucket: int, turn: int) -> Numbers:
        """The images of `bucket` in the order of its epoch `turn`."""
        if (bucket, turn) not in self._orders:
            name = int.from_bytes(hashlib.sha256(self.buckets[bucket].encode()).digest()[:7], "little")
            mixed = generator(self.seed, ORDER_OF_IMAGES, turn, name).permutation(self.seen[bucket])
            _keep(self._orders, (bucket, turn), mixed, most=2 * len(self.seen))
        return self._orders[bucket, turn]


class Loader:
    """Turns places of a batch into what the model computes on."""

    def __init__(self, rows: Rows, *, latents: Path, part: BatchPart, captions: CaptionsPart) -> None:
        self.rows, self.latents, self.part, self.captions = rows, latents, part, captions
        self._files: OrderedDict[str, Any] = OrderedDict()

    def micro(self, batch: Batch, index: int) -> Micro:
        """Micro-batch `index` of `batch`: the same whichever worker computes it."""
        size = self.part.micro_batch
        places = range(index * size, (index + 1) * size)
        seed = self.part.seed
        latents_BCHW = torch.stack([self._latents(int(batch.rows[place])) for place in places])
        noise = [generator(seed, NOISE, batch.step, place) for place in places]
        shape = latents_BCHW.shape[1:]
        uniform = [generator(seed, TIME, batch.step, place).random() for place in places]
        return Micro(
            latents_BCHW=latents_BCHW,
            noise_BCHW=torch.stack([torch.from_numpy(one.standard_normal(shape, np.float32)) for one in noise]),
            time_B=torch.tensor(uniform, dtype=torch.float32),
            captions=[self.caption(int(batch.rows[place]), step=batch.step, place=place) for place in places],
            seed=int(generator(seed, DROPOUT, batch.step, index).integers(2**62)),
        )

    def caption(self, row: int, *, step: int, place: int) -> str:
        """The caption of `row` at one place of a run: its tags shuffled, or nothing at all."""
        random = generator(self.part.seed, WORDS, step, place)
        if random.random() < self.captions.dropout:
            return ""
        tags = self.rows.tags[row].as_py()
        if not self.captions.shuffle or not tags:
            return str(self.rows.caption[row].as_py())
        return SEPARATOR.join(tags[number] for number in random.permutation(len(tags)))

    def _latents(self, row: int) -> Tensor:
        """Latents [C,H,W] of one row in float32."""
        shard = str(self.rows.shard[row].as_py())
        if shard not in self._files:
            _keep(self._files, shard, safe_open(self.latents / shard, framework="pt"), most=OPEN_FILES)
        self._files.move_to_end(shard)
        offset = int(self.rows.offset[row])
        one: Tensor = self._files[shard].get_slice("latents")[offset : offset + 1]
        return one[0].float()


def last_step(length: LengthPart, order: Order) -> int:
    """The step that a run ends with."""
    ends = [length.max_steps, order.steps(length.epochs) if length.epochs is not None else None]
    return min(end for end in ends if end is not None)


def generator(seed: int, purpose: int, first: int, second: int = 0) -> np.random.Generator:
    """The random numbers for one purpose at one place (two numbers) of the run with this seed."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, second, first, 0]))


def latent_facts(path: Path) -> dict[str, Any]:
    """Metadata of a latent file: compression, encoder_sha256, bucket, dtype, ids; and `shape` [N,C,H,W]."""
    with safe_open(path, framework="np") as file:
        facts: dict[str, Any] = dict(file.metadata() or {})
        facts["shape"] = tuple(file.get_slice("latents").get_shape())
    facts["ids"] = json.loads(facts.get("ids", "[]"))
    return facts


def _keep(cache: OrderedDict[Any, Any], key: Any, value: Any, *, most: int) -> None:
    """Put into a small cache; the oldest goes."""
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)
