"""The training's part of the report: how the loss went, how fast, and with which parameters.

Reads: metrics.jsonl (lines of kind "step"), the resolved recipe of `train`.

Kind: pure, but for files.
"""

import math
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sote.cluster import charts, logs
from sote.cluster.charts import Curve
from sote.cluster.page import Chapter, Html, Section, counted, duration, escape, facts, join, number, table, tag
from sote.cluster.storage import RunFolder

Line = dict[str, Any]

# The weight of the smoothed line on its past, so that it is a mean over about a tenth of the run, 50 steps at most:
# an exponential mean with weight w looks back over 1 / (1 - w) values.
SMOOTH_SHARE: Final = 0.1
MOST_SMOOTHED_STEPS: Final = 50
# name in the metrics, label, unit, and whether it is noisy and so smoothed
SMALL_CHARTS: Final = (
    ("lr", "Learning rate", "", False),
    ("images_per_second", "Speed", "images a second", True),
    ("grad_norm", "Gradient norm", "", True),
)


def chapter(folder: RunFolder) -> Chapter | None:
    """What the training of a run has to say; None if it has not made a step."""
    steps = read_steps(folder)
    if not steps:
        return None
    last = steps[-1]
    story = f"Stage C was trained for {counted(last['step'], 'step')} on {counted(last['images_seen'], 'image')}."
    numbers = (("training steps", number(last["step"])), ("loss at the end", _loss(steps)))
    return Chapter(story=story, numbers=numbers, sections=(_curves(steps), _parameters(folder)))


def read_steps(folder: RunFolder) -> list[Line]:
    """The lines of kind "step" in order of step; of a step that was made again after a resume, the last line."""
    found = {int(line["step"]): line for line in logs.read_metrics(folder.metrics) if line.get("kind") == "step"}
    return [found[step] for step in sorted(found)]


def _loss(steps: Sequence[Line]) -> str:
    value = charts.smoothed(_values(steps, "loss"), _weight(len(steps)))[-1]
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def _weight(steps: int) -> float:
    window = min(max(steps * SMOOTH_SHARE, 1.0), MOST_SMOOTHED_STEPS)
    return 1 - 1 / window


def _values(steps: Sequence[Line], name: str) -> list[float]:
    """One value of each step; NaN where the line has none."""
    return [float("nan") if line.get(name) is None else float(line[name]) for line in steps]


def _curves(steps: Sequence[Line]) -> Section:
    xs = [float(line["step"]) for line in steps]
    losses = _values(steps, "loss")
    weight = _weight(len(steps))
    both = _both(xs, losses, weight)
    broken = sum(not math.isfinite(value) for value in losses)
    legend = charts.key((("raw", "each step"), ("smooth", f"mean over about {1 / (1 - weight):.0f} steps")))
    small = [
        charts.lines(_both(xs, _values(steps, name), weight if is_noisy else 0.0), label=label, unit=unit)
        for name, label, unit, is_noisy in SMALL_CHARTS
        if any(line.get(name) is not None for line in steps)
    ]
    lead = f"From {_short(steps[0], 'loss')} at step {number(steps[0]['step'])} to {_loss(steps)}."
    body = join([
        tag("div", charts.lines(both, label="Loss", unit="by step"), legend, class_="tall"),
        tag("p", f"{counted(broken, 'step')} without a finite loss.", class_="sum") if broken else None,
        tag("div", *small, class_="trio block"),
        tag("div", facts(_summary(steps)), class_="block"),
    ])  # fmt: skip
    return Section("training", "How the training went", escape(lead), body)


def _both(xs: Sequence[float], ys: Sequence[float], weight: float) -> list[Curve]:
    """A line as it is, and smoothed; with no weight on the past the two are one."""
    return [Curve(xs, ys, "raw"), Curve(xs, charts.smoothed(ys, weight), "smooth")]


def _short(line: Line, name: str) -> str:
    value = line.get(name)
    return "nothing" if value is None else f"{float(value):.4g}"


def _summary(steps: Sequence[Line]) -> Iterator[tuple[str, str]]:
    last = steps[-1]
    yield "steps", number(last["step"])
    yield "images seen", number(last["images_seen"])
    speeds = [value for value in _values(steps, "images_per_second") if math.isfinite(value)]
    if speeds:
        yield "images/s, median", f"{sorted(speeds)[len(speeds) // 2]:.3g}"
    if (share := last.get("data_wait_share")) is not None:
        yield "waiting for data", f"{100 * float(share):.1f} %"
    if (epoch := last.get("epoch")) is not None:
        yield "epoch, from 0", number(int(epoch))
    yield "first to last step", duration(max(float(last["time"]) - float(steps[0]["time"]), 0.0))


def _parameters(folder: RunFolder) -> Section:
    """The resolved recipe as tables, one for each table of the file."""
    path = folder.recipe("train")
    values = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    groups: dict[str, list[tuple[Html, str]]] = {}
    for name, value in _flat(values):
        group, _, field = name.rpartition(".")
        groups.setdefault(group, []).append((tag("code", field), _written(value)))
    blocks = [
        tag("div", tag("h3", name or "run"), table((), rows, numbers_from=2), class_="parameters")
        for name, rows in sorted(groups.items())
    ]
    lead = f"The recipe as it was resolved, from {path.name}." if values else "The run folder holds no recipe of it."
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
