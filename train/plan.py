"""Everything that can be wrong with a training recipe, found before a worker starts; and what the run will be.

`plan` is strict: it is what training asks. `outline` is for people who have not everything yet: models and a curate run
that are still to come are named, and the rest is reckoned with the published sizes and the recipe's own numbers. What
is there and wrong is refused by both.

Kind: actor.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sote.cluster import weights
from sote.cluster.errors import RecipeError, SourceError, WeightsError
from sote.data import encode, files
from sote.data.latentfile import VQGAN_STRIDE, latent_cells
from sote.train import arithmetic, gpus, latents, memory, pictures, plan_models, rows
from sote.train.arithmetic import Cells
from sote.train.gpus import GB, Gpu
from sote.train.latents import LatentFacts
from sote.train.memory import Learning, Memory, Models
from sote.train.order import Order, last_step
from sote.train.plan_models import ToCome
from sote.train.recipe import MAY_DIFFER as MAY_DIFFER
from sote.train.recipe import TrainRecipe
from sote.train.rows import Rows

T = TypeVar("T")

# Before there is a curate run, where the recipe does not say: the seed's (1024x1024, 32 pixels a cell)
PIXELS, COMPRESSION = 1024, 32.0
MOST_NEAR = 3  # settings that would fit are named


@dataclass(frozen=True)
class Data:
    """What a run sees. `images` are rows, `images_an_epoch` with repeats; None: not known yet.

    `buckets` are cells [height, width] of the latents that are trained, with the share of images that have them.
    """

    buckets: dict[Cells, float]
    images: int | None = None
    images_an_epoch: int | None = None
    steps: int | None = None
    latents: LatentFacts | None = None

    @property
    def largest(self) -> Cells:
        """The cells of the largest bucket."""
        return max(self.buckets, key=math.prod)


@dataclass(frozen=True)
class Plan:
    """What a run will be. `flop` is of one image; `missing` says in a line each what is not there yet."""

    recipe: TrainRecipe
    models: Models
    learning: Learning
    data: Data
    memory: Memory
    flop: float
    missing: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Raises SourceError where they are not known yet."""
        return _known(self.data.steps, self.recipe)

    @property
    def latents(self) -> LatentFacts:
        """What the latents of the encoder have in common. Raises SourceError where it is not known yet."""
        return _known(self.data.latents, self.recipe)

    @property
    def images_seen(self) -> int | None:
        """Images over all steps; None where steps are not known yet."""
        return None if self.data.steps is None else self.data.steps * self.recipe.batch.effective_batch

    @property
    def gpu(self) -> Gpu:
        """The GPU that the recipe plans for."""
        return gpus.BY_NAME[self.recipe.workers.gpu]


def check(recipe: TrainRecipe) -> None:
    """Find every wrong input before anything starts. Raises a UserError of one line."""
    plan(recipe)


def plan(recipe: TrainRecipe) -> Plan:
    """Check the whole recipe against what is on disk, and say what the run will be. Raises what `check` raises."""
    micro_batches(recipe)
    models = plan_models.models(recipe)
    plan_models.check_export(recipe.export)
    return _made(recipe, models, _data(recipe, models, None), missing=())


def outline(recipe: TrainRecipe, *, beside: Path | None = None) -> Plan:
    """The plan as far as it can be told. A base run is still to come if a recipe in the folder `beside` makes it.

    Raises a UserError for what is wrong, not for what is missing.
    """
    micro_batches(recipe)
    to_come = ToCome(beside)
    models = plan_models.models(recipe, to_come)
    plan_models.check_export(recipe.export, to_come)
    curated = recipe.data.curated
    if not _is_there(files.join(files.absolute(curated), rows.CATALOGUE)):
        to_come.note(f"data.curated: {curated} is still to be curated")
        data = _expected(recipe)
    else:
        data = _data(recipe, models, to_come)
    return _made(recipe, models, data, missing=tuple(to_come.lines))


def micro_batches(recipe: TrainRecipe) -> int:
    """Micro-batches of a step on each worker, padding included. Raises RecipeError if the batch cannot be cut so."""
    batch, count = recipe.batch, recipe.workers.count
    if batch.effective_batch % batch.micro_batch:
        low = batch.effective_batch // batch.micro_batch * batch.micro_batch
        near = f"{low} or {low + batch.micro_batch}" if low else str(batch.micro_batch)
        raise RecipeError(
            f"batch.effective_batch: {batch.effective_batch} cannot be divided by micro_batch {batch.micro_batch}; "
            f"{near} can"
        )
    micros = batch.effective_batch // batch.micro_batch
    if count > micros:
        raise RecipeError(
            f"workers.count: a step of {batch.effective_batch} images has {micros} micro-batches of "
            f"{batch.micro_batch}, too few for {count} workers; take at most {micros}, or a smaller batch.micro_batch"
        )
    return math.ceil(micros / count)


def _made(recipe: TrainRecipe, models: Models, data: Data, *, missing: tuple[str, ...]) -> Plan:
    """Reckon everything that follows. Raises RecipeError if a worker does not fit its GPU."""
    if recipe.lora is not None:
        plan_models.check_targets(models.unet, recipe.lora.targets)
    need = memory.of(recipe, models, cells=data.largest)
    if recipe.workers.use_gpu:
        _refuse_too_much(recipe, models, data.largest, need)
    return Plan(
        recipe=recipe,
        models=models,
        learning=memory.learning(recipe, models),
        data=data,
        memory=need,
        flop=sum(share * _flop(recipe, models, cells) for cells, share in data.buckets.items()),
        missing=missing,
    )


