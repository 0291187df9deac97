"""Everything that can be wrong with a training recipe, found before a worker starts; and what the run will be.

Kind: actor.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from sote.cluster import weights
from sote.cluster.errors import RecipeError, SourceError, WeightsError
from sote.train import batches, folders
from sote.train.batches import Order, Rows, last_step
from sote.train.recipe import MAY_DIFFER as MAY_DIFFER
from sote.train.recipe import ExportPart, TrainRecipe

# The author's rate on A100s: 3.24 images/s of 24.1 TFLOP each on one (25 % of peak); hours are stated for that
SUSTAINED_TFLOPS = 78.0
FLOP_PER_WEIGHT_AND_CELL = 6  # 2 forward, 4 backward; 3.589e9 weights at 32x32 cells: 22.1 TFLOP, counted 22.2
BYTES_PER_WEIGHT = 4  # float32


@dataclass(frozen=True)
class LatentFacts:
    """What all latent files of a curate run have in common. `compression` is pixels per cell."""

    compression: float
    encoder_sha256: str
    dtype: str
    channels: int


@dataclass(frozen=True)
class Plan:
    """What a run will be. `memory_bytes` is each worker's for weights, gradients and optimizer, without activations."""

    images: int
    images_an_epoch: int
    buckets: tuple[str, ...]
    steps: int
    epochs: float
    micro_batches: int
    weights: int
    memory_bytes: int
    device_hours: float
    latents: LatentFacts


def check(recipe: TrainRecipe) -> None:
    """Find every wrong input before anything starts. Raises a UserError of one line."""
    plan(recipe)


def plan(recipe: TrainRecipe) -> Plan:
    """Check the whole recipe against what is on disk, and say what the run will be. Raises what `check` raises."""
    micro_batches = accumulation(recipe)
    _refuse_sharded(recipe)
    prior = weights.locate(recipe.model.prior, field="model.prior")
    folders.check_prior(prior, field="model.prior")
    _check_export(recipe.export)
    curated = Path(recipe.data.curated)
    rows = batches.read_rows(curated, chosen=recipe.data.set)
    facts = check_latents(rows, curated / "latents")
    channels = folders.config(prior / "prior").get("in_channels")
    if channels != facts.channels:
        raise WeightsError(
            f"model.prior: {prior}: takes latents of {channels} channels, {curated} has {facts.channels}"
        )
    order = Order(rows, effective_batch=recipe.batch.effective_batch, seed=recipe.batch.seed)
    steps = last_step(recipe.length, order)
    images = steps * recipe.batch.effective_batch
    count, trained = _sizes(recipe, prior)
    return Plan(
        images=len(rows),
        images_an_epoch=order.images(),
        buckets=rows.buckets,
        steps=steps,
        epochs=images / order.images(),
        micro_batches=micro_batches,
        weights=count,
        memory_bytes=BYTES_PER_WEIGHT * (count + trained),
        device_hours=_flop(rows, facts, trained=trained) * images / SUSTAINED_TFLOPS / 1e12 / 3600,
        latents=facts,
    )


def render(plan: Plan) -> RenderableType:
    """The plan as a table for people."""
    table = Table("what", "how much", title="training")
    table.add_row("images", f"{plan.images:,} in {len(plan.buckets)} buckets, {plan.images_an_epoch:,} with repeats")
    table.add_row("steps", f"{plan.steps:,}, that is {plan.epochs:.2f} epochs")
    table.add_row("a step", f"{plan.micro_batches} micro-batches on each worker")
    table.add_row("weights", f"{plan.weights:,}")
    table.add_row("memory", f"{plan.memory_bytes / 1e9:.2f} GB on each worker, and what activations need")
    table.add_row("time", f"{plan.device_hours:,.2f} device-hours at {SUSTAINED_TFLOPS:.0f} TFLOP/s")
    table.add_row("latents", f"{plan.latents.dtype}, compression {plan.latents.compression:g} pixels a cell")
    return table


def accumulation(recipe: TrainRecipe) -> int:
    """Micro-batches of a step on each worker. Raises RecipeError if the effective batch cannot be divided so."""
    batch, count = recipe.batch, recipe.workers.count
    at_once = batch.micro_batch * count
    if batch.effective_batch % at_once:
        low = batch.effective_batch // at_once * at_once
        near = f"{low} or {low + at_once}" if low else str(at_once)
        raise RecipeError(
            f"batch.effective_batch: {batch.effective_batch} cannot be divided by micro_batch {batch.micro_batch} x "
            f"workers.count {count}; {near} can"
        )
    return batch.effective_batch // at_once


