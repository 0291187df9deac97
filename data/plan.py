"""What a curation will take, before it starts: every user error found, files counted, hours for each pass.

Kind: wiring.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sote.cluster import devices, weights
from sote.cluster.errors import RecipeError
from sote.cluster.page import duration
from sote.data import caption, costs, index, reader_http, selection, tag
from sote.data.costs import Hours, Machine
from sote.data.recipe import CurateRecipe

STAGES = ("index", "decode", "score", "tag", "duplicates", "text", "caption", "select", "latents")
SLICES_IN_FLIGHT = 4  # of a worker: being decoded, waiting, at the model, on the way to the driver


@dataclass(frozen=True)
class Plan:
    """Files, and hours for the full-size models on `machine`; `named`: it is the recipe's, not this one."""

    files: dict[str, int]
    shards: int
    weights: dict[str, Path]
    machine: Machine
    named: bool
    hours: tuple[Hours, ...]
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
    profile = caption.load_profile(recipe.caption.profile)
    index.check_all(recipe.sources)
    for source in recipe.sources:
        caption.check_source(source, profile)
    selection.check(recipe.select, profile)
    machine_of(recipe)
    named = {
        "score.aesthetic": recipe.score.aesthetic,
        "score.quality_clip": recipe.score.quality_clip,
        "score.quality_head": recipe.score.quality_head,
    }
    if recipe.text is not None:
        reader_http.check(recipe.text)  # asks nobody where no url is named
        if recipe.text.url is None:
            named["text.reader"] = recipe.text.reader
    if recipe.latents is not None:
        named["latents.encoder"] = recipe.latents.encoder
        if recipe.latents.vqgan is not None:
            named["latents.vqgan"] = recipe.latents.vqgan
    layouts = weights.tagger_layouts(recipe.tag.engine)
    found = {"tag.tagger": weights.locate(recipe.tag.tagger, field="tag.tagger", layouts=layouts)}
    tag.check(found["tag.tagger"])
    return found | {field: weights.locate(reference, field=field) for field, reference in named.items()}


def plan(recipe: CurateRecipe) -> Plan:
    """Count the files and reckon the work. Raises what `check` raises."""
    places = check(recipe)
    files = {source.name: index.count(source) for source in recipe.sources}
    rows = sum(files.values())
    machine = machine_of(recipe)
    slice_bytes = recipe.slice_rows * (448 * 448 + 1024 * 1024 + 224 * 224) * 3
    workers = machine.cores + sum(machine.devices.values())
    return Plan(
        files=files,
        shards=math.ceil(rows / recipe.shard_rows),
        weights=places,
        machine=machine,
        named=bool(recipe.work.devices or recipe.work.cores),
        hours=tuple(hours_of(recipe, machine, rows=rows)),
        memory_bytes=slice_bytes * SLICES_IN_FLIGHT * workers,
    )


def machine_of(recipe: CurateRecipe) -> Machine:
    """The machine that hours are reckoned for: the recipe's, or this one. Raises RecipeError for an unknown device."""
    work = recipe.work
    for name in work.devices:
        _known(name, "work.devices")
    found: Mapping[str, int] = work.devices or {} if work.cores else work.devices or _here()
    return Machine(work.cores or len(os.sched_getaffinity(0)), found)


def hours_of(recipe: CurateRecipe, machine: Machine, *, rows: int) -> list[Hours]:
    """The hours of each pass, in order. Full-size models; a tagger that is not known counts as wd-swinv2-tagger-v3."""
    tagger = costs.TAGGER_GFLOP.get(recipe.tag.tagger, costs.TAGGER_GFLOP["wd-swinv2-tagger-v3"])
    score = costs.AESTHETIC_GFLOP + costs.QUALITY_GFLOP
    giga = rows * costs.GIGA
    pixels = {"tag": (tagger * giga, recipe.tag.dtype), "score": (score * giga, recipe.score.dtype)}
    found = [
        costs.overlapped("decode, score, tag", machine, core_seconds=rows * costs.DECODE_SECONDS, flop=pixels),
        Hours("duplicates", rows * costs.PAIRS_SECONDS / machine.cores / costs.SECONDS_AN_HOUR, 0.0),
    ]
    if recipe.text is not None and recipe.text.url is None:
        read = rows * costs.READ_SHARE
        flop = {"text": (read * costs.READER_GFLOP * costs.GIGA, "bfloat16")}
        found.append(costs.overlapped("text", machine, core_seconds=read * costs.OPEN_SECONDS, flop=flop))
    found.append(Hours("caption, select", rows * costs.CAPTION_SECONDS / machine.cores / costs.SECONDS_AN_HOUR, 0.0))
    if recipe.latents is not None:
        side = recipe.latents.resolution / recipe.latents.compression * 32  # the encoder sees 32 pixels a cell
        work = giga * costs.ENCODER_GFLOP * (side / costs.ENCODER_SIDE) ** 2
        flop = {"latents": (work, "float32")}
        found.append(costs.overlapped("latents", machine, core_seconds=rows * costs.OPEN_SECONDS, flop=flop))
    return found


def _here() -> dict[str, int]:
    """The accelerators of this machine that are known by name."""
    counts: dict[str, int] = {}
    for device in devices.found():
        if device.kind != "cpu":
            _known(device.name, "work.devices: this machine's")
            counts[device.name] = counts.get(device.name, 0) + 1
    return counts


def _known(name: str, field: str) -> None:
    try:
        costs.peak_of(name)
    except KeyError:
        known = ", ".join(costs.DEVICES)
        raise RecipeError(f"{field}: {name!r} is no device with a known peak; known: {known}") from None


def render(plan: Plan) -> RenderableType:
    """The plan as tables for people."""
    table = Table("source", "files", title=f"{plan.rows:,} files in {plan.shards:,} shards")
    for name, count in plan.files.items():
        table.add_row(name, f"{count:,}")
    machine = plan.machine
    devices_said = ", ".join(f"{count} x {name}" for name, count in machine.devices.items()) or "no accelerator"
    whose = "the recipe's machine" if plan.named else "this machine"
    work = Table(
        "pass", "time", "CPU cores", "accelerators", "binds", title=f"{whose}: {machine.cores} cores, {devices_said}"
    )
    for hours in plan.hours:
        alone = not machine.devices
        both = (_time(hours.cores), "" if alone else _time(hours.devices))
        work.add_row(hours.what, _time(hours.hours), *both, hours.binds)
    total = sum(hours.hours for hours in plan.hours)
    longest = max(plan.hours, key=lambda hours: hours.hours)
    workers = sum(machine.devices.values()) or 1
    says = Text(
        f"{_time(total)} in all; {longest.binds} bind in {longest.what}. Workers: {machine.cores} cores decode, "
        f"{workers} {'for each accelerator' if machine.devices else 'on the cores'} run the models. Memory: up to "
        f"{plan.memory_bytes / 1e9:.1f} GB for pictures in flight, besides the models. Times are arithmetic for the "
        "full-size models (sote/data/costs.py), not a measurement."
    )
    found = Table("field", "weights", title="weights")
    for field, path in plan.weights.items():
        found.add_row(field, str(path))
    return Group(table, work, says, found)


def _time(hours: float) -> str:
    return duration(hours * costs.SECONDS_AN_HOUR)
