"""Near-duplicates: all pairs of hashes within a radius, exactly; which of them are copies; which of a group is kept.

Pairs: two 256-bit hashes that differ in at most r bits agree in at least one of r + 1 bands of bits (pigeonhole), so
an equi-join over each band finds every pair. Bit j lies in band j mod (r + 1): with contiguous bands, pictures on plain
backgrounds fall into giant buckets.

Copies: of a pair within the radius, the thumbnails tell a copy from a variant (another expression, a signature more).

Groups are stars, not chains: rows are walked best first, and each row that goes is a copy of one that stays.

Shapes: N rows, U distinct hashes, M pairs, B bytes of a hash (32), W its 64-bit words (4), C thumbnail cells (256).

Kind: pure.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sote.data.recipe import DuplicatesPart

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

HASH_BITS = 256
LOSSLESS = frozenset(
    {"png", "bmp", "tiff", "ppm"}
)  # formats; WebP, AVIF and JPEG 2000 may be either, and count as lossy
LARGEST_BUCKET = 512  # rows; larger ones are split on the bits not yet used (measured: 5.6 s instead of 8.5 s per 1 M)
DEEPEST_SPLIT = 2  # after that, the rows of a bucket are compared one by one
CHUNK = 1 << 18  # rows or pairs worked on at once: about 64 MiB of bits, 16 MiB of words
PIXELS_RATIO = 1.05  # facts: fewer pixels than this apart say nothing about which picture is better
SCORE_STEP = 0.02  # facts: smaller differences of score are noise
# Standard deviation of the thumbnail's cells below which a picture is as good as flat, and its hash is noise:
# what one cell of 256 makes that is 32 of 255 levels off.
FLAT_DEVIATION = 2.0


@dataclass(frozen=True)
class Candidates:
    """The rows to compare: all of them opened well. Two rows of one `id` have one `pixel_id` too."""

    id: Sequence[str]
    pixel_id: Sequence[str]
    phash: Bytes  # [N, 32]
    thumb: Bytes  # [N, 768]
    pixels: Ints  # width x height
    bytes: Ints  # size of the file
    lossless: NDArray[np.bool_]
    score: NDArray[np.float32]  # aesthetic + quality; NaN where unknown
    date: Sequence[str | None]  # ISO


@dataclass(frozen=True)
class Grouping:
    """For each row: its group's number and the row that is kept of it (-1 outside of a group), how it differs."""

    group: Ints
    keeper: Ints
    distance: NDArray[np.int32]  # bits to the keeper; 0 for the keeper and outside of a group
    reason: list[str | None]  # why the row goes; None for what is kept


