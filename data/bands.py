"""All pairs of hashes within a radius, exactly, at any number of hashes.

Two 256-bit hashes that differ in at most r bits agree in at least one of r + 1 bands of bits (pigeonhole), so an
equi-join over each band finds every pair. Bit j lies in band j mod (r + 1): with contiguous bands, pictures on plain
backgrounds fall into giant buckets (facts: 4,700 times as many candidates). A band's bits are folded into 32 bits, and
sorted together with the number of the hash; what falls into one bucket is compared by XOR and popcount. Large buckets
are searched again on the bits that are not yet used, all of them in one go.

Shapes: N rows, U distinct hashes, M pairs, B bytes of a hash (32), W its 64-bit words (4).

Kind: pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

HASH_BITS = 256
# Rows: larger ones are split (measured on skewed 1 M, radius 8: 2.6 s; with 16 3.2 s, with 128 5.1 s, with 512 9.5 s)
LARGEST_BUCKET = 64
DEEPEST_SPLIT = 2  # after that, the rows of a bucket are compared one by one
CHUNK = 1 << 17  # rows or pairs worked on at once: arrays of 1 MiB
LOW = np.uint64(32)  # the lower half of a packed number is the row, the upper half its key
ROW = np.uint64(0xFFFFFFFF)
# Odd numbers without a pattern: the first 64 bits of sha256(b"0"), sha256(b"1"), ... with the lowest bit set
FACTORS = np.array(
    [0x5FECEB66FFC86F39, 0x6B86B273FF34FCE1, 0xD4735E3A265E16EF, 0x4E07408562BEDB8B, 0x4B227777D4DD1FC7],
    dtype=np.uint64,
)


def pairs(hashes_UB: Bytes, *, radius: int) -> Ints:
    """All pairs of hashes that differ in at most `radius` bits: [M, 3] of i < j and distance, sorted. Exact."""
    return together([band_pairs(hashes_UB, band=band, radius=radius) for band in range(radius + 1)])


def together(found: list[Ints]) -> Ints:
    """The pairs of all bands, sorted: one array whatever the order in which the bands were searched."""
    near = np.concatenate(found)
    return near[np.lexsort((near[:, 1], near[:, 0]))]


def band_pairs(hashes_UB: Bytes, *, band: int, radius: int) -> Ints:
    """The pairs within `radius` of which `band` (0..radius) is the first band that they agree in: [M, 3].

    Every pair belongs to exactly one band, so that bands can be searched apart from each other and put together.
    """
    search = _Search(_words(hashes_UB), radius)
    every = _Part(None, None, np.arange(HASH_BITS), agreed=np.zeros(4, np.uint64), earlier=(), depth=0)
    return np.concatenate([np.empty((0, 3), np.int64), *_joined(search, every, band)])


def distinct(rows_NB: Bytes) -> tuple[Ints, NDArray[np.int32]]:
    """Number the different values of rows of 32 bytes: [U] the first row of each, in order; [N] each row's number."""
    words = _words(rows_NB)
    first = np.arange(len(words), dtype=np.int32)
    left: NDArray[np.uint32] | None = None
    while left is None or len(left):
        packed = _sorted_keys(words, left, None, np.full(4, ~np.uint64(0)))
        starts, lengths = _runs(packed)
        # of each bucket the first row stands for those equal to it; others, which share but the key, go round again
        member = _rows_of(packed, np.repeat(starts, lengths) + _counted(lengths))
        stands = np.repeat(_rows_of(packed, starts), lengths)
        equal = _equal(words, member, stands)
        first[member[equal]] = stands[equal]
        left = member[~equal].astype(np.uint32)
    is_first = first == np.arange(len(words), dtype=np.int32)
    number = np.cumsum(is_first, dtype=np.int32) - np.int32(1)
    return np.flatnonzero(is_first), number[first]


@dataclass(frozen=True)
class _Search:
    words: Words  # [U, 4]
    radius: int


@dataclass(frozen=True)
class _Part:
    """What is still to be searched: buckets of rows that agree in the bits of `agreed`, split by the bits `free`."""

    rows: NDArray[np.uint32] | None  # None for all
    bucket: NDArray[np.uint32] | None  # of each row; None where all are in one
    free: Ints
    agreed: Words  # [4], ones where pairs must agree
    earlier: tuple[Words, ...]  # masks in which pairs must differ: bands that come before
    depth: int


