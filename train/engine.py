"""What the loop needs of whatever drives the arithmetic, and the plain one: one process, nothing but torch.

An engine is called like the model. Of one step the order is: call and `backward` for each micro-batch, `gather` as
often as one likes, `clip`, `update`.

Kind: actor.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sote.train.recipe import BatchPart, OptimizerPart, WorkersPart


class Engine(Protocol):
    """Forward, backward and update over all workers. `rank` is this worker's place among `workers`."""

    rank: int
    workers: int
    device: torch.device

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the model."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's loss; with the last one of a step they are the mean over all."""

    def gather(self, values_N: Tensor) -> Tensor:
        """The values of all workers, one after the other."""

    def clip(self) -> float:
        """Clip the gradients of the step; returns their norm before."""

    def update(self) -> None:
        """Update the weights and forget the gradients."""


class Plain:
    """The engine of one process."""

    rank = 0
    workers = 1

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        part: OptimizerPart,
        batch: BatchPart,
        work: WorkersPart,
    ) -> None:
        self.model, self.optimizer, self.part, self.work = model, optimizer, part, work
        self.micros = batch.effective_batch // batch.micro_batch
        self.device = next(model.parameters()).device

    def __call__(self, *inputs: Tensor) -> Any:
        enabled = self.work.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            return self.model(*inputs)

    def backward(self, loss: Tensor) -> None:
        (loss / self.micros).backward()  # type: ignore[no-untyped-call]

    def gather(self, values_N: Tensor) -> Tensor:
        return values_N

    def clip(self) -> float:
        return clip(self.model.parameters(), self.part)

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def clip(tensors: Iterable[nn.Parameter], part: OptimizerPart) -> float:
    """Scale all gradients together down to the recipe's norm; returns the norm before."""
    trained = [tensor for tensor in tensors if tensor.grad is not None]
    return float(nn.utils.clip_grad_norm_(trained, part.gradient_clipping))
