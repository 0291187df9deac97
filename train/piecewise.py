"""What the optimizers share: they know by name which pieces of which tensors they update, and keep their state by name.

torch's own optimizers take what they are given for a tensor, which under ZeRO is a flat shard of many. Ours are told
by `lay_out`. The state of a run is therefore the same whatever the number of workers.

Kind: actor.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sote.train import shards
from sote.train.shards import Piece, Shard


class Piecewise(torch.optim.Optimizer, ABC):
    """An optimizer over pieces of named tensors.

    Its groups have `params` (shards, float32), `names` (one for each tensor given at first), `lr` and `weight_decay`.
    `updates` is the number of the update that the next `step` makes, from 1; whoever drives the optimizer sets it.
    """

    moments_of: Callable[[Piece], list[Piece]]  # what a holder of this piece keeps beside it

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.updates = 1
        self.moments: dict[str, Tensor] = {}  # "<tensor's name>/<moment>"
        self.reduce: Callable[[Tensor], None] | None = None
        for group in self.param_groups:
            pieces = [Piece.of(name, p.shape) for name, p in zip(group["names"], group["params"], strict=True)]
            group["pieces"], group["cut"] = [(piece,) for piece in pieces], []

    def lay_out(self, group: int, *, every: Sequence[Shard], rank: int, reduce: Callable[[Tensor], None]) -> None:
        """Say that a group's one tensor now is shard `rank` of `every`.

        `reduce` sums a tensor over the workers in place. Every worker has to make each `step`.
        """
        self.param_groups[group]["pieces"] = [every[rank]]
        self.param_groups[group]["cut"] = shards.cut_tensors(every)
        self.reduce = reduce

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update everything once. A tensor without gradient counts as one with a gradient of zeros."""
        if closure is not None:
            raise ValueError("no closure is taken: gradients are there before a step")
        for group in self.param_groups:
            held: list[tuple[Piece, Tensor, Tensor]] = []
            for shard, pieces in zip(group["params"], group["pieces"], strict=True):
                gradient = torch.zeros_like(shard) if shard.grad is None else shard.grad
                held += zip(pieces, views(shard, pieces), views(gradient, pieces), strict=True)
            self.step_group(group, held)

    @abstractmethod
    def step_group(self, group: dict[str, Any], held: list[tuple[Piece, Tensor, Tensor]]) -> None:
        """Update the pieces of one group: (piece, weights, gradient), shaped as the tensor where it is whole."""

    def moment(self, piece: Piece, *, like: Tensor) -> Tensor:
        """One moment, zeros at first. A whole one has its shape, a cut one is flat."""
        if piece.name not in self.moments:
            shape = piece.shape if piece.whole else (piece.length,)
            self.moments[piece.name] = like.new_zeros(shape, dtype=torch.float32)
        return self.moments[piece.name]

    def load(self, read: Callable[[Piece], Tensor]) -> None:
        """Take every moment of the held pieces from `read`, which gives elements in row-major order."""
        for group in self.param_groups:
            for shard, pieces in zip(group["params"], group["pieces"], strict=True):
                for moment in (moment for piece in pieces for moment in self.moments_of(piece)):
                    kept = self.moment(moment, like=shard.detach())
                    kept.copy_(read(moment).view(kept.shape))


def views(shard: Tensor, pieces: Shard) -> list[Tensor]:
    """Each piece of a shard as a view of it: in its tensor's shape where it is whole, else flat."""
    if len(pieces) == 1 and tuple(shard.shape) == pieces[0].shape:
        return [shard.detach()]  # as it lies in memory, which need not be row-major
    found, at, flat = [], 0, shard.detach().view(-1)
    for piece in pieces:
        part = flat.narrow(0, at, piece.length)
        found.append(part.view(piece.shape) if piece.whole else part)
        at += piece.length
    return found
