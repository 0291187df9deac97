"""The training loop of one worker. Knows neither Ray nor DeepSpeed: the engine is handed in.

A step: the losses of all micro-batches and their gradients, the guard's verdict, the update, the running means, a line
of figures, and what is due to be saved. All random numbers come from (seed, step, place), so a run that continues from
a checkpoint makes the same steps as one that was never stopped.

Shapes: B images of a micro-batch, N images of a step, in the order of the batch.

Writes: metrics.jsonl, tensorboard/, checkpoints/, .snapshots/.
Kind: actor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sote.cluster import weights
from sote.cluster.storage import RunFolder
from sote.train import diffusion, guard, weighting
from sote.train.averages import Averages
from sote.train.batches import Batch, Loader, Micro, Order, Prefetch, last_step
from sote.train.checkpoint import Checkpoint, Origin, Reader, State
from sote.train.engine import Engine
from sote.train.figures import Outcome
from sote.train.guard import Guard
from sote.train.journal import Journal
from sote.train.recipe import TrainRecipe
from sote.train.saving import Saver
from sote.train.task import Task

WISHES = (None, "save", "stop")  # the strongest of all workers' wishes wins

Wish = Callable[[int], str | None]


def no_wish(step: int) -> str | None:  # noqa: ARG001
    """Train to the end."""
    return None


@dataclass(frozen=True)
class Training:
    """Everything of a run but the engine. `wish` is asked once a step on every worker: one of WISHES."""

    recipe: TrainRecipe
    task: Task
    order: Order
    loader: Loader
    folder: RunFolder
    origin: Origin
    wish: Wish

    @property
    def steps(self) -> int:
        """The last step of the run."""
        return last_step(self.recipe.length, self.order)

    @property
    def micros(self) -> int:
        """Micro-batches of a step, over all workers."""
        return self.recipe.batch.effective_batch // self.recipe.batch.micro_batch


class Loop:
    """The steps of one run on one worker, after the step of `found` (None: from the start)."""

    def __init__(self, run: Training, engine: Engine, *, found: Checkpoint | None) -> None:
        self.run, self.engine, recipe = run, engine, run.recipe
        state = found.state if found is not None else None
        self.resumed_from = state.step if state is not None else None
        self.updates = state.updates if state is not None else 0
        self.guard = Guard(recipe.guard)
        self.weighting = weighting.make(recipe.diffusion.loss_weight)
        if state is not None:
            self.guard = Guard(recipe.guard, recent=state.recent_losses, bad=state.bad_steps)
            self.weighting.load(list(state.loss_buckets) if state.loss_buckets is not None else None)
        self.averages = Averages(recipe.ema, engine, step=self.resumed_from or 0) if recipe.ema is not None else None
        if found is not None and self.averages is not None:
            self.averages.load(Reader(found, has_lora=recipe.lora is not None).average)
        self.each = -(-run.micros // engine.workers)  # micro-batches of this worker

    @property
    def indices(self) -> list[int]:
        """The micro-batches of a step that this worker computes; beyond the last one it is repeated, as padding."""
        first = self.engine.rank * self.each
        return [min(index, self.run.micros - 1) for index in range(first, first + self.each)]

    def step(self, batch: Batch, micros: Sequence[Micro]) -> Outcome:
        """Forward and backward over the micro-batches, and the update unless the guard finds the step bad."""
        plain_N, time_N, wish = self._gathered(self._losses(micros), micros, self.run.wish(batch.step))
        log_snr_N = diffusion.log_snr(time_N)
        loss = float((plain_N * self.weighting.weights(log_snr_N)).mean())
        skipped, norm = self.guard.of_loss(loss), None
        if skipped is None:
            norm = self.engine.clip()
            skipped = self.guard.of_gradient(norm)
        if skipped is None:
            self.updates += 1
            self.engine.update(step=batch.step, updates=self.updates)
            self.weighting.update(log_snr_N, plain_N)
            self.guard.passed(loss)
            return Outcome(loss, plain_N, time_N, norm, None, [], wish)
        self.engine.skip()
        ids = [str(self.run.loader.rows.id[int(row)].as_py()) for row in batch.rows]
        suspects = guard.suspects(ids, plain_N.tolist(), reason=skipped)
        self.guard.skipped(suspects)
        return Outcome(loss, plain_N, time_N, norm, skipped, suspects, wish)

    def state(self, batch: Batch) -> State:
        """Where the run is after the step of `batch`."""
        recipe, origin = self.run.recipe, self.run.origin
        buckets = self.weighting.state()
        return State(
            step=batch.step,
            updates=self.updates,
            epoch=batch.epoch,
            images_seen=batch.step * recipe.batch.effective_batch,
            seed=recipe.batch.seed,
            workers=self.engine.workers,
            recipe=origin.recipe,
            compression=origin.compression,
            encoder_sha256=origin.encoder_sha256,
            text_mask="masked" if recipe.text.mask_padding else "unmasked",
            text_tokens=recipe.text.tokens,
            base=base(recipe),
            recent_losses=tuple(self.guard.recent),
            bad_steps=self.guard.bad,
            loss_buckets=tuple(buckets) if buckets is not None else None,
        )

    def _losses(self, micros: Sequence[Micro]) -> Tensor:
        """The plain loss of each image of this worker; its gradients are in the engine."""
        share = self.run.recipe.batch.micro_batch / self.run.recipe.batch.effective_batch
        plain = []
        for place, micro in enumerate(micros, start=self.engine.rank * self.each):
            inputs = self.run.task.feed(micro, self.engine.device)
            weight_B = self.weighting.weights(diffusion.log_snr(micro.time_B)).to(self.engine.device)
            torch.manual_seed(micro.seed)  # the model's dropout
            loss, plain_B = self.engine(*inputs, weight_B)
            self.engine.backward(loss * (share if place < self.run.micros else 0.0))
            plain.append(plain_B)
        return torch.cat(plain)

    def _gathered(
        self, plain_N: Tensor, micros: Sequence[Micro], wish: str | None
    ) -> tuple[Tensor, Tensor, str | None]:
        """Loss and time of each image of the step, and the strongest wish; the same on all workers."""
        time_N = torch.cat([micro.time_B for micro in micros]).to(plain_N)
        sent = torch.cat([plain_N, time_N, plain_N.new_tensor([WISHES.index(wish)])])
        found = self.engine.gather(sent).cpu().view(self.engine.workers, -1)
        mine, size = len(plain_N), self.run.recipe.batch.effective_batch
        plain, times = found[:, :mine].reshape(-1)[:size], found[:, mine : 2 * mine].reshape(-1)[:size]
        return plain, times, WISHES[int(found[:, -1].max())]


def base(recipe: TrainRecipe) -> str:
    """What a run starts from: the key of known weights, or the last part of a path (published files should not tell
    where things lie on a disk)."""
    reference = recipe.model.decoder or "" if recipe.model.stage == "decoder" else recipe.model.prior
    return reference if reference in weights.BY_KEY else Path(reference).name


def train(run: Training, engine: Engine, *, found: Checkpoint | None) -> bool:
    """Train from the step after `found` to the end; False: ended before by a wish, everything saved.

    Raises RunFailed: too many bad steps in a row, or a full disk.
    """
    run.task.model.train()
    loop = Loop(run, engine, found=found)
    recipe, steps = run.recipe, run.steps
    coming = Prefetch(
        run.loader,
        run.order,
        steps=range((loop.resumed_from or 0) + 1, steps + 1),
        epochs=recipe.length.epochs,
        indices=loop.indices,
        part=recipe.data,
    )
    every = recipe.samples.every_steps if recipe.samples is not None else None
    with (
        Journal(recipe, run.task, engine, folder=run.folder, resumed_from=loop.resumed_from) as journal,
        Saver(recipe, run.task, engine, folder=run.folder, board=journal.board) as saver,
        coming,
    ):
        for batch, micros in coming:
            outcome = loop.step(batch, micros)
            if loop.averages is not None:
                loop.averages.follow(batch.step)
            journal.step(batch, outcome, cells=micros[0].noise_BCHW.shape[2:], waited=coming.waited)
            loop.guard.check(batch.step, outcome.skipped)
            is_due = batch.step % recipe.checkpoint.every_steps == 0 or batch.step == steps
            keeps, paints = is_due or outcome.wish is not None, every is not None and batch.step % every == 0
            if keeps or paints:
                saver.save(loop.state(batch), averages=loop.averages, keeps=keeps, paints=paints)
            saver.look()
            if outcome.wish == "stop":
                return batch.step == steps
    return True
