"""All pairs within a radius, exactly; rows of one value, numbered."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sote.data import bands


def flipped(hashes: NDArray[np.uint8], rng: np.random.Generator, most: int) -> NDArray[np.uint8]:
    """Each hash with up to `most` bits flipped."""
    bits = np.unpackbits(hashes, axis=1)
    for row in bits:
        row[rng.choice(256, rng.integers(0, most + 1), replace=False)] ^= 1
    return np.packbits(bits, axis=1)


def planted(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random hashes, a third of them near-copies of others, in random order."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 256, (count - count // 3, 32), dtype=np.uint8)
    copies = flipped(hashes[rng.integers(0, len(hashes), count // 3)], rng, 20)
    return rng.permutation(np.concatenate([hashes, copies]))


def brute_force(hashes: NDArray[np.uint8], radius: int) -> list[list[int]]:
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2, dtype=np.int64)
    return [
        [i, j, int(distance[i, j])]
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if distance[i, j] <= radius
    ]


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 8, 12, 16])
def test_the_pairs_are_those_of_comparing_all_with_all(radius: int) -> None:
    hashes = planted(400, seed=radius)
    expected = brute_force(hashes, radius)
    assert len(expected) >= 5
    assert bands.pairs(hashes, radius=radius).tolist() == expected


@pytest.mark.parametrize("radius", [0, 3, 5])
def test_the_pairs_are_exact_where_buckets_are_split(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "LARGEST_BUCKET", 8)
    hashes = np.packbits(np.random.default_rng(1).random((80, 256)) < 0.01, axis=1)  # nearly all zeros
    assert bands.pairs(hashes, radius=radius).tolist() == brute_force(hashes, radius)


def test_the_pairs_are_exact_where_work_comes_in_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "CHUNK", 64)
    hashes = planted(500)
    assert bands.pairs(hashes, radius=8).tolist() == brute_force(hashes, 8)


def test_equal_hashes_pair_with_each_other_and_with_all_near_ones() -> None:
    one = np.random.default_rng(0).integers(0, 256, (1, 32), dtype=np.uint8)
    near = one.copy()
    near[0, 5] ^= 3
    assert bands.pairs(np.concatenate([one, near, one, near]), radius=2).tolist() == [
        [0, 1, 2],
        [0, 2, 0],
        [0, 3, 2],
        [1, 2, 2],
        [1, 3, 0],
        [2, 3, 2],
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_no_row_or_one_row_has_no_pairs(count: int) -> None:
    assert bands.pairs(np.zeros((count, 32), np.uint8), radius=8).shape == (0, 3)


def test_each_pair_belongs_to_exactly_one_band() -> None:
    hashes = np.unique(planted(300), axis=0)
    found = [bands.band_pairs(hashes, band=band, radius=8).tolist() for band in range(9)]
    together = [pair for pairs in found for pair in pairs]
    assert sum(len(pairs) > 0 for pairs in found) > 3
    assert sorted(together) == brute_force(hashes, 8)


def test_pairs_are_exact_where_rows_that_differ_share_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "FACTORS", np.full(5, 1 << 62, np.uint64))  # keys are all 0
    monkeypatch.setattr(bands, "LARGEST_BUCKET", 300)
    hashes = planted(300, seed=2)
    assert bands.pairs(hashes, radius=8).tolist() == brute_force(hashes, 8)
    first, number = bands.distinct(hashes)
    assert len(first) == len(np.unique(hashes, axis=0))
    assert (hashes[first][number] == hashes).all()


def test_a_bucket_that_stays_large_is_searched_once_more_and_then_compared_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bands, "LARGEST_BUCKET", 2)
    rng = np.random.default_rng(0)
    hashes = np.zeros((120, 32), np.uint8)
    hashes[:, :2] = rng.integers(0, 256, (120, 2))  # all differences lie in 16 bits
    assert bands.pairs(hashes, radius=3).tolist() == brute_force(hashes, 3)


def test_values_are_numbered_in_the_order_in_which_they_first_come() -> None:
    one, two, three = np.random.default_rng(0).integers(0, 256, (3, 32), dtype=np.uint8)
    first, number = bands.distinct(np.stack([two, one, two, three, one]))
    assert first.tolist() == [0, 1, 3]
    assert number.tolist() == [0, 1, 0, 2, 1]


def test_one_value_many_times_is_one() -> None:
    first, number = bands.distinct(np.full((5000, 32), 7, np.uint8))
    assert first.tolist() == [0]
    assert not number.any()


@pytest.mark.parametrize("count", [0, 1])
def test_no_value_or_one_is_numbered_too(count: int) -> None:
    first, number = bands.distinct(np.zeros((count, 32), np.uint8))
    assert first.tolist() == number.tolist() == [0] * count


def test_equal_rows_of_one_band_are_searched_in_any_order_of_bands() -> None:
    hashes = planted(300, seed=4)
    found = [bands.band_pairs(hashes, band=band, radius=8) for band in range(9)]
    assert bands.together(found[::-1]).tolist() == bands.pairs(hashes, radius=8).tolist()
