"""The engine over several workers: DeepSpeed 0.19.8, ZeRO stage 0, 1 or 2, in the process group that Ray Train made.

| stage, precision | model's weights | masters       | micro-batches' gradients add up in         | over workers |
|------------------|-----------------|---------------|--------------------------------------------|--------------|
| 0, bfloat16      | float32         | the weights   | float32, whole                             | float32      |
| 1, bfloat16      | bfloat16        | float32 shard | bfloat16, whole: 2 B a weight              | float32      |
| 2, bfloat16      | bfloat16        | float32 shard | float32, its own shard: 4 B a weight / W   | float32      |
| any, float32     | float32         | float32       | float32                                    | float32      |

Arithmetic in bfloat16 is autocast in each of them, so the model is fed alike. At stage 1 DeepSpeed could add up in
float32 too, but then keeps a float32 gradient of everything (17 GB at full size) beside it: where a worker has several
micro-batches in a step, stage 2 is exact and smaller. Stage 0 reduces after the backward pass, 1 and 2 during it.

DeepSpeed makes the masters from weights that it has rounded to bfloat16 already; here they keep their float32 bits. Its
clipping, its search for overflows and its own averaging are off: loss shares and `clip` do that.

Private names of DeepSpeed are read in `_ZeRO` alone, and a test holds them to what they mean.

Kind: actor.
"""

import logging
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer, GradPartitionBufferGroup
from torch import Tensor, nn

from sote.train import engine, optimizer, shards, zero_settings
from sote.train.masters import Masters
from sote.train.piecewise import Piecewise
from sote.train.recipe import BatchPart, OptimizerPart, WorkersPart
from sote.train.shards import Piece, Shard

PART = 2**28  # elements of a gradient that is clipped in parts: one shard of everything has more than 2^31
START_ALIGNMENT = 2  # elements: DeepSpeedZeroOptimizer.nccl_start_alignment_factor


class DeepSpeed(engine.ByName):
    """See engine.Engine. Needs torch.distributed to be set up."""

    def __init__(self, model: nn.Module, *, part: OptimizerPart, batch: BatchPart, work: WorkersPart) -> None:
        self.part = part
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.micros = zero_settings.micros_of_worker(batch, workers=self.workers)
        self.done = 0  # micro-batches of the step
        self.optimizer = optimizer.make(model, part)
        whole = engine.whole_masters(self.optimizer, workers=self.workers, rank=self.rank)
        planned = _Shards.of(self.optimizer, workers=self.workers, rank=self.rank) if work.zero_stage else None
        config = zero_settings.make(batch, work, workers=self.workers)
        self.engine = _start(_Cast(model, work.precision), self.optimizer, config)
        self.zero = _ZeRO(self.engine.optimizer, planned) if planned is not None else None
        self.masters = self.zero.masters(self.optimizer, rank=self.rank) if self.zero is not None else whole
        self.device = torch.device(self.engine.device)

    def __call__(self, *inputs: Tensor) -> Any:
        return self.engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.done += 1
        self.engine.set_gradient_accumulation_boundary(self.done == self.micros)
        self.engine.backward(loss, scale_wrt_gas=False)

    def gather(self, values_N: Tensor) -> Tensor:
        values_N = values_N.to(self.device).contiguous()
        found = [torch.empty_like(values_N) for _ in range(self.workers)]
        dist.all_gather(found, values_N)
        return torch.cat(found)

    def clip(self) -> float:
        if self.zero is not None:
            return engine.clip(self.zero.gradients(), self.part, reduce=dist.all_reduce)
        # the last backward has summed them over the workers: the norm is the same everywhere
        return engine.clip([tensor.grad for tensor in self.masters.tensors if tensor.grad is not None], self.part)

    def update(self, *, step: int, updates: int) -> None:
        optimizer.prepare(self.optimizer, self.part, step=step, updates=updates)
        self.engine.step()
        self.done = 0

    def skip(self) -> None:
        self.engine.zero_grad()
        if self.zero is not None:
            self.zero.forget_gradients()
        self.done = 0

    def refresh(self) -> None:
        if self.zero is not None:
            self.zero.refresh()


def _start(model: nn.Module, chosen: Piecewise, config: dict[str, Any]) -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    backend = dist.get_backend()
    if backend == "gloo":
        # A C++ extension that would be compiled for minutes at the first start; gloo does its work as well
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return deepspeed.initialize(model=model, optimizer=chosen, config=config)[0]


