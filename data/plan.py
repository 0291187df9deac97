"""What a curation will take, before it starts: every user error found, files counted, work estimated.

Kind: pure, but for looking at files.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from sote.cluster import weights
from sote.cluster.errors import RecipeError
from sote.data import caption, index
from sote.data.recipe import CurateRecipe

STAGES = ("index", "decode", "score", "tag", "duplicates", "text", "caption", "select", "latents")

# GFLOP a picture at full size (torch's FlopCounter, 2 per multiply-add): wd-swinv2-tagger-v3 at 448 px,
# aesthetic-shadow-v2 at 1024 px, CLIP ViT-B/32 at 224 px.
MODEL_GFLOP = {"tag": 131.1, "score": 579.7 + 8.8}
# One core, one thread: decode a 1448x1448 JPEG and make the three model inputs (measured at 110-120 ms).
DECODE_SECONDS = 0.115
SUSTAINED_TFLOPS = 100.0  # what hours are stated for: about a third of an A100's bf16 peak of 312


@dataclass(frozen=True)
class Plan:
    """Files and estimated work. Hours of models hold for the full-size models at SUSTAINED_TFLOPS on one device."""

    files: dict[str, int]
    shards: int
    weights: dict[str, Path]
    decode_core_hours: float
    model_hours: float
    memory_bytes: int

    @property
    def rows(self) -> int:
        return sum(self.files.values())


def check(recipe: CurateRecipe, *, stage: str | None = None) -> dict[str, Path]:
    """Find every wrong input before anything starts; returns where the weights of each recipe field lie.

    Raises RecipeError, SourceError or WeightsError in one line.
    """
    if stage is not None and stage not in STAGES:
        raise RecipeError(f"--stage: {stage!r} is no stage; stages in order: {', '.join(STAGES)}")
    caption.load_profile(recipe.caption.profile)
    for source in recipe.sources:
        index.check(source)
    named = {
        "score.aesthetic": recipe.score.aesthetic,
        "score.quality_clip": recipe.score.quality_clip,
        "score.quality_head": recipe.score.quality_head,
        "tag.tagger": recipe.tag.tagger,
    }
    if recipe.text is not None:
        named["text.reader"] = recipe.text.reader
    if recipe.latents is not None:
        named["latents.encoder"] = recipe.latents.encoder
    return {field: weights.locate(reference, field=field) for field, reference in named.items()}


def plan(recipe: CurateRecipe) -> Plan:
    """Count the files and estimate the work. Raises what `check` raises."""
    places = check(recipe)
    files = {source.name: sum(1 for _ in index.files(source)) for source in recipe.sources}
    rows = sum(files.values())
    gflop = sum(MODEL_GFLOP.values())
    slice_bytes = recipe.slice_rows * (448 * 448 + 1024 * 1024 + 224 * 224) * 3
    return Plan(
        files=files,
        shards=math.ceil(rows / recipe.shard_rows),
        weights=places,
        decode_core_hours=rows * DECODE_SECONDS / 3600,
        model_hours=rows * gflop / 1000 / SUSTAINED_TFLOPS / 3600,
        memory_bytes=slice_bytes * 4,
    )


def render(plan: Plan) -> RenderableType:
    """The plan as tables for people."""
    table = Table("source", "files", title=f"{plan.rows} files in {plan.shards} shards")
    for name, count in plan.files.items():
        table.add_row(name, f"{count:,}")
    work = Table("what", "how much", title="work")
    cores = os.cpu_count() or 1
    hours = plan.decode_core_hours
    work.add_row("workers", f"{cores} cores here; decode tasks, one scorer and one tagger for each accelerator")
    work.add_row("decode", f"{hours:.2f} core-hours, {hours / cores:.2f} hours on this machine's {cores} cores")
    work.add_row(
        "score and tag",
        f"{plan.model_hours:.3f} hours on one device at {SUSTAINED_TFLOPS:.0f} TFLOP/s (full-size models)",
    )
    work.add_row("memory", f"{plan.memory_bytes / 1e9:.2f} GB for slices in flight, besides the models")
    found = Table("field", "weights", title="weights")
    for field, path in plan.weights.items():
        found.add_row(field, str(path))
    return Group(table, work, found)
