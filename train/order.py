"""Which images a step sees: a pure function of (seed, step).

All images of a step have one bucket. Each bucket is an endless stream: its images in a new order every epoch, end to
end, cut into batches; so what does not fill a batch is carried over to the next epoch and nothing is lost. The batches
of an epoch, of all buckets, come in a mixed order.

A run of whole epochs ends with one more batch for each bucket that has a remainder. What that batch still lacks is
taken from the start of the bucket's next epoch, so that the effective batch stays what it is. These are the only images
seen more often than repeat x epochs: fewer than one batch for each bucket. In a bucket of fewer images than a batch
holds, that batch shows some image several times.

Random numbers come from Philox generators whose key is the seed and the purpose, and whose counter is the place.

Kind: pure.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from sote.train.recipe import LengthPart
from sote.train.rows import Numbers, Rows

# Purposes of random numbers: never renumber, it would change every run; new ones come last
ORDER_OF_IMAGES, ORDER_OF_BATCHES, WORDS, TIME, NOISE, DROPOUT, ENCODER_SCALE, ENCODER_DROPOUT = range(8)


@dataclass(frozen=True)
class Batch:
    """What one step sees: `rows` [effective_batch] index Rows, in order; all of one bucket."""

    step: int
    epoch: int
    bucket: str
    rows: Numbers


class Order:
    """The batches of a run, by step (from 1)."""

    def __init__(self, rows: Rows, *, effective_batch: int, seed: int) -> None:
        self.size, self.seed, self.buckets = effective_batch, seed, rows.buckets
        seen = np.repeat(np.arange(len(rows)), rows.repeat)
        buckets = rows.bucket[seen].astype(np.uint16)  # numbers that numpy sorts in one go
        ends = np.cumsum(np.bincount(buckets, minlength=len(rows.buckets)))
        self.seen = np.split(seen[np.argsort(buckets, kind="stable")], ends[:-1])
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
        place = before + int(np.count_nonzero(schedule[:within] == bucket))
        return self._cut(step, epoch=epoch, bucket=bucket, place=place)

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
        mixed = self._schedules.get(epoch)
        if mixed is None:
            counts = [(epoch + 1) * len(seen) // self.size - epoch * len(seen) // self.size for seen in self.seen]
            buckets = np.repeat(np.arange(len(counts)), counts)
            mixed = generator(self.seed, ORDER_OF_BATCHES, epoch).permutation(buckets)
            _keep(self._schedules, epoch, mixed, most=2)
        return mixed

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
        mixed = self._orders.get((bucket, turn))
        if mixed is None:
            name = int.from_bytes(hashlib.sha256(self.buckets[bucket].encode()).digest()[:7], "little")
            mixed = generator(self.seed, ORDER_OF_IMAGES, turn, name).permutation(self.seen[bucket])
            _keep(self._orders, (bucket, turn), mixed, most=2 * len(self.seen))
        return mixed


def last_step(length: LengthPart, order: Order) -> int:
    """The step that a run ends with."""
    ends = [length.max_steps, order.steps(length.epochs) if length.epochs is not None else None]
    return min(end for end in ends if end is not None)


def generator(seed: int, purpose: int, first: int, second: int = 0) -> np.random.Generator:
    """The random numbers for one purpose at one place (two numbers) of the run with this seed."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, second, first, 0]))


def _keep(cache: OrderedDict[Any, Any], key: Any, value: Any, *, most: int) -> None:
    """Put into a small cache; the oldest goes."""
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)
