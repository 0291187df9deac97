"""Which elements of which tensors lie where: in the flat shards that ZeRO makes, or in whole tensors.

A shard is a tensor that one worker updates. It holds pieces of named tensors, one after the other; what is left at its
end is padding. A whole tensor is a shard of one piece.

Kind: pure.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """`length` elements of the tensor `name` from `start` on, in row-major order."""

    name: str
    shape: tuple[int, ...]  # of the whole tensor
    start: int
    length: int

    @classmethod
    def of(cls, name: str, shape: Sequence[int]) -> "Piece":
        """The whole tensor."""
        return cls(name, tuple(shape), start=0, length=math.prod(shape))

    @property
    def whole(self) -> bool:
        """Whether it is all of its tensor."""
        return self.length == math.prod(self.shape)


Shard = tuple[Piece, ...]


def cut(tensors: Iterable[Piece], *, workers: int, alignment: int) -> list[Shard]:
    """One shard for each worker: the tensors one after the other, padded to the alignment, in equal parts."""
    tensors = list(tensors)
    total = sum(tensor.length for tensor in tensors)
    size = math.ceil(total / alignment) * alignment // workers
    shards = []
    for worker in range(workers):
        first, at, pieces = worker * size, 0, []
        for tensor in tensors:
            start, end = max(first - at, 0), min(first + size - at, tensor.length)
            if start < end:
                pieces.append(Piece(tensor.name, tensor.shape, start=start, length=end - start))
            at += tensor.length
        shards.append(tuple(pieces))
    return shards


def cut_tensors(shards: Iterable[Shard]) -> list[Piece]:
    """The tensors of which no shard holds the whole, each once, in order."""
    found = {piece.name: piece.shape for shard in shards for piece in shard if not piece.whole}
    return [Piece.of(name, shape) for name, shape in found.items()]


@dataclass(frozen=True)
class Overlap:
    """`length` elements that are in a piece and in a window over a row of pieces."""

    index: int  # of the piece
    in_piece: int
    in_window: int
    length: int


def overlaps(pieces: Iterable[Piece], *, first: int, count: int) -> Iterator[Overlap]:
    """Where the window of `count` elements from `first` on meets pieces that lie one after the other from 0 on."""
    at = 0
    for index, piece in enumerate(pieces):
        start, end = max(first, at), min(first + count, at + piece.length)
        if start < end:
            yield Overlap(index, in_piece=start - at, in_window=start - first, length=end - start)
        at += piece.length
