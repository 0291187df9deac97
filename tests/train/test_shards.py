import math

import pytest

from sote.train import shards
from sote.train.shards import Piece

SIZES = [(5,), (3, 4), (1,), (2, 3, 3), (), (40,)]  # 77 elements


def _given() -> list[Piece]:
    return [Piece.of(f"t{number}", shape) for number, shape in enumerate(SIZES)]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 50])
def test_each_element_is_in_one_shard(workers: int) -> None:
    every = shards.cut(_given(), workers=workers, alignment=2 * workers)
    seen = [(piece.name, piece.start + k) for shard in every for piece in shard for k in range(piece.length)]
    assert seen == [(f"t{number}", k) for number, shape in enumerate(SIZES) for k in range(math.prod(shape))]
    assert len(every) == workers


def test_shards_are_equal_and_padded_at_the_end() -> None:
    every = shards.cut(_given(), workers=4, alignment=8)  # 77 -> 80
    assert [sum(piece.length for piece in shard) for shard in every] == [20, 20, 20, 17]
    assert shards.cut([Piece.of("a", (3,))], workers=4, alignment=8)[1:] == [(Piece("a", (3,), 2, 1),), (), ()]


def test_tensors_that_no_shard_holds_whole_are_cut() -> None:
    every = shards.cut(_given(), workers=4, alignment=8)
    assert [piece.name for piece in shards.cut_tensors(every)] == ["t3", "t5"]
    assert shards.cut_tensors(shards.cut(_given(), workers=1, alignment=2)) == []


@pytest.mark.parametrize("count", [1, 7, 100])
def test_windows_over_pieces_meet_each_element_once(count: int) -> None:
    pieces = shards.cut(_given(), workers=2, alignment=4)[1]
    total = sum(piece.length for piece in pieces)
    seen = []
    for first in range(0, total, count):
        for lap in shards.overlaps(pieces, first=first, count=count):
            assert lap.in_window + lap.length <= count
            seen += [(lap.index, lap.in_piece + k) for k in range(lap.length)]
    assert seen == [(index, k) for index, piece in enumerate(pieces) for k in range(piece.length)]
