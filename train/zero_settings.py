"""What DeepSpeed is told, computed from the recipe; engine_deepspeed says why.

Kind: pure.
"""

import math
from typing import Any

from sote.train.recipe import BatchPart, WorkersPart

# Elements sent at a time. DeepSpeed's 5e8 take 5 GB of buffers (two of bfloat16, one of float32); these take 1 GB
BUCKET = 100_000_000


def micros_of_worker(batch: BatchPart, *, workers: int) -> int:
    """Micro-batches that each worker computes in a step, padding included."""
    return math.ceil(batch.effective_batch // batch.micro_batch / workers)


def make(batch: BatchPart, work: WorkersPart, *, workers: int) -> dict[str, Any]:
    """DeepSpeed's configuration, computed from the recipe."""
    low = work.precision == "bfloat16" and work.zero_stage > 0
    found = {
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": micros_of_worker(batch, workers=workers),
        "gradient_clipping": 0.0,  # DeepSpeed's own default is 1.0
        "gradient_allreduce_op": "sum",
        "communication_data_type": "fp32",
        "bf16": {"enabled": low, "check_grad_overflow": False},
        "zero_optimization": {
            "stage": work.zero_stage,
            "overlap_comm": work.use_gpu,
            "reduce_bucket_size": BUCKET,
            "compute_grad_norm": work.zero_stage == 0,  # refused there, and unused
            "round_robin_gradients": False,
        },
        "zero_allow_untested_optimizer": True,  # it has a list of optimizers that bear shards; ours do
        "timers": {"throughput": {"enabled": False}},  # they wait for the GPU at each call
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    # what is not named is added up in the weights' type
    return found | ({"data_types": {"grad_accum_dtype": "fp32"}} if low and work.zero_stage == 2 else {})