def check_latents(rows: Rows, folder: Path) -> LatentFacts:
    """Look at every latent file that a picked row names. Raises SourceError: missing, broken, or not of one kind."""
    found: dict[LatentFacts, str] = {}
    for shard, (last, bucket) in sorted(_named(rows, folder).items()):
        facts, count, said = _facts_of(folder / shard)
        if count <= last:
            raise SourceError(
                f"{folder / shard}: data.curated: holds {count} latents, the catalogue names number {last}; "
                f"curate again"
            )
        if said != bucket:
            raise SourceError(
                f"{folder / shard}: data.curated: is of bucket {said}, the catalogue says {bucket}; curate again"
            )
        found.setdefault(facts, shard)
    if len(found) > 1:
        (one, first), (two, second) = list(found.items())[:2]
        raise SourceError(
            f"{folder}: data.curated: latents of two kinds, {first} ({_words(one)}) and {second} ({_words(two)}); "
            f"curate again"
        )
    return next(iter(found))


def _named(rows: Rows, folder: Path) -> dict[str, tuple[int, str]]:
    """Of each latent file that the rows name: the highest offset, and the bucket."""
    named: dict[str, tuple[int, str]] = {}
    for shard, offset, bucket in zip(rows.shard.to_pylist(), rows.offset.tolist(), rows.bucket.tolist(), strict=True):
        name = rows.buckets[bucket]
        last, before = named.get(str(shard), (0, name))
        if before != name:
            raise SourceError(f"{folder}: data.curated: {shard} holds buckets {before} and {name}; curate again")
        named[str(shard)] = (max(last, offset), name)
    return named


def _facts_of(path: Path) -> tuple[LatentFacts, int, str]:
    """What a latent file says of itself, how many latents it holds, and their bucket."""
    if not path.is_file():
        raise SourceError(f"{path}: data.curated: no such latent file; run `sote curate` to the end")
    try:
        header = folders.header(path)
    except WeightsError as error:
        raise SourceError(f"data.curated: {error}; curate again") from None
    said = header.metadata
    missing = [key for key in ("compression", "encoder_sha256", "bucket", "dtype") if key not in said]
    if missing or "latents" not in header.tensors or len(header.tensors["latents"].shape) != 4:
        raise SourceError(f"{path}: data.curated: not a latent file of Sote; curate again")
    count, channels, _, _ = header.tensors["latents"].shape
    return (
        LatentFacts(float(said["compression"]), said["encoder_sha256"], said["dtype"], channels),
        count,
        said["bucket"],
    )


def _refuse_sharded(recipe: TrainRecipe) -> None:
    if stage := recipe.workers.zero_stage:
        raise RecipeError(
            f"workers.zero_stage: {stage} cuts tensors into flat pieces, on which stock Adafactor is no longer "
            f"Adafactor; set it to 0"
        )


def _check_export(part: ExportPart) -> None:
    """What `sote export` will need is better missed now than after the training."""
    if part.decoder is not None:
        folders.check_decoder(weights.locate(part.decoder, field="export.decoder"), field="export.decoder")
    if part.encoder is not None:
        path = weights.locate(part.encoder, field="export.encoder")
        folders.check_file(path, field="export.encoder", wanted="encoder")
    if part.previewer is not None:
        path = weights.locate(part.previewer, field="export.previewer")
        folders.check_file(path, field="export.previewer", wanted="previewer")


def _sizes(recipe: TrainRecipe, prior: Path) -> tuple[int, int]:
    """Number of weights of prior and text encoder, and of those that are trained."""
    unet, text = (
        sum(math.prod(tensor.shape) for tensor in folders.header(folders.weights(prior / name)).tensors.values())
        for name in ("prior", "text_encoder")
    )
    return unet + text, unet + (text if recipe.optimizer.text_encoder_learning_rate is not None else 0)


def _flop(rows: Rows, facts: LatentFacts, *, trained: int) -> float:
    """Floating point operations for one image of mean size."""
    sides = [[int(side) / facts.compression for side in name.split("x")] for name in rows.buckets]
    cells = [width * height for width, height in sides]
    mean: float = sum(cells[bucket] for bucket in rows.bucket.tolist()) / len(rows)
    return FLOP_PER_WEIGHT_AND_CELL * trained * mean


def _words(facts: LatentFacts) -> str:
    return f"compression {facts.compression:g}, encoder {facts.encoder_sha256[:10]}, {facts.dtype}"
