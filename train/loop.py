"""The training loop of one worker. Knows neither Ray nor DeepSpeed: the engine is handed in.

Writes: metrics.jsonl (one line a step), checkpoints/.
Kind: actor.
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn
from transformers import CLIPTokenizer
from transformers.optimization import Adafactor

from sote.cluster.errors import RunFailed
from sote.cluster.logs import Metrics
from sote.cluster.storage import RunFolder
from sote.train import batches, checkpoint, optimizer, prior
from sote.train.batches import Batch, Loader, Micro, Order
from sote.train.checkpoint import Origin, State
from sote.train.engine import Engine
from sote.train.recipe import BatchPart, CheckpointPart, LengthPart, OptimizerPart

MOST_NAMED_ROWS = 8  # ids in an error message


@dataclass(frozen=True)
class Training:
    """Everything of a run but the engine."""

    model: nn.Module
    adafactor: Adafactor
    tokenizer: CLIPTokenizer
    order: Order
    loader: Loader
    folder: RunFolder
    origin: Origin
    batch: BatchPart
    optimizer: OptimizerPart
    length: LengthPart
    checkpoint: CheckpointPart

    @property
    def steps(self) -> int:
        """The last step of the run."""
        return batches.last_step(self.length, self.order)


@dataclass(frozen=True)
class Figures:
    """What one step gave, over all workers."""

    loss: float
    plain_loss: float
    gradient_norm: float


def train(run: Training, engine: Engine, *, after: int) -> None:
    """Train from the step after `after` to the end. Raises RunFailed at a loss or gradient that is not finite."""
    run.model.train()
    metrics = Metrics(run.folder.metrics) if engine.rank == 0 else None
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as reader:
        coming = reader.submit(load, run, after + 1, engine=engine)
        for step in range(after + 1, run.steps + 1):
            began = time.monotonic()
            batch, micros = coming.result()
            waited = time.monotonic() - began
            if step < run.steps:
                coming = reader.submit(load, run, step + 1, engine=engine)
            figures = update(run, engine, batch=batch, micros=micros)
            if metrics is not None:
                _report(metrics, run, batch, figures=figures, seconds=time.monotonic() - began, waited=waited)
                if step % run.checkpoint.every_steps == 0 or step == run.steps:
                    _save(run, batch)


def load(run: Training, step: int, *, engine: Engine) -> tuple[Batch, list[Micro]]:
    """The batch of `step` and this worker's micro-batches of it."""
    batch = run.order.batch(step, epochs=run.length.epochs)
    share = run.batch.effective_batch // run.batch.micro_batch // engine.workers
    mine = range(engine.rank * share, (engine.rank + 1) * share)
    return batch, [run.loader.micro(batch, index) for index in mine]


def update(run: Training, engine: Engine, *, batch: Batch, micros: list[Micro]) -> Figures:
    """One step: forward and backward over the micro-batches, clip, update."""
    optimizer.set_rates(run.adafactor, run.optimizer, step=batch.step)
    weighted, plain = [], []
    for micro in micros:
        found = prior.losses(engine, micro, tokenizer=run.tokenizer, device=engine.device)
        engine.backward(found.loss)
        weighted.append(found.weighted_B)
        plain.append(found.plain_B)
    weighted_N, plain_N = engine.gather(torch.cat(weighted)).cpu(), engine.gather(torch.cat(plain)).cpu()
    _refuse_broken(run, batch, finite=weighted_N.isfinite().tolist())
    norm = engine.clip()
    if not math.isfinite(norm):
        raise RunFailed(
            f"step {batch.step}: the gradient is {norm}, though the loss is {float(weighted_N.mean()):.4g}; "
            f"weights were not touched, the last checkpoint is good: lower the learning rate"
        )
    engine.update()
    return Figures(float(weighted_N.mean()), float(plain_N.mean()), norm)


def _refuse_broken(run: Training, batch: Batch, *, finite: list[bool]) -> None:
    """Raise RunFailed naming the rows whose loss is not a number. `finite` has a value for each row of the batch."""
    ids = run.loader.rows.id
    broken = [ids[int(row)].as_py() for row, good in zip(batch.rows, finite, strict=True) if not good]
    if broken:
        more = f" and {len(broken) - MOST_NAMED_ROWS} more" if len(broken) > MOST_NAMED_ROWS else ""
        raise RunFailed(
            f"step {batch.step}: loss is not finite for {len(broken)} of {len(finite)} images of bucket "
            f"{batch.bucket}: {', '.join(broken[:MOST_NAMED_ROWS])}{more}; the last checkpoint is good"
        )


def _report(metrics: Metrics, run: Training, batch: Batch, *, figures: Figures, seconds: float, waited: float) -> None:
    metrics.write(
        kind="step",
        step=batch.step,
        loss=figures.loss,
        plain_loss=figures.plain_loss,
        grad_norm=figures.gradient_norm,
        lr=run.adafactor.param_groups[0]["lr"],
        images_seen=batch.step * run.batch.effective_batch,
        images_per_second=round(run.batch.effective_batch / seconds, 3),
        data_wait_share=round(waited / seconds, 4),
        epoch=batch.epoch,
        bucket=batch.bucket,
    )


def _save(run: Training, batch: Batch) -> None:
    state = State(
        step=batch.step,
        epoch=batch.epoch,
        images_seen=batch.step * run.batch.effective_batch,
        seed=run.batch.seed,
        recipe=run.origin.recipe,
        compression=run.origin.compression,
        encoder_sha256=run.origin.encoder_sha256,
        text_mask=prior.TEXT_MASK,
    )
    checkpoint.save(run.folder.checkpoints, state, model=run.model, adafactor=run.adafactor, keep=run.checkpoint.keep)
