"""The training's part of the report: how the loss went, how fast, what was skipped, what it paints, the parameters.

Reads: metrics.jsonl (lines of kind "step", "start", "checkpoint", "sample"), the resolved recipe of `train`.

Kind: pure, but for files.
"""

import math
import statistics
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sote.cluster import charts, logs
from sote.cluster.charts import Curve
from sote.cluster.page import Chapter, Html, Section, code, counted, duration, escape, facts, join, number, table, tag
from sote.cluster.storage import RunFolder
from sote.train import strips

Line = dict[str, Any]

# The weight of the smoothed line on its past, so that it is a mean over about a tenth of the run, 50 steps at most:
# an exponential mean with weight w looks back over 1 / (1 - w) values.
SMOOTH_SHARE: Final = 0.1
MOST_SMOOTHED_STEPS: Final = 50
# Quarters of time, from little noise to almost nothing but noise: name in the metrics and in the key
BANDS: Final = tuple((f"loss_time_{at}", f"time {at / 4:g} to {(at + 1) / 4:g}") for at in range(4))
# name in the metrics, label, unit, factor, and whether it is noisy and so smoothed
SMALL_CHARTS: Final = (
    ("images_per_second", "Speed", "images a second", 1.0, True),
    ("grad_norm", "Gradient norm", "before clipping", 1.0, True),
    ("mfu", "Use of the devices", "% of their matrix-product ceiling", 100.0, True),
    ("data_wait_share", "Waiting for data", "% of a step", 100.0, True),
    ("memory_gb", "Memory", "GB, peak of a worker", 1.0, False),
)
MOST_TABLE_ROWS: Final = 40  # skipped steps, the newest
MOST_IDS: Final = 4
ID_SHOWN: Final = 10  # hex digits


def chapter(folder: RunFolder) -> Chapter | None:
    """What the training of a run has to say; None if it has not made a step."""
    lines = logs.read_metrics(folder.metrics)
    steps = _steps(lines)
    if not steps:
        return None
    last, recipe = steps[-1], _recipe(folder)
    story = (
        f"{_subject(recipe)} trained for {counted(last['step'], 'step')} on {counted(last['images_seen'], 'image')}."
    )
    numbers = (("training steps", number(last["step"])), ("loss at the end", _loss(steps)))
    found = (
        _curves(steps),
        strips.section(folder, _of(lines, "sample")),
        _course(steps, lines),
        _parameters(folder, recipe),
    )
    return Chapter(story=story, numbers=numbers, sections=tuple(section for section in found if section))


def read_steps(folder: RunFolder) -> list[Line]:
    """The lines of kind "step" in order of step; of a step that was made again after a resume, the last line."""
    return _steps(logs.read_metrics(folder.metrics))


def _steps(lines: Sequence[Line]) -> list[Line]:
    found = {int(line["step"]): line for line in _of(lines, "step")}
    return [found[step] for step in sorted(found)]


def _of(lines: Sequence[Line], kind: str) -> list[Line]:
    return [line for line in lines if line.get("kind") == kind]


def _subject(recipe: dict[str, Any]) -> str:
    if recipe.get("lora"):
        return "Adapters of Stage C were"
    return "Stage B was" if recipe.get("model", {}).get("stage") == "decoder" else "Stage C was"


def _loss(steps: Sequence[Line]) -> str:
    value = charts.smoothed(_values(steps, "loss"), _weight(len(steps)))[-1]
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def _weight(steps: int) -> float:
    window = min(max(steps * SMOOTH_SHARE, 1.0), MOST_SMOOTHED_STEPS)
    return 1 - 1 / window


def _values(steps: Sequence[Line], name: str, factor: float = 1.0) -> list[float]:
    """One value of each step; NaN where the line has none."""
    return [float("nan") if line.get(name) is None else factor * float(line[name]) for line in steps]


def _has(steps: Sequence[Line], name: str) -> bool:
    return any(line.get(name) is not None for line in steps)


