"""Near-duplicates: which rows are copies, which of a group is kept, what it inherits of the others' dates.

Layers: rows of the same pixels (or of the same file) are one, and the best of them stands for all. Of the others, rows
of one hash are one if their thumbnails are alike; what is left is compared between the hashes that are near.

Copies: of a pair within the radius, the thumbnails tell a copy from a variant (another expression, a signature more).
A row that a better one of its hash stands for goes where that one goes: two steps of max_thumb_difference (16 levels)
stay below where variants begin (facts: 38).

Groups are stars, not chains: rows are walked best first, and each row that goes is a copy of one that stays.

Shapes: N rows, U distinct hashes, M pairs, R rows that have a near one.

Kind: pure.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sote.data.recipe import DuplicatesPart, KeepKey

Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]
Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]

LOSSLESS = frozenset(
    {"png", "bmp", "tiff", "ppm"}
)  # formats; WebP, AVIF and JPEG 2000 may be either, and count as lossy
CHUNK = 512  # pairs of thumbnails, or edges, worked on at once: the fastest, 4.7 us a pair (4,096: 8.8 us)
PIXELS_RATIO = 1.05  # facts: fewer pixels than this apart say nothing about which picture is better
SCORE_STEP = 0.02  # facts: smaller differences of score are noise
# Standard deviation of the thumbnail's cells below which a picture is as good as flat, and its hash is noise:
# what one cell of 256 makes that is 32 of 255 levels off.
FLAT_DEVIATION = 2.0
# A gradient hash with fewer ones or fewer zeros is a plain background's (facts: at 10 % chains of 5,032 become 4)
FEWEST_BITS = 26
UNKNOWN_DAY = 99_999_999  # after all that are known
REASONS = (None, "same file as the keeper", "same pixels as the keeper", "near-same as the keeper")


@dataclass(frozen=True)
class Candidates:
    """All rows, those that take no part too: they have `pixels_number` and `hash_number` -1.

    Two rows of one `id` have one pixels_number, and two of one pixels_number have one hash_number.
    """

    id: Bytes  # [N, 32]
    pixels_number: Numbers  # equal where the pixels are; bands.distinct
    hash_number: Numbers  # equal where the hashes are; -1 for what is compared by its pixels only
    pixels: Ints  # width x height
    bytes: Ints  # size of the file
    lossless: Flags
    score: NDArray[np.float32]  # aesthetic + quality; NaN where unknown
    metadata: Numbers  # how much people wrote about it: names of tags, and a date
    day: Numbers  # as `day_of` gives it


class Thumbs(Protocol):
    """Where the thumbnails are read from."""

    def fetch(self, rows: Ints) -> None:
        """Make ready all that will be asked for: the thumbnails of `rows`, ascending."""

    def of(self, rows: Ints) -> Bytes:
        """The thumbnails [M, 768] of some of these rows."""


@dataclass(frozen=True)
class Grouping:
    """For each row: its group's number and the row that is kept of it (-1 outside of a group), how it differs."""

    group: Numbers
    keeper: Numbers
    distance: Numbers  # bits to the keeper; 0 for the keeper and outside of a group
    reason: Bytes  # why the row goes, as its place in REASONS; 0 for what is kept


def groups(rows: Candidates, near: Ints, *, part: DuplicatesPart, thumbs: Thumbs | None) -> Grouping:
    """Group the rows, and choose what is kept of each group. Groups are numbered by the id of their keeper.

    `near` are the pairs of hash numbers within the radius, with their distance: [M, 3]. Without `thumbs` every pair is
    a pair of copies.
    """
    stands_for = _best_of_same_pixels(rows)
    alone = np.flatnonzero((stands_for == np.arange(len(stands_for))) & (rows.hash_number >= 0))
    best_first = _ranked(rows, alone[_has_company(rows.hash_number[alone], near)], part.keep)
    if thumbs is not None:
        thumbs.fetch(np.sort(best_first))
    alike = _Alike(best_first, thumbs, part.max_thumb_difference)
    hashes = rows.hash_number[best_first]
    stand = _best_of_same_hash(hashes, alike)
    edges = _edges(near, hashes, np.flatnonzero(stand == np.arange(len(stand))))
    star, distance = _stars(edges[alike(edges[:, 0], edges[:, 1])], len(stand))
    keeper, apart = np.arange(len(stands_for), dtype=np.int32), np.zeros(len(stands_for), np.int32)
    keeper[best_first], apart[best_first] = best_first[star[stand]], distance[stand]
    return _numbered(rows, keeper[stands_for], apart[stands_for])