def find_pairs(hashes_NB: Bytes, *, radius: int) -> Ints:
    """All pairs of rows whose hashes differ in at most `radius` bits: [M, 3] of i < j and distance, sorted. Exact."""
    words_UW, member_of = np.unique(_words(hashes_NB), axis=0, return_inverse=True)
    distinct_UB = np.ascontiguousarray(words_UW).view(np.uint8).reshape(-1, HASH_BITS // 8)
    near = [band_pairs(distinct_UB, band=band, radius=radius) for band in range(radius + 1)]
    same = np.arange(len(distinct_UB))
    near.append(np.stack([same, same, np.zeros_like(same)], axis=1))
    pairs = _between_members(np.concatenate(near), member_of.reshape(-1), len(distinct_UB))
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def band_pairs(hashes_NB: Bytes, *, band: int, radius: int) -> Ints:
    """The pairs within `radius` of which `band` (0..radius) is the first band that they agree in: [M, 3].

    Every pair belongs to exactly one band, so that bands can be searched apart from each other and put together.
    """
    hashes_NB = np.ascontiguousarray(hashes_NB)
    search = _Search(hashes_NB, _words(hashes_NB), radius)
    found = list(_joined(search, np.arange(len(hashes_NB)), np.arange(HASH_BITS), band, earlier=(), depth=0))
    return np.concatenate([np.empty((0, 3), np.int64), *found])


def thumb_difference(one_MK: Bytes, other_MK: Bytes) -> NDArray[np.float32]:
    """How far the thumbnails [M, 768] of each pair are apart, in levels (0..255): [M].

    The third largest difference of a cell, after gain and offset of each channel are fitted, so that a copy that is
    brighter is still a copy. Of both directions of the fit the larger counts.
    """
    differences = [np.empty(0, np.float32)]
    for start in range(0, len(one_MK), CHUNK // 64):
        one, other = (
            thumbs[start : start + CHUNK // 64].reshape(-1, 256, 3).astype(np.float32) for thumbs in (one_MK, other_MK)
        )
        differences.append(np.maximum(_misfit(one, other), _misfit(other, one)))
    return np.concatenate(differences)


def groups(rows: Candidates, part: DuplicatesPart) -> Grouping:
    """Group the rows, and choose what is kept of each group. Groups are numbered by the id of their keeper.

    Rows of the same pixels are one: the best of them stands for all. Nearly flat pictures are compared by pixels only.
    """
    stands_for = _best_of_same_pixels(rows)
    compared = np.unique(stands_for)
    compared = compared[_deviation(rows.thumb[compared]) >= FLAT_DEVIATION]
    near = find_pairs(rows.phash[compared], radius=part.radius)
    near[:, :2] = compared[near[:, :2]]
    alike = thumb_difference(rows.thumb[near[:, 0]], rows.thumb[near[:, 1]]) <= part.max_thumb_difference
    keeper, distance = _stars(near[alike], _rank(rows))
    return _numbered(rows, keeper[stands_for], distance[stands_for])


@dataclass(frozen=True)
class _Search:
    hashes: Bytes  # [N, 32]
    words: NDArray[np.uint64]  # [N, 4], the same bits
    radius: int


def _joined(
    search: _Search, members: Ints, free: Ints, band: int, *, earlier: tuple[NDArray[np.uint64], ...], depth: int
) -> Iterator[Ints]:
    """Pairs among `members` that agree in `band` of the `free` bits, and fully in no mask of `earlier`."""
    bands = [free[start :: search.radius + 1] for start in range(search.radius + 1)]
    earlier = (*earlier, *(_mask(bits) for bits in bands[:band]))
    keys = _keys(search.hashes, members, bands[band])
    order = np.argsort(keys, kind="stable")
    members, keys = members[order], keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)
    ends = np.append(starts[1:], len(keys))
    large = ends - starts > LARGEST_BUCKET
    rest = np.setdiff1d(free, bands[band])
    if depth == DEEPEST_SPLIT or len(rest) <= search.radius:
        large[:] = False
    yield from _verified(search, members, np.where(large, starts, ends), starts, earlier)
    for start, end in zip(starts[large], ends[large], strict=True):
        for inner in range(search.radius + 1):
            yield from _joined(search, members[start:end], rest, inner, earlier=earlier, depth=depth + 1)


def _verified(
    search: _Search, members: Ints, ends: Ints, starts: Ints, earlier: tuple[NDArray[np.uint64], ...]
) -> Iterator[Ints]:
    """Compare all members of each bucket start..end with each other: neighbours first, then those two apart, ..."""
    lengths = ends - starts
    place = np.repeat(starts, lengths) + _counted(lengths)
    end = np.repeat(ends, lengths)
    for apart in range(1, int(lengths.max(initial=0))):
        inside = place + apart < end
        place, end = place[inside], end[inside]
        for start in range(0, len(place), CHUNK):
            first = place[start : start + CHUNK]
            yield _within(search, members[first], members[first + apart], earlier)


def _within(search: _Search, one: Ints, other: Ints, earlier: tuple[NDArray[np.uint64], ...]) -> Ints:
    """Of these pairs those within the radius that agree in no earlier band: [M, 3]."""
    differs = search.words[one] ^ search.words[other]
    distance = np.bitwise_count(differs).sum(axis=1, dtype=np.int64)
    keep = distance <= search.radius
    for mask in earlier:
        keep[keep] = ((differs[keep] & mask) != 0).any(axis=1)
    one, other = one[keep], other[keep]
    return np.stack([np.minimum(one, other), np.maximum(one, other), distance[keep]], axis=1)


def _words(hashes_NB: Bytes) -> NDArray[np.uint64]:
    return np.ascontiguousarray(hashes_NB).view(np.uint64)


def _mask(bits: Ints) -> NDArray[np.uint64]:
    """[4] words with ones where `bits` (numbered as in the hash's bytes, highest first) are."""
    chosen = np.zeros(HASH_BITS, np.uint8)
    chosen[bits] = 1
    return np.packbits(chosen).view(np.uint64)


def _keys(hashes_NB: Bytes, members: Ints, bits: Ints) -> NDArray[np.uint64]:
    """One number for each member, equal where `bits` are equal."""
    width = 8 * math.ceil(len(bits) / 64)  # bytes, whole words
    packed = np.zeros((len(members), width), np.uint8)
    for start in range(0, len(members), CHUNK):
        chosen = np.unpackbits(hashes_NB[members[start : start + CHUNK]], axis=1)[:, bits]
        packed[start : start + CHUNK, : math.ceil(len(bits) / 8)] = np.packbits(chosen, axis=1)
    words = packed.view(np.uint64)
    if words.shape[1] == 1:
        return words[:, 0]
    return np.unique(words, axis=0, return_inverse=True)[1].reshape(-1).astype(np.uint64)


def _counted(lengths: Ints) -> Ints:
    """0..n-1 for each n of `lengths`, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _between_members(pairs: Ints, member_of: Ints, distinct: int) -> Ints:
    """Pairs of distinct hashes -> pairs of the rows that have them; a hash paired with itself -> its rows' pairs."""
    rows = np.argsort(member_of, kind="stable")
    many = np.bincount(member_of, minlength=distinct)
    starts = np.cumsum(many) - many
    left, right = many[pairs[:, 0]], many[pairs[:, 1]]
    step = _counted(left * right)
    pair = np.repeat(np.arange(len(pairs)), left * right)
    one = rows[starts[pairs[pair, 0]] + step // right[pair]]
    other = rows[starts[pairs[pair, 1]] + step % right[pair]]
    once = (pairs[pair, 0] != pairs[pair, 1]) | (one < other)
    one, other, pair = one[once], other[once], pair[once]
    return np.stack([np.minimum(one, other), np.maximum(one, other), pairs[pair, 2]], axis=1)


def _misfit(one_MC3: NDArray[np.float32], other_MC3: NDArray[np.float32]) -> NDArray[np.float32]:
    """Third largest cell of |one - (gain x other + offset)|, fitted over each channel; of a cell the worst channel."""
    one_MC3 = one_MC3 - one_MC3.mean(axis=1, keepdims=True)
    other_MC3 = other_MC3 - other_MC3.mean(axis=1, keepdims=True)
    energy = (other_MC3**2).sum(axis=1, keepdims=True)
    gain = (one_MC3 * other_MC3).sum(axis=1, keepdims=True) / np.maximum(energy, np.float32(1e-6))
    cells_MC = np.abs(one_MC3 - gain * other_MC3).max(axis=2)
    third: NDArray[np.float32] = np.partition(cells_MC, -3, axis=1)[:, -3]
    return third


def _deviation(thumbs_NK: Bytes) -> NDArray[np.float64]:
    """The largest of the three channels' standard deviations over the cells, in levels: [N]."""
    found = np.empty(len(thumbs_NK))
    for start in range(0, len(thumbs_NK), CHUNK // 64):
        cells = thumbs_NK[start : start + CHUNK // 64].reshape(-1, 256, 3)
        found[start : start + len(cells)] = cells.std(axis=1).max(axis=1)
    return found


def _days(rows: Candidates) -> NDArray[np.str_]:
    """The days as ISO text, which sorts by time; unknown ones after all that are known."""
    return np.array([(date or "9999")[:10] for date in rows.date], dtype="U10")


def _ids(names: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array(names, dtype="S64")  # 64 hex digits


def _best_of_same_pixels(rows: Candidates) -> Ints:
    """For each row the best row of the same pixels: lossless, then the smaller file, the earlier, the lower id."""
    number = np.arange(len(rows.id))
    _, same = np.unique(_ids(rows.pixel_id), return_inverse=True)
    order = np.lexsort((number, _ids(rows.id), _days(rows), rows.bytes, ~rows.lossless, same))
    first = np.unique(same[order], return_index=True)[1]
    return order[first][same]


def _rank(rows: Candidates) -> Ints:
    """Place of each row in the order from best (0) to worst; a total order, since steps are cut, not compared.

    More pixels (in steps of 5 %), lossless, higher score (in steps of 0.02), the larger file (less compressed), the
    earlier date, the lower id.
    """
    number = np.arange(len(rows.id))
    size = np.floor(np.log(rows.pixels) / math.log(PIXELS_RATIO))
    score = np.where(np.isnan(rows.score), -1, np.floor(rows.score / SCORE_STEP))
    order = np.lexsort((number, _ids(rows.id), _days(rows), -rows.bytes, -score, ~rows.lossless, -size))
    rank = np.empty_like(order)
    rank[order] = number
    return rank


def _stars(pairs: Ints, rank: Ints) -> tuple[Ints, Ints]:
    """For each row the row that is kept in its place (itself, if it is kept), and the distance between them."""
    keeper, distance = np.arange(len(rank)), np.zeros(len(rank), np.int64)
    swap = rank[pairs[:, 0]] > rank[pairs[:, 1]]
    better, worse = np.where(swap, pairs[:, 1], pairs[:, 0]), np.where(swap, pairs[:, 0], pairs[:, 1])
    # row by row from the best on, and to each the nearest first: by then it is known which of the better ones are kept
    for edge in np.lexsort((rank[better], pairs[:, 2], rank[worse])):
        row, other = worse[edge], better[edge]
        if keeper[row] == row and keeper[other] == other:
            keeper[row], distance[row] = other, pairs[edge, 2]
    return keeper, distance


def _numbered(rows: Candidates, keeper: Ints, distance: Ints) -> Grouping:
    goes = np.flatnonzero(keeper != np.arange(len(keeper)))
    keepers = np.unique(keeper[goes])
    in_order = keepers[np.lexsort((keepers, _ids([rows.id[row] for row in keepers])))]
    number_of = np.full(len(keeper), -1, np.int64)
    number_of[in_order] = np.arange(len(in_order))
    group = number_of[keeper]
    reasons: list[str | None] = [None] * len(keeper)
    for row, kept in zip(goes.tolist(), keeper[goes].tolist(), strict=True):
        reasons[row] = _reason(rows, row, kept)
    return Grouping(group, np.where(group >= 0, keeper, -1), distance.astype(np.int32), reasons)


def _reason(rows: Candidates, row: int, kept: int) -> str:
    if rows.id[row] == rows.id[kept]:
        return "same file as the keeper"
    if rows.pixel_id[row] == rows.pixel_id[kept]:
        return "same pixels as the keeper"
    return "near-same as the keeper"