def _curves(steps: Sequence[Line]) -> Section:
    """The loss large, and what goes with it small."""
    xs, weight = _xs(steps), _weight(len(steps))
    broken = sum(not math.isfinite(value) for value in _values(steps, "loss"))
    legend = charts.key((("raw", "each step"), ("smooth", f"mean over about {1 / (1 - weight):.0f} steps")))
    small = [
        charts.lines(_both(xs, _values(steps, name, factor), weight if is_noisy else 0.0), label=label, unit=unit)
        for name, label, unit, factor, is_noisy in SMALL_CHARTS
        if _has(steps, name)
    ]
    lead = f"From {_short(steps[0], 'loss')} at step {number(steps[0]['step'])} to {_loss(steps)}."
    loss = charts.lines(_both(xs, _values(steps, "loss"), weight), label="Loss", unit="by step")
    body = join([
        tag("div", loss, legend, class_="tall"),
        tag("p", f"{counted(broken, 'step')} without a finite loss.", class_="sum") if broken else None,
        tag("div", _bands(steps), _rates(steps), class_="pair block"),
        tag("div", *small, class_="trio block"),
        tag("div", facts(_summary(steps)), class_="block"),
    ])  # fmt: skip
    return Section("training", "How the training went", escape(lead), body)


def _xs(steps: Sequence[Line]) -> list[float]:
    return [float(line["step"]) for line in steps]


def _both(xs: Sequence[float], ys: Sequence[float], weight: float) -> list[Curve]:
    """A line as it is, and smoothed; with no weight on the past the two are one."""
    smooth = Curve(xs, charts.smoothed(ys, weight), "smooth")
    return [Curve(xs, ys, "raw"), smooth] if weight else [smooth]


def _bands(steps: Sequence[Line]) -> Html | None:
    """The loss by quarters of time, each smoothed."""
    bands = [(name, label, f"t{at}") for at, (name, label) in enumerate(BANDS) if _has(steps, name)]
    if not bands:
        return None
    weight = _weight(len(steps))
    curves = [Curve(_xs(steps), charts.smoothed(_values(steps, name), weight), style) for name, _, style in bands]
    chart = charts.lines(curves, label="Loss by time", unit="without weight; at time 1 all is noise")
    return tag("div", chart, charts.key([(style, label) for _, label, style in bands]))


def _rates(steps: Sequence[Line]) -> Html | None:
    """The learning rates of the UNet and of the text encoder."""
    curves = [
        Curve(_xs(steps), _values(steps, name), style)
        for name, style in (("lr_text_encoder", "t2"), ("lr", "smooth"))
        if _has(steps, name)
    ]
    if not curves:
        return None
    entries = (("smooth", "UNet"), ("t2", "text encoder"))
    return tag("div", charts.lines(curves, label="Learning rate"), charts.key(entries) if len(curves) > 1 else None)


def _short(line: Line, name: str) -> str:
    value = line.get(name)
    return "nothing" if value is None else f"{float(value):.4g}"


def _summary(steps: Sequence[Line]) -> Iterator[tuple[str, str]]:
    last = steps[-1]
    yield "steps", number(last["step"])
    yield "images seen", number(last["images_seen"])
    if (speed := _median(steps, "images_per_second")) is not None:
        yield "images/s, median", f"{speed:.3g}"
    if (use := _median(steps, "mfu")) is not None:
        yield "model FLOPs used, median", f"{100 * use:.1f} %"
    if (waited := _median(steps, "data_wait_share")) is not None:
        yield "waiting for data, median", f"{100 * waited:.1f} %"
    if _has(steps, "memory_gb"):
        yield "memory, peak", f"{max(value for value in _values(steps, 'memory_gb') if value == value):.1f} GB"
    if (epoch := last.get("epoch")) is not None:
        yield "epoch, from 0", number(int(epoch))
    yield "first to last step", duration(max(float(last["time"]) - float(steps[0]["time"]), 0.0))