def _joined(search: _Search, part: _Part, band: int) -> Iterator[Ints]:
    """Pairs of one bucket of `part` that agree in `band` of the free bits, and fully in none that comes before."""
    bands = [part.free[start :: search.radius + 1] for start in range(search.radius + 1)]
    mask = _mask(bands[band])
    agreed, earlier = part.agreed | mask, (*part.earlier, *(_mask(bits) for bits in bands[:band]))
    packed = _sorted_keys(search.words, part.rows, part.bucket, mask)
    starts, lengths = _runs(packed)
    rest = np.setdiff1d(part.free, bands[band])
    large = lengths > LARGEST_BUCKET
    if part.depth == DEEPEST_SPLIT or len(rest) <= search.radius:
        large[:] = False
    yield from _verified(search, packed, starts[~large], lengths[~large], agreed=agreed, earlier=earlier)
    if large.any():
        starts, lengths = starts[large], lengths[large]
        rows = _rows_of(packed, np.repeat(starts, lengths) + _counted(lengths)).astype(np.uint32)
        bucket = np.repeat(np.arange(len(starts), dtype=np.uint32), lengths)
        del packed
        inner = _Part(rows, bucket, rest, agreed=agreed, earlier=earlier, depth=part.depth + 1)
        for number in range(search.radius + 1):
            yield from _joined(search, inner, number)


def _verified(
    search: _Search, packed: Words, starts: Ints, lengths: Ints, *, agreed: Words, earlier: tuple[Words, ...]
) -> Iterator[Ints]:
    """Compare all members of each bucket with each other: neighbours first, then those two apart, ..."""
    place = np.repeat(starts, lengths) + _counted(lengths)
    end = np.repeat(starts + lengths, lengths)
    for apart in range(1, int(lengths.max(initial=0))):
        inside = place + apart < end
        place, end = place[inside], end[inside]
        for start in range(0, len(place), CHUNK):
            first = place[start : start + CHUNK]
            one, other = _rows_of(packed, first), _rows_of(packed, first + apart)
            yield _within(search, one, other, agreed=agreed, earlier=earlier)


def _within(search: _Search, one: Ints, other: Ints, *, agreed: Words, earlier: tuple[Words, ...]) -> Ints:
    """Of these pairs those within the radius that agree in `agreed` and in no earlier band: [M, 3]."""
    differs = search.words[one] ^ search.words[other]
    distance = np.bitwise_count(differs).sum(axis=1, dtype=np.int64)
    keep = np.flatnonzero(distance <= search.radius)
    one, other, differs, distance = one[keep], other[keep], differs[keep], distance[keep]
    # two buckets can share a key, so what their keys were made of is compared too
    right = ((differs & agreed) == 0).all(axis=1)
    for mask in earlier:
        right &= ((differs & mask) != 0).any(axis=1)
    one, other = one[right], other[right]
    return np.stack([np.minimum(one, other), np.maximum(one, other), distance[right]], axis=1)


def _sorted_keys(
    words: Words, rows: NDArray[np.uint32] | None, bucket: NDArray[np.uint32] | None, mask: Words
) -> Words:
    """Each row's key (upper 32 bits: its words under `mask` and its bucket, folded) and number (lower 32), sorted.

    Equal bits of one bucket give equal keys; other rows share a key by chance only.
    """
    packed = np.empty(len(words) if rows is None else len(rows), np.uint64)
    for start in range(0, len(packed), CHUNK):
        chunk = slice(start, min(start + CHUNK, len(packed)))
        numbers = np.arange(chunk.start, chunk.stop, dtype=np.uint64) if rows is None else rows[chunk].astype(np.uint64)
        taken = words[chunk] if rows is None else words[numbers]
        key = np.zeros(len(taken), np.uint64) if bucket is None else bucket[chunk] * FACTORS[4]
        for word in np.flatnonzero(mask):
            key += (taken[:, word] & mask[word]) * FACTORS[word]
        key ^= key >> LOW
        key *= FACTORS[4]
        packed[chunk] = (key & ~ROW) | numbers
    packed.sort()
    return packed


def _runs(packed: Words) -> tuple[Ints, Ints]:
    """Where runs of two and more equal keys start, and how long they are."""
    second = [np.empty(0, np.int64)]
    for start in range(0, len(packed) - 1, CHUNK):
        keys = packed[start : start + CHUNK + 1] >> LOW
        second.append(np.flatnonzero(keys[1:] == keys[:-1]) + start + 1)
    seconds = np.concatenate(second)
    begins = np.flatnonzero(np.diff(seconds, prepend=-1) != 1)
    counts = np.diff(begins, append=len(seconds))
    return seconds[begins] - 1, counts + 1


def _rows_of(packed: Words, places: Ints) -> Ints:
    return (packed[places] & ROW).astype(np.int64)


def _equal(words: Words, one: Ints, other: Ints) -> NDArray[np.bool_]:
    same = np.empty(len(one), np.bool_)
    for start in range(0, len(one), CHUNK):
        chunk = slice(start, start + CHUNK)
        same[chunk] = (words[one[chunk]] == words[other[chunk]]).all(axis=1)
    return same


def _words(rows_NB: Bytes) -> Words:
    return np.ascontiguousarray(rows_NB).view(np.uint64)


def _mask(bits: Ints) -> Words:
    """[4] words with ones where `bits` (numbered as in the hash's bytes, highest first) are."""
    chosen = np.zeros(HASH_BITS, np.uint8)
    chosen[bits] = 1
    return np.packbits(chosen).view(np.uint64)


def _counted(lengths: Ints) -> Ints:
    """0..n-1 for each n of `lengths`, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
