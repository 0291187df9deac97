"""How much the loss of an image counts, by its signal-to-noise ratio: P2, adaptive, or all the same.

Adaptive: Stability-AI/StableCascade 7a7d341, gdf/loss_weights.py AdaptiveLossWeight with its defaults. There each rank
has a state of its own; here every worker updates with the losses of the whole step in the order of the batch, so all
hold the same state, whatever their number, and it is saved with the checkpoint.

Shapes: B images of a micro-batch, N images of a step.

Kind: actor.
"""

from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sote.cluster.errors import CheckpointError
from sote.train import diffusion

# gdf/loss_weights.py AdaptiveLossWeight
BUCKETS = 300
LOG_SNR_RANGE = (-10.0, 10.0)
KEPT = 0.99  # of a bucket's loss, when another comes
WEIGHT_RANGE = (1e-7, 1e7)


class Weighting(Protocol):
    """Weights for losses. `state` is None where there is none to keep."""

    def weights(self, log_snr_B: Tensor) -> Tensor:
        """The weight of each image, on the device of `log_snr_B`."""

    def update(self, log_snr_N: Tensor, loss_N: Tensor) -> None:
        """Learn from the plain losses of one whole step, in the order of the batch. Not for steps that are skipped."""

    def state(self) -> list[float] | None:
        """What is kept in a checkpoint; goes through JSON without loss."""

    def load(self, state: list[float] | None) -> None:
        """Go on from a kept state. Raises CheckpointError if it is not one of this kind."""


def make(name: Literal["p2", "adaptive", "none"]) -> Weighting:
    """The weighting that a recipe's diffusion.loss_weight names."""
    return Adaptive() if name == "adaptive" else Fixed(p2=name == "p2")


class Fixed:
    """P2, 1 / (1 + SNR), or 1 for all."""

    def __init__(self, *, p2: bool) -> None:
        self.p2 = p2

    def weights(self, log_snr_B: Tensor) -> Tensor:
        """The weight of each image."""
        return diffusion.p2_weight(log_snr_B) if self.p2 else torch.ones_like(log_snr_B)

    def update(self, log_snr_N: Tensor, loss_N: Tensor) -> None:
        """Nothing is learnt."""

    def state(self) -> None:
        """There is none."""

    def load(self, state: list[float] | None) -> None:
        """Refuse what an adaptive weight has kept."""
        if state is not None:
            raise CheckpointError("loss_buckets: this checkpoint has an adaptive weight; diffusion.loss_weight has not")


class Adaptive:
    """1 / (running mean of the loss at this ratio): every ratio comes to count the same."""

    def __init__(self) -> None:
        # The first bucket is below the first edge, the last above the last
        self.edges = torch.linspace(*LOG_SNR_RANGE, BUCKETS - 1)
        self.losses = np.ones(BUCKETS, dtype=np.float32)

    def weights(self, log_snr_B: Tensor) -> Tensor:
        """The weight of each image, on the device of `log_snr_B`."""
        losses_B = torch.from_numpy(self.losses)[self._buckets(log_snr_B)]
        return (1 / losses_B).clamp(*WEIGHT_RANGE).to(log_snr_B.device)

    def update(self, log_snr_N: Tensor, loss_N: Tensor) -> None:
        """Move each touched bucket's loss by 1 % towards a new one; of several images in a bucket the last counts."""
        buckets = self._buckets(log_snr_N).numpy()
        loss = loss_N.detach().float().cpu().numpy()
        # numpy keeps the last of repeated places, which torch does not promise
        self.losses[buckets] = self.losses[buckets] * np.float32(KEPT) + loss * np.float32(1 - KEPT)

    def state(self) -> list[float]:
        """The loss of each bucket."""
        return [float(loss) for loss in self.losses]

    def load(self, state: list[float] | None) -> None:
        """Go on from kept losses. Raises CheckpointError."""
        if state is None or len(state) != BUCKETS:
            there = "none" if state is None else f"{len(state)} numbers"
            raise CheckpointError(f"loss_buckets: the checkpoint has {there}; an adaptive weight needs {BUCKETS}")
        self.losses = np.array(state, dtype=np.float32)

    def _buckets(self, log_snr_B: Tensor) -> Tensor:
        return torch.searchsorted(self.edges, log_snr_B.detach().float().cpu())
