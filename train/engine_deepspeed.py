"""The engine over several workers: DeepSpeed, stage 0, inside a process group that Ray Train has made.

torch_autocast keeps the weights in float32 under bfloat16 arithmetic; Adafactor sees whole tensors and is exact.

Kind: actor.
"""

import logging
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sote.train import engine
from sote.train.recipe import BatchPart, OptimizerPart, WorkersPart


class DeepSpeed:
    """See engine.Engine. Needs torch.distributed to be set up."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        part: OptimizerPart,
        batch: BatchPart,
        work: WorkersPart,
    ) -> None:
        self.part = part
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if not work.use_gpu:
            # A C++ extension that would be compiled for minutes at the first start; gloo does its work as well
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if work.use_gpu else "gloo", verbose=False)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings(batch, work, workers=self.workers)
        )
        self.device = torch.device(self.engine.device)

    def __call__(self, *inputs: Tensor) -> Any:
        return self.engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # counts the micro-batch, no more

    def gather(self, values_N: Tensor) -> Tensor:
        found = [torch.empty_like(values_N) for _ in range(self.workers)]
        dist.all_gather(found, values_N.contiguous())
        return torch.cat(found)

    def clip(self) -> float:
        # stage 0 has averaged the gradients over the workers in the last backward: the norm is the same everywhere
        return engine.clip(self.engine.module.parameters(), self.part)

    def update(self) -> None:
        self.engine.step()


def settings(batch: BatchPart, work: WorkersPart, *, workers: int) -> dict[str, Any]:
    """DeepSpeed's configuration, computed from the recipe. Its clipping is off: `DeepSpeed.clip` clips."""
    return {
        "train_batch_size": batch.effective_batch,
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.effective_batch // (batch.micro_batch * workers),
        "gradient_clipping": 0.0,  # DeepSpeed's own default is 1.0
        "torch_autocast": {"enabled": work.precision == "bfloat16", "dtype": "bfloat16"},
        "zero_optimization": {"stage": work.zero_stage},
        "zero_allow_untested_optimizer": True,  # stage 0 hands whole tensors to any optimizer
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
