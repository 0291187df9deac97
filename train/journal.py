"""What a run says of itself while it trains: a line when workers start, and one for each step.

Only the first worker writes; `board` is None on the others.

Kind: actor.
"""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from sote.cluster.storage import RunFolder
from sote.train import decoder, figures, optimizer, text
from sote.train.batches import Batch
from sote.train.board import Board
from sote.train.engine import Engine
from sote.train.figures import Cost, Outcome
from sote.train.recipe import TrainRecipe
from sote.train.task import Task


class Journal:
    """Writes metrics.jsonl and TensorBoard's files. The ceiling of the device is measured at the start."""

    def __init__(
        self, recipe: TrainRecipe, task: Task, engine: Engine, *, folder: RunFolder, resumed_from: int | None
    ) -> None:
        self.recipe, self.engine = recipe, engine
        self.cost = cost(recipe, task)
        self.board: Board | None = None
        self.ceiling = 0.0
        if engine.rank == 0:
            self.board = Board(folder, after=resumed_from or 0)
            self.ceiling = figures.ceiling(engine.device, recipe.workers.precision)
            self.board.line(
                "start",
                workers=engine.workers,
                zero_stage=recipe.workers.zero_stage,
                device=figures.name_of(engine.device),
                tflops_ceiling=round(self.ceiling, 4),
                resumed_from=resumed_from,
            )
        self.ended = time.monotonic()

    def step(self, batch: Batch, outcome: Outcome, *, cells: Sequence[int], waited: float) -> None:
        """Write the line of a step on latents of `cells` (height, width); `waited` is seconds without data."""
        began, self.ended = self.ended, time.monotonic()
        if self.board is None:
            return
        seconds, size = max(self.ended - began, 1e-9), self.recipe.batch.effective_batch
        rates = optimizer.rates(self.recipe.optimizer, step=batch.step)
        work = self.cost.flop((cells[0], cells[1])) * size / seconds / 1e12
        self.board.step(
            batch.step,
            loss=figures.finite(outcome.loss),
            plain_loss=figures.finite(float(outcome.plain_N.mean())),
            **figures.by_time(outcome.plain_N, outcome.time_N),
            grad_norm=None if outcome.norm is None else figures.finite(outcome.norm),
            lr=rates[self.recipe.model.stage],
            lr_text_encoder=rates.get("text_encoder") if self.cost.trains_text else None,
            images_seen=batch.step * size,
            images_per_second=round(size / seconds, 3),
            data_wait_share=round(min(waited / seconds, 1.0), 4),
            mfu=round(work / (self.ceiling * self.engine.workers), 5),
            memory_gb=round(figures.memory_gb(self.engine.device), 3),
            epoch=batch.epoch,
            bucket=batch.bucket,
            workers=self.engine.workers,
            skipped=outcome.skipped,
            **({"skipped_ids": outcome.suspects} if outcome.skipped is not None else {}),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.board is not None:
            self.board.close()


def cost(recipe: TrainRecipe, task: Task) -> Cost:
    """What training on an image costs."""
    is_prior = recipe.model.stage == "prior"
    encoder = task.sources.get("text_encoder")
    return Cost(
        unet=task.sources[recipe.model.stage].config,
        text=encoder.config if encoder is not None else None,
        tokens=recipe.text.tokens if is_prior else decoder.WINDOWS * text.WINDOW,
        trains_text=is_prior and recipe.optimizer.text_encoder_learning_rate is not None,
        has_adapters=recipe.lora is not None,
    )
