"""AdamW, its state by tensor name. Gives the numbers of torch.optim.AdamW.

Kind: actor.
"""

import math
from typing import Any

from torch import Tensor

from sote.train.piecewise import Piecewise
from sote.train.shards import Piece

SMALLEST_ROOT = 1e-8  # torch.optim.AdamW's eps
MOMENTS = ("exp_avg", "exp_avg_sq")


def moments_of(piece: Piece) -> list[Piece]:
    """As much of each moment as the piece is of its tensor."""
    return [Piece(f"{piece.name}/{name}", piece.shape, start=piece.start, length=piece.length) for name in MOMENTS]


class AdamW(Piecewise):
    """Each group has its `lr`, `weight_decay` and `betas`."""

    moments_of = staticmethod(moments_of)

    def step_group(self, group: dict[str, Any], held: list[tuple[Piece, Tensor, Tensor]]) -> None:
        """Element by element: it does not matter what is cut."""
        rate, (beta1, beta2) = group["lr"], group["betas"]
        scale = math.sqrt(1 - beta2**self.updates)
        for piece, weights, gradient in held:
            mean, square = (self.moment(moment, like=gradient) for moment in moments_of(piece))
            weights.mul_(1 - rate * group["weight_decay"])
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = (square.sqrt() / scale).add_(SMALLEST_ROOT)
            weights.addcdiv_(mean, root, value=-rate / (1 - beta1**self.updates))