def thumb_difference(one_MK: Bytes, other_MK: Bytes) -> NDArray[np.float32]:
    """How far the thumbnails [M, 768] of each pair are apart, in levels (0..255): [M].

    The third largest difference of a cell, after gain and offset of each channel are fitted, so that a copy that is
    brighter is still a copy. Of both directions of the fit the larger counts.
    """
    one, other = _centred(one_MK), _centred(other_MK)
    covariance = np.einsum("mcx,mcx->mc", one, other)[..., None]
    return np.maximum(_misfit(one, other, covariance), _misfit(other, one, covariance))


def deviation(thumbs_NK: Bytes) -> NDArray[np.float32]:
    """The largest of the three channels' standard deviations over the cells, in levels: [N]."""
    found: NDArray[np.float32] = thumbs_NK.reshape(-1, 256, 3).astype(np.float32).std(axis=1).max(axis=1)
    return found


def day_of(date: str | None) -> int:
    """A post's date (ISO, or a year) as a number that sorts by time: year, month and day in decimal digits.

    What is not said counts as 99: of one year, the day that is known comes before the year alone.
    """
    match = re.match(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?", date or "")
    if not match:
        return UNKNOWN_DAY
    year, month, day = (int(part or 99) for part in match.groups())
    return year * 10_000 + month * 100 + day


def day_text(day: int) -> str:
    """What `day_of` read: `2019-05-01`, `2019-05` or `2019`."""
    year, month, date = day // 10_000, day // 100 % 100, day % 100
    return "-".join([f"{year:04}", *(f"{number:02}" for number in (month, date) if number != 99)])


def earliest(day: Numbers, grouping: Grouping) -> Numbers:
    """For each keeper the earliest day of its group; for all others their own."""
    found = day.copy()
    goes = np.flatnonzero(grouping.reason)
    np.minimum.at(found, grouping.keeper[goes], day[goes])
    return found


@dataclass(frozen=True)
class _Alike:
    """Whether two rows, named by their rank, are copies by their thumbnails."""

    rows: Ints  # best first
    thumbs: Thumbs | None
    most: float  # levels

    def __call__(self, one: Ints, other: Ints) -> Flags:
        found = np.ones(len(one), np.bool_)
        if self.thumbs is None:
            return found
        for start in range(0, len(one), CHUNK):
            chunk = slice(start, start + CHUNK)
            pair = (self.thumbs.of(self.rows[side[chunk]]) for side in (one, other))
            found[chunk] = thumb_difference(*pair) <= self.most
        return found


def _centred(thumbs_MK: Bytes) -> NDArray[np.float32]:
    """[M, 3, 256], each channel less its mean."""
    cells = np.ascontiguousarray(thumbs_MK.reshape(-1, 256, 3).transpose(0, 2, 1), dtype=np.float32)
    cells -= cells.mean(axis=2, keepdims=True)
    return cells


def _misfit(
    one_MCX: NDArray[np.float32], other_MCX: NDArray[np.float32], covariance_MC1: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Third largest cell of |one - (gain x other + offset)|, fitted over each channel; of a cell the worst channel."""
    energy = np.einsum("mcx,mcx->mc", other_MCX, other_MCX)[..., None]
    apart = one_MCX - covariance_MC1 / np.maximum(energy, np.float32(1e-6)) * other_MCX
    cells_MX = np.abs(apart, out=apart).max(axis=1)
    third: NDArray[np.float32] = np.partition(cells_MX, -3, axis=1)[:, -3]
    return third


def _by_id(rows: Candidates, chosen: Ints) -> list[NDArray[Any]]:
    """Keys for np.lexsort, the least first: ids, and the row's place where one file is there twice."""
    words = np.ascontiguousarray(rows.id[chosen]).view(">u8").astype(np.uint64)
    return [chosen, *words.T[::-1]]


def _best_of_same_pixels(rows: Candidates) -> Numbers:
    """For each row the best row of the same pixels: lossless, then the smaller file, the earlier, the lower id."""
    stands_for = np.arange(len(rows.id), dtype=np.int32)
    part = rows.pixels_number >= 0
    many = np.bincount(rows.pixels_number[part], minlength=1)
    shared = np.flatnonzero(part & (many[rows.pixels_number] > 1))
    number = rows.pixels_number[shared]
    keys = (*_by_id(rows, shared), rows.day[shared], rows.bytes[shared], ~rows.lossless[shared], number)
    order = np.lexsort(keys)
    _, first, group = np.unique(number[order], return_index=True, return_inverse=True)
    stands_for[shared[order]] = shared[order[first]][group]
    return stands_for


def _has_company(hashes: Numbers, near: Ints) -> Flags:
    """Which of these rows share their hash, or have one that is near another."""
    many = np.bincount(hashes, minlength=int(near[:, :2].max(initial=-1)) + 1)
    company = many > 1
    company[near[:, :2]] = True
    return company[hashes]


def _ranked(rows: Candidates, chosen: Ints, keep: Sequence[KeepKey]) -> Ints:
    """The chosen rows from best to worst by the keys in `keep`; a total order, since steps are cut, not compared.

    More pixels (in steps of 5 %), lossless, higher score (in steps of 0.02), the larger file (less compressed), more
    metadata, the earlier date; last the lower id.
    """
    score = rows.score[chosen]
    worse: dict[KeepKey, NDArray[Any]] = {
        "size": -np.floor(np.log(np.maximum(rows.pixels[chosen], 1)) / math.log(PIXELS_RATIO)),
        "lossless": ~rows.lossless[chosen],
        "score": -np.where(np.isnan(score), -1, np.floor(score / SCORE_STEP)),
        "bytes": -rows.bytes[chosen],
        "metadata": -rows.metadata[chosen],
        "date": rows.day[chosen],
    }
    return chosen[np.lexsort([*_by_id(rows, chosen), *(worse[key] for key in reversed(keep))])]


def _best_of_same_hash(hashes_R: Numbers, alike: _Alike) -> Ints:
    """For each row, by rank, the best one of its hash that it is a copy of, itself if there is none: [R].

    Each round the best of each hash takes its copies; only variants are left for the next.
    """
    stand = np.arange(len(hashes_R))
    left = stand
    while len(left):
        _, first, of_hash = np.unique(hashes_R[left], return_index=True, return_inverse=True)
        best = left[first][of_hash]
        left, best = left[left != best], best[left != best]
        copy = alike(best, left)
        stand[left[copy]] = best[copy]
        left = left[~copy]
    return stand


def _edges(near: Ints, hashes_R: Numbers, stands: Ints) -> Ints:
    """Pairs of hashes -> pairs of the rows that stand for them, by rank, the better first: [M, 3]."""
    size = max(int(near[:, :2].max(initial=-1)), int(hashes_R.max(initial=-1))) + 1
    rows = stands[np.argsort(hashes_R[stands], kind="stable")]
    many = np.bincount(hashes_R[stands], minlength=size)
    starts = np.cumsum(many) - many
    left, right = many[near[:, 0]], many[near[:, 1]]
    product = left * right
    pair = np.repeat(np.arange(len(near)), product)
    step = np.arange(len(pair)) - np.repeat(np.cumsum(product) - product, product)
    one = rows[starts[near[pair, 0]] + step // right[pair]]
    other = rows[starts[near[pair, 1]] + step % right[pair]]
    return np.stack([np.minimum(one, other), np.maximum(one, other), near[pair, 2]], axis=1)


def _stars(edges: Ints, count: int) -> tuple[Ints, Ints]:
    """For each row, by rank, the row that is kept in its place (itself, if it is kept), and how far they are apart."""
    # row by row from the best on, and to each the nearest first: by then it is known which of the better ones are kept
    edges = edges[np.lexsort((edges[:, 0], edges[:, 2], edges[:, 1]))]
    goes, taken = bytearray(count), bytearray(len(edges))
    for start in range(0, len(edges), CHUNK):
        for place, (better, row, _) in enumerate(edges[start : start + CHUNK].tolist(), start):
            if not goes[row] and not goes[better]:
                goes[row] = taken[place] = 1
    keeper, distance = np.arange(count), np.zeros(count, np.int64)
    used = edges[np.frombuffer(taken, np.uint8) == 1]
    keeper[used[:, 1]], distance[used[:, 1]] = used[:, 0], used[:, 2]
    return keeper, distance


def _numbered(rows: Candidates, keeper: Numbers, distance: Numbers) -> Grouping:
    goes = np.flatnonzero(keeper != np.arange(len(keeper)))
    kept = keeper[goes]
    keepers = np.unique(kept)
    number_of = np.full(len(keeper), -1, np.int32)
    number_of[keepers[np.lexsort(_by_id(rows, keepers.astype(np.int64)))]] = np.arange(len(keepers))
    group = number_of[keeper]
    reason = np.zeros(len(keeper), np.uint8)
    same_pixels = rows.pixels_number[goes] == rows.pixels_number[kept]
    same_file = same_pixels & (rows.id[goes] == rows.id[kept]).all(axis=1)
    reason[goes] = np.where(same_file, 1, np.where(same_pixels, 2, 3))
    return Grouping(group, np.where(group >= 0, keeper, -1).astype(np.int32), distance, reason)