def _median(steps: Sequence[Line], name: str) -> float | None:
    values = [value for value in _values(steps, name) if math.isfinite(value)]
    return statistics.median(values) if values else None


def _course(steps: Sequence[Line], lines: Sequence[Line]) -> Section | None:
    """What happened on the way: starts, skipped steps, checkpoints. None if there is nothing to say."""
    blocks = [
        block for block in (_starts(_of(lines, "start")), _skipped(steps), _kept(_of(lines, "checkpoint"))) if block
    ]
    if not blocks:
        return None
    skipped = sum(bool(line.get("skipped")) for line in steps)
    again = max(len(_of(lines, "start")) - 1, 0)
    lead = f"{counted(skipped, 'step')} skipped, {'never interrupted' if not again else f'continued {number(again)}×'}."
    return Section("course", "On the way", escape(lead), join(tag("div", block, class_="block") for block in blocks))


def _starts(starts: Sequence[Line]) -> Html | None:
    """Who trained from when on: one row for each start of the workers."""
    if not starts:
        return None
    rows = [
        (
            number(int(line.get("resumed_from") or 0) + 1),
            number(int(line["workers"])),
            str(line.get("zero_stage", "")),
            str(line.get("device", "")),
        )
        for line in starts
    ]
    head = ("from step", "workers", "ZeRO stage", "device")
    return tag("div", tag("h3", "Workers"), table(head, rows, numbers_from=0, words_from=3))


def _skipped(steps: Sequence[Line]) -> Html | None:
    """The steps that did not touch the weights, why, and on which images."""
    skipped = [line for line in steps if line.get("skipped")]
    if not skipped:
        return None
    rows = [(number(line["step"]), str(line["skipped"]), _ids(line)) for line in skipped[-MOST_TABLE_ROWS:]]
    title = counted(len(skipped), "skipped step") + (f", the last {len(rows)}" if len(rows) < len(skipped) else "")
    head = ("step", "reason", "images, by the start of their ids")
    return tag("div", tag("h3", title), table(head, rows, numbers_from=0, words_from=1))


def _ids(line: Line) -> Html:
    ids = [str(each) for each in line.get("skipped_ids") or ()]
    more = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
    return join([join((code(each[:ID_SHOWN]) for each in ids[:MOST_IDS]), " "), more])


def _kept(checkpoints: Sequence[Line]) -> Html | None:
    """How many checkpoints were written, how large and how long it took."""
    if not checkpoints:
        return None
    last = checkpoints[-1]
    took = statistics.median(float(line["seconds"]) for line in checkpoints)
    pairs = (
        ("written", number(len(checkpoints))),
        ("the last at step", number(last["step"])),
        ("size", f"{float(last['bytes']) / 1e9:.3g} GB"),
        ("to write one, median", duration(took)),
    )
    return tag("div", tag("h3", "Checkpoints"), facts(pairs))


def _recipe(folder: RunFolder) -> dict[str, Any]:
    path = folder.recipe("train")
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _parameters(folder: RunFolder, values: dict[str, Any]) -> Section:
    """The resolved recipe as tables, one for each table of the file."""
    groups: dict[str, list[tuple[Html, str]]] = {}
    for name, value in _flat(values):
        group, _, field = name.rpartition(".")
        groups.setdefault(group, []).append((tag("code", field), _written(value)))
    blocks = [
        tag("div", tag("h3", name or "run"), table((), rows, numbers_from=2), class_="parameters")
        for name, rows in sorted(groups.items())
    ]
    said = f"The recipe as it was resolved, from {folder.recipe('train').name}."
    lead = said if values else "The run folder holds no recipe of it."
    return Section("parameters", "Parameters of the training", escape(lead), tag("div", *blocks, class_="twice"))


def _flat(values: dict[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def _written(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_written(each) for each in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
