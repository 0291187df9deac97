"""What one worker of a training holds in memory, by part, before anything is started; and what to change if it is too
much.

Bytes of weights, gradients, masters and moments are what the engines hold (the table in train/engine_deepspeed.py).
Buffers, activations (train/arithmetic.py) and the reserve are ESTIMATES.

Kind: pure.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sote.train import arithmetic, shapes
from sote.train.arithmetic import Activations, Cells, Values
from sote.train.recipe import LoraPart, TrainRecipe

FULL, HALF = 4, 2  # bytes of a number in float32 and in bfloat16
# Elements sent at a time: DeepSpeed's buffers hold each in bfloat16 twice and in float32 (engine_deepspeed.BUCKET);
# without ZeRO its stage 0 puts 5e8 together in float32 (deepspeed 0.19.8 runtime/engine.py)
BUCKET, BUCKET_BYTES = 100_000_000, 10
PLAIN_BUCKET = 500_000_000
RESERVE: Final = 1_500_000_000  # CUDA's context, workspaces of libraries, what an update makes for one tensor
SHARES: Final = tuple(step / 20 for step in range(1, 21))  # of the layers to compute twice, that are tried


@dataclass(frozen=True)
class Models:
    """What a run holds: configs of the UNet that it trains and of its text encoder, and the weights of other nets."""

    unet: Values
    text: Values
    others: int = 0


@dataclass(frozen=True)
class Learning:
    """Numbers of weights: those that are trained, those that are frozen, and of the optimizer's moments."""

    trained: int
    frozen: int
    moments: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker."""

    weights: float
    frozen: float
    gradients: float
    masters: float
    moments: float
    averages: float
    buffers: float
    reserve: float
    activations: Activations  # of a whole micro-batch

    @property
    def state(self) -> float:
        """All that does not grow with the micro-batch."""
        held = self.weights + self.frozen + self.gradients + self.masters + self.moments + self.averages
        return held + self.buffers + self.reserve

    @property
    def total(self) -> float:
        return self.state + self.activations.total


def of(recipe: TrainRecipe, models: Models, *, cells: Cells) -> Memory:
    """The memory of one worker at the fewest workers that the recipe allows: then each holds the most.

    `cells` are those of the largest latents.
    """
    work = recipe.workers
    low, stage = work.precision == "bfloat16", work.zero_stage
    count = work.min_count or work.count
    part = count if stage else 1  # workers that share what is cut
    learns = learning(recipe, models)
    trained = learns.trained
    held = HALF if low and stage else FULL  # of a weight in the model, and of its gradient at stages 0 and 1
    return Memory(
        weights=held * trained,
        frozen=(HALF if low else FULL) * learns.frozen,
        # at the update stages 1 and 2 have the worker's shard in float32; stage 1 has all of it besides
        gradients=(held * trained if stage < 2 else 0) + (FULL * trained / part if stage else 0),
        masters=FULL * trained / part if stage else 0,
        moments=FULL * learns.moments / part,
        averages=FULL * trained / part if recipe.ema is not None else 0,
        buffers=_buffers(trained, stage=stage, is_cast=low, workers=count),
        reserve=RESERVE if work.use_gpu else 0,
        activations=activations(recipe, models, cells=cells, recomputed=recipe.model.gradient_checkpointing),
    )


def activations(recipe: TrainRecipe, models: Models, *, cells: Cells, recomputed: float) -> Activations:
    """What a micro-batch keeps from the forward to the backward pass. With adapters it is less than this."""
    each = HALF if recipe.workers.precision == "bfloat16" else FULL
    tokens = recipe.text.tokens
    found = arithmetic.activations(models.unet, cells=cells, tokens=tokens, recomputed=recomputed, bytes_each=each)
    if trains_text(recipe):
        share = 1 / round(1 / recomputed) if recomputed else 0.0  # every so many-th layer (train/task.py)
        found = found.plus(arithmetic.text_activations(models.text, tokens=tokens, recomputed=share, bytes_each=each))
    return Activations().plus(found, recipe.batch.micro_batch)


def trains_text(recipe: TrainRecipe) -> bool:
    """Whether the text encoder learns: Stage B's never does."""
    return recipe.model.stage == "prior" and recipe.optimizer.text_encoder_learning_rate is not None