def _flop(recipe: TrainRecipe, models: Models, cells: Cells) -> float:
    """Operations of one image. Beside adapters the gradients of the layers' own weights are not computed."""
    tokens = recipe.text.tokens if recipe.model.stage == "prior" else arithmetic.WINDOW
    found = arithmetic.training_flop(
        models.unet, cells=cells, tokens=tokens, text=models.text, trains_text=memory.trains_text(recipe)
    )
    return found - (arithmetic.forward_flop(models.unet, cells=cells, tokens=tokens) if recipe.lora is not None else 0)


def _refuse_too_much(recipe: TrainRecipe, models: Models, cells: Cells, need: Memory) -> None:
    gpu = gpus.BY_NAME[recipe.workers.gpu]
    if need.total <= gpu.memory_gb * GB:
        return
    near = memory.nearest(recipe, models, cells=cells, limit=gpu.memory_gb * GB)[:MOST_NEAR]
    if near:
        mend = "this fits: " + ", or ".join(f"{words} ({size / GB:.0f} GB)" for words, size in near)
    else:
        fits = [one for one in gpus.GPUS if memory.nearest(recipe, models, cells=cells, limit=one.memory_gb * GB)]
        other = f"take {min(fits, key=lambda one: one.memory_gb).name}" if fits else "take more workers"
        mend = f"no setting of this run does; {other}, or train adapters ([lora])"
    raise RecipeError(
        f"workers.gpu: {need.total / GB:.0f} GB of a worker do not fit the {gpu.memory_gb:.0f} GB of {gpu.name}; {mend}"
    )


def _data(recipe: TrainRecipe, models: Models, to_come: ToCome | None) -> Data:
    """What the curate run has for this recipe. Raises SourceError or WeightsError."""
    curated = recipe.data.curated
    _, part = pictures.rules(curated)
    found = rows.read_for(recipe, cut=pictures.cut(part))
    checked = None
    if found.latents is not None or found.vqgan is not None:
        checked = latents.check(found, latents.Store(curated), recipe.data)
        _check_channels(recipe, models, found, checked)
    if found.latents is None:
        compression = recipe.data.compression or part.compression
        checked = None if to_come and to_come(recipe.data.encoder, "data.encoder") else _encoder(recipe, compression)
    order = Order(found, effective_batch=recipe.batch.effective_batch, seed=recipe.batch.seed)
    pixels = float(VQGAN_STRIDE)
    if recipe.model.stage == "prior":
        pixels = checked.compression if checked else recipe.data.compression or part.compression
    return Data(
        buckets=_buckets(found, pixels),
        images=len(found),
        images_an_epoch=order.images(),
        steps=last_step(recipe.length, order),
        latents=checked,
    )


def _is_there(uri: str) -> bool:
    try:
        return files.kind(uri) is not None
    except OSError as error:
        raise SourceError(f"{uri}: data.curated: cannot be reached ({error.strerror or error})") from None


def _expected(recipe: TrainRecipe) -> Data:
    """What the recipe says of a curate run that is still to come: one square bucket, data.expected_images."""
    compression = recipe.data.compression or COMPRESSION
    side = latent_cells(PIXELS, compression if recipe.model.stage == "prior" else VQGAN_STRIDE)
    images, length = recipe.data.expected_images, recipe.length
    ends = [length.max_steps]
    if images is not None and length.epochs is not None:
        ends.append(math.ceil(length.epochs * images / recipe.batch.effective_batch))
    known = [end for end in ends if end is not None]
    # without the number of images, epochs may end the run before max_steps does
    steps = min(known) if known and (images is not None or length.epochs is None) else None
    return Data(buckets={(side, side): 1.0}, images_an_epoch=images, steps=steps)


def _buckets(found: Rows, pixels_a_cell: float) -> dict[Cells, float]:
    """The share of images that have each size of latents."""
    shares: dict[Cells, float] = {}
    for name, count in zip(found.buckets, np.bincount(found.bucket, weights=found.repeat), strict=True):
        width, height = (latent_cells(int(side), pixels_a_cell) for side in name.split("x"))
        shares[height, width] = shares.get((height, width), 0.0) + float(count) / float(found.repeat.sum())
    return shares


def _check_channels(recipe: TrainRecipe, models: Models, found: Rows, facts: LatentFacts) -> None:
    """Raise WeightsError if the latents have other channels than the UNet takes."""
    is_prior = recipe.model.stage == "prior"
    takes = models.unet["in_channels" if is_prior else "effnet_in_channels"]
    if (is_prior or found.latents is not None) and takes != facts.channels:
        named = recipe.model.prior if is_prior else recipe.model.decoder
        raise WeightsError(
            f"model.{recipe.model.stage}: {named}: takes latents of {takes} channels, {recipe.data.curated} has "
            f"{facts.channels}"
        )


def _encoder(recipe: TrainRecipe, compression: float) -> LatentFacts:
    """What the latents will have in common that training makes itself."""
    path = weights.locate(recipe.data.encoder, field="data.encoder")
    return LatentFacts(compression, encode.sha256_of(path), "float32", channels=16)


def _known(value: T | None, recipe: TrainRecipe) -> T:
    if value is None:
        raise SourceError(f"{recipe.data.curated}: data.curated: has no catalogue yet; run `sote curate` on it")
    return value
