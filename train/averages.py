"""A running mean of the weights beside them (EMA), over each worker's own share of the master weights.

Up to `start_step` the mean is the weights themselves. From then on, every `every_steps` steps,
mean = decay * mean + (1 - decay) * weights (Stability-AI/StableCascade 7a7d341, core/utils: update_weights_ema).

Kind: actor.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sote.train.engine import Engine
from sote.train.recipe import EmaPart


class Averages:
    """Made after the engine has its weights, which are those after step `step`."""

    def __init__(self, part: EmaPart, engine: Engine, *, step: int = 0) -> None:
        self.part, self.engine = part, engine
        self.pieces: list[Tensor] | None = None
        if step >= part.start_step:
            self._begin()

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """The weights are those after `step`."""
        if self.pieces is None:
            if step >= self.part.start_step:
                self._begin()
        elif step % self.part.every_steps == 0:
            for mean, weights in zip(self.pieces, self.engine.pieces(), strict=True):
                mean.lerp_(weights, 1 - self.part.decay)

    def load(self, read: Callable[[str], Tensor]) -> None:
        """Go on with the means of a checkpoint, by name of parameter. Every worker reads."""
        if self.pieces is not None:
            self.engine.fill(self.pieces, read)

    def assemble(self) -> dict[str, Tensor]:
        """Collective. The means as whole tensors by name of parameter, on rank 0."""
        return self.engine.assemble(self.engine.pieces() if self.pieces is None else self.pieces)

    def _begin(self) -> None:
        self.pieces = [piece.detach().clone() for piece in self.engine.pieces()]