def learning(recipe: TrainRecipe, models: Models) -> Learning:
    """How many weights learn, how many do not, and what the optimizer keeps beside those that do."""
    unet, text = shapes.unet_shapes(models.unet), shapes.text_shapes(models.text)
    learns: list[tuple[int, ...]] = [*(text.values() if trains_text(recipe) else ())]
    learns += unet.values() if recipe.lora is None else _adapters(models.unet, recipe.lora)
    trained = sum(math.prod(shape) for shape in learns)
    held = sum(math.prod(shape) for shape in (*unet.values(), *text.values()))
    added = trained if recipe.lora is not None else 0
    factored = recipe.optimizer.name == "adafactor"
    return Learning(
        trained=trained,
        frozen=held + added - trained + models.others,
        moments=sum(map(_factored, learns)) if factored else 2 * trained,
    )


def nearest(recipe: TrainRecipe, models: Models, *, cells: Cells, limit: float) -> list[tuple[str, float]]:
    """Settings that fit into `limit` bytes, the least change first, with the bytes they take; none: an empty list.

    Each of one setting where there is one, else of several together.
    """
    found: list[tuple[str, float]] = []
    for tried in (_single(recipe), _together(recipe)):
        for words, changed in tried:
            if any(words.split(" = ")[0] == before.split(" = ")[0] for before, _ in found):
                continue  # a smaller change of the same setting fits
            if (need := of(changed, models, cells=cells).total) <= limit:
                found.append((words, need))
        if found:
            break
    return found


def _single(recipe: TrainRecipe) -> Iterator[tuple[str, TrainRecipe]]:
    """Changes of one setting, that which costs the least time first. None of them changes what is learnt."""
    work = recipe.workers
    for stage in range(work.zero_stage + 1, 3):
        yield f"workers.zero_stage = {stage}", _with(recipe, "workers", zero_stage=stage)
    for share in SHARES:
        if share > recipe.model.gradient_checkpointing:
            words = f"model.gradient_checkpointing = {share:g}"
            yield words, _with(recipe, "model", gradient_checkpointing=share)
    for size in _smaller(recipe):
        yield f"batch.micro_batch = {size}", _with(recipe, "batch", micro_batch=size)


def _together(recipe: TrainRecipe) -> Iterator[tuple[str, TrainRecipe]]:
    """Every layer computed twice and ZeRO 2, then smaller micro-batches too."""
    most = _with(_with(recipe, "model", gradient_checkpointing=1.0), "workers", zero_stage=2)
    words = "model.gradient_checkpointing = 1 with workers.zero_stage = 2"
    yield words, most
    for size in _smaller(recipe):
        yield f"{words} and batch.micro_batch = {size}", _with(most, "batch", micro_batch=size)


def _smaller(recipe: TrainRecipe) -> Iterator[int]:
    """Smaller micro-batches that divide the effective batch, the largest first."""
    for size in range(recipe.batch.micro_batch - 1, 0, -1):
        if recipe.batch.effective_batch % size == 0:
            yield size


def _with(recipe: TrainRecipe, part: str, **changes: Any) -> TrainRecipe:
    return recipe.model_copy(update={part: getattr(recipe, part).model_copy(update=changes)})


def _buffers(trained: int, *, stage: int, is_cast: bool, workers: int) -> float:
    """What lies between: autocast's copy of the weights without ZeRO, and what is sent from worker to worker."""
    if stage:
        return BUCKET_BYTES * min(BUCKET, trained)
    return (HALF * trained if is_cast else 0) + (FULL * min(PLAIN_BUCKET, trained) if workers > 1 else 0)


def _adapters(unet: Values, part: LoraPart) -> list[tuple[int, ...]]:
    chosen = arithmetic.adapted(unet, targets=part.targets)
    return [shape for layer in chosen for shape in ((part.rank, layer.wide), (layer.high, part.rank))]


def _factored(shape: tuple[int, ...]) -> int:
    """Adafactor's numbers for one tensor: rows and columns of its last two axes (train/adafactor.py)."""
    if len(shape) < 2:
        return math.prod(shape)
    return math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]