class _Cast(nn.Module):
    """A model under autocast. DeepSpeed's own would be a setting of the whole process, and changes how it reduces."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.low = model, precision == "bfloat16"

    def forward(self, *inputs: Tensor) -> Any:
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.low):
            return self.model(*inputs)


@dataclass
class _Shards:
    """How ZeRO is going to cut each group, and the float32 bits of this worker's shards before it does."""

    tensors: list[list[Tensor]]
    every: list[list[Shard]]
    mine: list[Tensor]

    @classmethod
    def of(cls, chosen: Piecewise, *, workers: int, rank: int) -> "_Shards":
        """Tell the optimizer too. The bits are kept on the CPU: the GPU will be full for a moment."""
        tensors, every, mine = [], [], []
        for index, group in enumerate(chosen.param_groups):
            given = [Piece.of(name, p.shape) for name, p in zip(group["names"], group["params"], strict=True)]
            cut = shards.cut(given, workers=workers, alignment=START_ALIGNMENT * workers)
            flat = {piece.name: p.detach().reshape(-1) for piece, p in zip(given, group["params"], strict=True)}
            parts = [flat[piece.name][piece.start :][: piece.length].cpu() for piece in cut[rank]]
            chosen.lay_out(index, every=cut, rank=rank, reduce=dist.all_reduce)
            tensors.append(list(group["params"]))
            every.append(cut)
            mine.append(torch.cat(parts) if parts else torch.empty(0))
        return cls(tensors, every, mine)


class _ZeRO:
    """The private side of DeepSpeed's optimizer of stages 1 and 2: one flat shard for each group."""

    def __init__(self, zero: DeepSpeedZeroOptimizer, planned: _Shards) -> None:
        self.zero, self.planned = zero, planned
        for index, (tensors, every) in enumerate(zip(planned.tensors, planned.every, strict=True)):
            self._check(index, tensors, every)
            bits, flat = planned.mine[index], zero.single_partition_of_fp32_groups[index]
            flat.detach()[: len(bits)].copy_(bits)
        planned.mine = []

    def masters(self, chosen: Piecewise, *, rank: int) -> Masters:
        mine = [every[rank] for every in self.planned.every]
        givers = [list(worker) for worker in zip(*self.planned.every, strict=True)]
        return Masters(self.zero.single_partition_of_fp32_groups, mine, givers, rank=rank, optimizer=chosen)

    def gradients(self) -> list[Tensor]:
        """The step's gradient of the shards, float32, in parts; whatever is done to these, the update takes.

        DeepSpeed has it as a list of tensors in the type that it added up in, or as one flat tensor already.
        """
        found = []
        for index, parts in self.zero.averaged_gradients.items():
            flat = getattr(parts, "flat_partition", None)
            if flat is None or flat.dtype != torch.float32:
                flat = torch.cat([part.reshape(-1).float() for part in parts])
                self.zero.averaged_gradients[index] = GradPartitionBufferGroup([flat], flat)
            found += flat.split(PART)
        return found

    def forget_gradients(self) -> None:
        """What DeepSpeed does itself after an overflow."""
        self.zero.zero_grad(set_to_none=True)
        for index in self.zero.averaged_gradients:
            self.zero.averaged_gradients[index] = None
            self.zero.all_grad_tensors[index] = None

    def refresh(self) -> None:
        """Give the model the masters' values. Collective."""
        self.zero.update_lp_params()

    def _check(self, index: int, tensors: list[Tensor], every: list[Shard]) -> None:
        """Raise RuntimeError if DeepSpeed has cut this group otherwise than `shards.cut` says."""
        given = self.zero.round_robin_bit16_groups[index]
        ends = list(zip(given, self.zero.round_robin_bit16_offsets[index], strict=True))
        at, same = 0, len(given) == len(tensors)
        for (theirs, offset), ours in zip(ends, tensors, strict=False):
            same, at = same and theirs is ours and offset == at, at + ours.numel()
        size = self.zero.partition_size[index]
        lengths = [sum(piece.length for piece in shard) for shard in every]
        full = [min(max(at - worker * size, 0), size) for worker in range(len(every))]
        if not same or lengths != full:
            raise RuntimeError(f"DeepSpeed {deepspeed.__version__} cuts tensors otherwise than 0.19.8 did")
