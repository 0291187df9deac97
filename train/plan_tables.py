"""A training's plan as tables for people: the run, the memory of a worker, hours and cost on each GPU.

Kind: pure.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sote.train import gpus, memory
from sote.train.gpus import GB, Gpu

if TYPE_CHECKING:
    from sote.train.plan import Plan

TERA, EXA = 1e12, 1e18
TENTHS_BELOW = 10  # hours
# fields of arithmetic.Activations
ACTIVATIONS: Final = {
    "residual": "residual stream",
    "hidden": "hidden state, 4 c",
    "attention": "attention",
    "text": "text encoder",
    "again": "made again, layer by layer",
}
STAGES: Final = {"prior": "Stage C, the prior", "decoder": "Stage B, the decoder"}


def render(plan: "Plan") -> RenderableType:
    """The plan as tables, at most 100 columns wide."""
    parts: list[RenderableType] = [_run(plan), _memory(plan)]
    if plan.images_seen is not None:
        parts += [_hours(plan), Text(_said_of_hours(), style="dim")]
    if plan.missing:
        parts += [Text("\nNot here yet; `sote train` will ask for it:", style="bold"), _missing(plan)]
    return Group(*parts)


def _missing(plan: "Plan") -> Table:
    table = Table.grid(padding=(0, 1))
    for line in plan.missing:
        table.add_row("-", Text(line))
    return table


def _table(*columns: str, title: str, right: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number >= right else "left", no_wrap=True)
    return table


def _run(plan: "Plan") -> Table:
    recipe, data, work = plan.recipe, plan.data, plan.recipe.workers
    table = Table(title=f"Training {STAGES[recipe.model.stage]}", title_justify="left", title_style="bold")
    table.box, table.show_header = box.SIMPLE, False
    learning = plan.learning
    trains = "adapters" if recipe.lora is not None else "trained"
    table.add_row("parameters", f"{learning.trained:,} {trains}, {learning.frozen:,} frozen")
    elastic = f"{work.min_count} to " if work.min_count is not None and work.min_count < work.count else ""
    where = work.gpu if work.use_gpu else "on CPUs"
    engine = f"ZeRO stage {work.zero_stage}, {work.precision}, {recipe.optimizer.name}"
    table.add_row("workers", f"{elastic}{work.count} x {where}; {engine}")
    batch = recipe.batch
    micros = batch.effective_batch // batch.micro_batch
    table.add_row("a step", f"{batch.effective_batch} images: {micros} micro-batches of {batch.micro_batch}")
    if data.images is not None:
        table.add_row("images", f"{data.images:,} in {len(data.buckets)} sizes, {data.images_an_epoch:,} with repeats")
    elif data.images_an_epoch is not None:
        table.add_row("images", f"{data.images_an_epoch:,} in an epoch, as data.expected_images says")
    table.add_row("steps", _steps(plan))
    height, width = data.largest
    cells = f"{height} x {width} cells" if len(data.buckets) == 1 else f"up to {height} x {width} cells"
    compression = f", {data.latents.compression:g} pixels a cell" if data.latents else ""
    table.add_row("latents", f"{cells}{compression if recipe.model.stage == 'prior' else ''}")
    total = f", {plan.flop * plan.images_seen / EXA:,.4g} EFLOP in all" if plan.images_seen is not None else ""
    table.add_row("operations", f"{plan.flop / TERA:,.4g} TFLOP an image (counted once if computed twice){total}")
    return table


def _steps(plan: "Plan") -> str:
    if plan.data.steps is None or plan.images_seen is None:
        return "not known before the curate run is there; data.expected_images would say"
    epoch = plan.data.images_an_epoch
    return f"{plan.data.steps:,}" + (f", that is {plan.images_seen / epoch:.2f} epochs" if epoch else "")


def _memory(plan: "Plan") -> Table:
    """A worker's memory: what is held, then activations as the recipe has it, without and with all recomputation."""
    need, recipe = plan.memory, plan.recipe
    share = recipe.model.gradient_checkpointing
    title = f"Memory of one worker; the recipe computes {f'{share:.0%}' if share else 'none'} of the layers twice"
    table = _table("GB", "this recipe", "nothing twice", "all twice", title=title)
    held = [("weights", need.weights), ("frozen weights", need.frozen), ("gradients", need.gradients)]
    held += [("float32 masters", need.masters), ("optimizer's moments", need.moments), ("running mean", need.averages)]
    held += [("buffers (estimate)", need.buffers), ("CUDA and libraries (estimate)", need.reserve)]
    for name, size in held:
        if size:
            table.add_row(name, *[_gb(size)] * 3)
    cases = [memory.activations(recipe, plan.models, cells=plan.data.largest, recomputed=share) for share in (0, 1)]
    kinds = [need.activations, *cases]
    table.add_row("activations (estimate)", *(_gb(kind.total) for kind in kinds))
    for name, label in ACTIVATIONS.items():
        if any(getattr(kind, name) for kind in kinds):
            table.add_row(f"  {label}", *(_gb(getattr(kind, name)) for kind in kinds), style="dim")
    totals = [replace(need, activations=kind).total for kind in kinds]
    table.add_section()
    table.add_row("total", *(_gb(total) for total in totals), style="bold")
    return table


def _hours(plan: "Plan") -> Table:
    count, images = plan.recipe.workers.count, plan.images_seen or 0
    shares = (gpus.AUTHORS_SHARE, gpus.GOAL_SHARE)
    title = f"Hours on {count} GPU{'s' if count > 1 else ''} at a share of the peak, and cost"
    columns = [text for share in shares for text in (f"at {share:.0%}", "cost")]
    table = _table("GPU", "TFLOP/s", "$/hour", "fits", *columns, title=title)
    for gpu in gpus.GPUS:
        row = [_hours_of(gpu, plan.flop * images, share=share, count=count) for share in shares]
        fits = "yes" if plan.memory.total <= gpu.memory_gb * GB else "no"
        own = plan.recipe.workers.use_gpu and gpu == plan.gpu
        cells = [cell for pair in row for cell in pair]
        table.add_row(gpu.name, f"{gpu.tflops:.0f}", f"{gpu.dollars:.2f}", fits, *cells, style="bold" if own else None)
    return table


def _hours_of(gpu: Gpu, flop: float, *, share: float, count: int) -> tuple[str, str]:
    hours = gpu.hours(flop, share=share)
    each = hours / count
    return f"{each:,.0f} h" if each >= TENTHS_BELOW else f"{each:,.1f} h", f"${hours * gpu.dollars:,.0f}"


def _said_of_hours() -> str:
    return (
        f"Arithmetic, not measured. {gpus.AUTHORS_SHARE:.0%} of the bfloat16 peak is what the seed's author reached on "
        f"A100s; {gpus.GOAL_SHARE:.0%} is a goal. Prices are assumptions of {gpus.PRICES_OF}: rented, on demand."
    )


def _gb(size: float) -> str:
    return f"{size / GB:,.2f}" if size < GB else f"{size / GB:,.1f}"
