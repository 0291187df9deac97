"""What the loop needs of whatever drives the arithmetic, and the plain one: one process, nothing but torch.

An engine is called like the model. Of one step the order is: call and `backward` for each micro-batch, `gather` as
often as one likes, `clip`, then `update` or `skip`. A step of M = effective_batch / micro_batch micro-batches over W
workers is ceil(M / W) micro-batches for each; what is over is padding, a loss times 0, so that any W works.

Weights that learn are float32 here always, and so are their gradients; `precision` is that of the arithmetic.

Kind: actor.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sote.train import optimizer
from sote.train.masters import Masters
from sote.train.piecewise import Piecewise
from sote.train.recipe import BatchPart, OptimizerPart, WorkersPart
from sote.train.shards import Piece, Shard

ROUNDING = 1e-6  # added to the norm before it divides: torch.nn.utils.clip_grad_norm_


class Engine(Protocol):
    """Forward, backward and update over all workers. `rank` is this worker's place among `workers`."""

    rank: int
    workers: int
    device: torch.device

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the model."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's share of the step's mean loss. Those of all workers are summed."""

    def gather(self, values_N: Tensor) -> Tensor:
        """The values of all workers, one after the other. Collective."""

    def clip(self) -> float:
        """Clip the gradients of the step to the recipe's norm; returns the norm before. Collective."""

    def update(self, *, step: int, updates: int) -> None:
        """Update the weights at `step` of the run, for the `updates`-th time (from 1); forget the gradients."""

    def skip(self) -> None:
        """Forget the gradients of the step; the weights stay."""

    def pieces(self) -> list[Tensor]:
        """The float32 weights that this worker updates: whole tensors or flat shards. The tensors themselves."""

    def assemble(self, pieces: list[Tensor]) -> dict[str, Tensor]:
        """Whole tensors by name out of tensors like `pieces`: copies on worker 0's CPU, {} elsewhere. Collective."""

    def fill(self, pieces: list[Tensor], read: Callable[[str], Tensor]) -> None:
        """Overwrite tensors like `pieces` with what `read` gives for a name."""

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state as `<name>/<moment>`: whole tensors on worker 0's CPU, {} elsewhere. Collective."""

    def load(
        self,
        weights: Callable[[str], Tensor] | None,
        state: Callable[[str], Tensor] | None,
        *,
        updates: int,
    ) -> None:
        """Take weights and state by name, after so many updates; None leaves what is there. Collective."""


class ByName:
    """What all engines have alike: weights and state go in and out by name, through the masters. See Engine."""

    optimizer: Piecewise
    masters: Masters

    def pieces(self) -> list[Tensor]:
        return [tensor.detach() for tensor in self.masters.tensors]

    def assemble(self, pieces: list[Tensor]) -> dict[str, Tensor]:
        return self.masters.assemble(pieces)

    def fill(self, pieces: list[Tensor], read: Callable[[str], Tensor]) -> None:
        self.masters.fill(pieces, read)

    def state(self) -> dict[str, Tensor]:
        return self.masters.state()

    def load(
        self,
        weights: Callable[[str], Tensor] | None,
        state: Callable[[str], Tensor] | None,
        *,
        updates: int,
    ) -> None:
        self.optimizer.updates = updates + 1
        if weights is not None:
            self.masters.fill(self.pieces(), weights)
            self.refresh()
        if state is not None:
            self.masters.load_state(state)

    def refresh(self) -> None:
        """Give the model what the masters now hold; nothing to do where they are the model's own weights."""


class Plain(ByName):
    """The engine of one process. See Engine."""

    rank = 0
    workers = 1

    def __init__(
        self,
        model: nn.Module,
        *,
        part: OptimizerPart,
        batch: BatchPart,  # noqa: ARG002 - every engine is made alike; this one need not know which micro-batch is last
        work: WorkersPart,
    ) -> None:
        self.model, self.part, self.work = model, part, work
        self.optimizer = optimizer.make(model, part)
        self.masters = whole_masters(self.optimizer, workers=1, rank=0)
        self.device = next(model.parameters()).device

    def __call__(self, *inputs: Tensor) -> Any:
        enabled = self.work.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            return self.model(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def gather(self, values_N: Tensor) -> Tensor:
        return values_N

    def clip(self) -> float:
        return clip([tensor.grad for tensor in self.masters.tensors if tensor.grad is not None], self.part)

    def update(self, *, step: int, updates: int) -> None:
        optimizer.prepare(self.optimizer, self.part, step=step, updates=updates)
        self.optimizer.step()
        self.skip()

    def skip(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


def whole_masters(optimizer: Piecewise, *, workers: int, rank: int) -> Masters:
    """Masters that every worker has whole: the tensors that the optimizer was given."""
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    names = [name for group in optimizer.param_groups for name in group["names"]]
    mine: list[Shard] = [(Piece.of(name, tensor.shape),) for name, tensor in zip(names, tensors, strict=True)]
    givers: list[list[Shard]] = [mine if worker == 0 else [] for worker in range(workers)]
    return Masters(tensors, mine, givers, rank=rank, optimizer=optimizer)


@torch.no_grad()
def clip(gradients: Iterable[Tensor], part: OptimizerPart, *, reduce: Callable[[Tensor], None] | None = None) -> float:
    """Scale all gradients together down to the recipe's norm; returns the norm before.

    `reduce` sums a tensor over the workers in place, where each has a part of the gradient.
    """
    gradients = list(gradients)
    norms = torch._foreach_norm(gradients) if gradients else [torch.zeros(())]
    total = torch.stack(list(norms)).square().sum()
    if reduce is not None:
        reduce(total)
    norm = total.sqrt()
    torch._foreach_mul_(gradients, (part.gradient_clipping / (norm + ROUNDING)).clamp(max=1.0))
    return float(norm)
