"""What stands in metrics.jsonl, and how far a pass is, as metrics of Ray: Prometheus reads them from every node.

Ray puts `ray_` before the names. Nothing is done in a process that is not connected to Ray, and Ray is not imported for
it. Labels are few by construction: the run folder's name, verbs, stages, passes and, of reasons, so many words as
MOST_REASONS. Ray drops a gauge that is not a number, so losses that are none are counted.

Kind: pure, but for metrics of Ray where there is one.
"""

import functools
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

MOST_REASONS: Final = 40  # of one stage and one metric in a process; more of them are counted as OTHER
LONGEST_REASON: Final = 60  # characters
OTHER: Final = "other"
VERBS: Final = {"stage": "curate", "text": "curate"} | dict.fromkeys(("start", "step", "checkpoint"), "train")
# Fields of a step's line that are drawn as they are: name of the metric, what it is
OF_A_STEP: Final = {
    "step": ("sote_train_step", "Optimizer steps that are done"),
    "loss": ("sote_train_loss", "Loss of the last step, weighted as it is trained"),
    "plain_loss": ("sote_train_plain_loss", "Loss of the last step, not weighted"),
    "grad_norm": ("sote_train_gradient_norm", "Norm of all gradients before clipping"),
    "lr": ("sote_train_learning_rate", "Learning rate"),
    "images_seen": ("sote_train_images_seen", "Images over all steps"),
    "images_per_second": ("sote_train_images_per_second", "Images a second of all workers"),
    "data_wait_share": ("sote_train_data_wait_ratio", "Share of the step that waited for data"),
    "mfu": ("sote_train_mfu_ratio", "Share of the measured ceiling of all devices"),
    "memory_gb": ("sote_train_memory_gigabytes", "Most memory of the first worker's device (1e9 bytes)"),
    "workers": ("sote_train_workers", "Workers that train"),
}


@dataclass(frozen=True)
class Metric:
    """One metric: a counter is added to, a gauge is set. `labels` come after `run`."""

    name: str
    what: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Its name as Prometheus sees it."""
        return f"ray_{self.name}"


@dataclass(frozen=True)
class Sample:
    """One value of a metric, with the values of its labels in their order."""

    metric: Metric
    value: float
    labels: tuple[str, ...] = ()


def _gauge(name: str, what: str, *labels: str) -> Metric:
    return Metric(name, what, "gauge", labels)


def _counter(name: str, what: str, *labels: str) -> Metric:
    return Metric(name, what, "counter", labels)


ROWS: Final = _counter("sote_rows_total", "Rows of committed shards", "stage", "outcome")
FAILED: Final = _counter("sote_rows_failed_total", "Rows that failed, by reason", "stage", "reason")
SKIPPED: Final = _counter("sote_rows_skipped_total", "Rows that were left out, by reason", "stage", "reason")
SHARDS: Final = _counter("sote_shards_total", "Committed shards", "stage")
SECONDS: Final = _counter("sote_stage_seconds_total", "Seconds of work in committed shards", "stage")
STEP: Final = {field: _gauge(name, what) for field, (name, what) in OF_A_STEP.items()}
NOT_FINITE: Final = _counter("sote_train_losses_not_finite_total", "Steps whose loss was not finite")
STEPS_SKIPPED: Final = _counter("sote_train_steps_skipped_total", "Steps that changed nothing, by reason", "reason")
STARTS: Final = _counter("sote_train_starts_total", "Starts of the workers")
CHECKPOINTS: Final = _counter("sote_checkpoints_total", "Checkpoints written")
CHECKPOINT_STEP: Final = _gauge("sote_checkpoint_step", "Step of the last checkpoint")
CHECKPOINT_SECONDS: Final = _gauge("sote_checkpoint_seconds", "Seconds to write the last checkpoint")
CHECKPOINT_BYTES: Final = _gauge("sote_checkpoint_bytes", "Bytes of the last checkpoint")
DONE: Final = _gauge("sote_progress_done", "Units of the pass that are done", "verb", "pass")
TOTAL: Final = _gauge("sote_progress_total", "Units of the pass", "verb", "pass")
PROGRESS: Final = _gauge("sote_last_progress_timestamp_seconds", "When the run last went on, Unix time", "verb")
METRICS: Final = (
    *(ROWS, FAILED, SKIPPED, SHARDS, SECONDS),
    *(*STEP.values(), NOT_FINITE, STEPS_SKIPPED, STARTS),
    *(CHECKPOINTS, CHECKPOINT_STEP, CHECKPOINT_SECONDS, CHECKPOINT_BYTES),
    *(DONE, TOTAL, PROGRESS),
)


def export(run: str, line: Mapping[str, Any]) -> None:
    """Export a line of the metrics.jsonl of the run folder named `run`."""
    if _connected():
        _record(run, samples(line))


def moved(run: str, *, verb: str, what: str, done: int, total: int) -> None:
    """Export how far the pass `what` is."""
    if _connected():
        found = (Sample(DONE, done, (verb, what)), Sample(TOTAL, total, (verb, what)))
        _record(run, [*found, Sample(PROGRESS, time.time(), (verb,))])


def samples(line: Mapping[str, Any]) -> list[Sample]:
    """What a line of a metrics.jsonl says in metrics; kinds of line that are not drawn say nothing."""
    kind = str(line.get("kind"))
    of = {"stage": _of_stage, "start": _of_start, "step": _of_step, "checkpoint": _of_checkpoint}.get(kind)
    found = list(of(line)) if of is not None else []
    if kind in VERBS:
        found.append(Sample(PROGRESS, time.time(), (VERBS[kind],)))
    return found


def _of_stage(line: Mapping[str, Any]) -> Iterator[Sample]:
    stage, errors, skips = str(line["stage"]), line.get("errors") or {}, line.get("skips") or {}
    failed, skipped = int(line.get("failed", 0)), sum(skips.values())
    outcomes = {"failed": failed, "skipped": skipped, "done": max(int(line.get("rows", 0)) - failed - skipped, 0)}
    yield from (Sample(ROWS, count, (stage, outcome)) for outcome, count in outcomes.items())
    for metric, reasons in ((FAILED, errors), (SKIPPED, skips)):
        for reason, count in reasons.items():
            yield Sample(metric, count, (stage, str(reason).removeprefix(f"{stage}: ")))
    yield Sample(SHARDS, 1, (stage,))
    yield Sample(SECONDS, float(line.get("seconds", 0.0)), (stage,))


def _of_start(line: Mapping[str, Any]) -> Iterator[Sample]:
    yield Sample(STARTS, 1)
    yield Sample(STEP["workers"], int(line["workers"]))


def _of_step(line: Mapping[str, Any]) -> Iterator[Sample]:
    for field, metric in STEP.items():
        if isinstance(value := line.get(field), int | float):
            yield Sample(metric, value)
    if line.get("loss") is None:
        yield Sample(NOT_FINITE, 1)
    if line.get("skipped") is not None:
        yield Sample(STEPS_SKIPPED, 1, (str(line["skipped"]),))


def _of_checkpoint(line: Mapping[str, Any]) -> Iterator[Sample]:
    yield Sample(CHECKPOINTS, 1)
    yield Sample(CHECKPOINT_STEP, int(line["step"]))
    yield Sample(CHECKPOINT_SECONDS, float(line["seconds"]))
    yield Sample(CHECKPOINT_BYTES, int(line["bytes"]))


def _connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and hasattr(ray, "is_initialized") and bool(ray.is_initialized())


def _record(run: str, found: list[Sample]) -> None:
    for sample in found:
        if not math.isfinite(sample.value):
            continue
        metric = sample.metric
        labels = {"run": run} | dict(zip(metric.labels, sample.labels, strict=True))
        if "reason" in labels:
            labels["reason"] = _bounded(metric.name, labels.get("stage", ""), labels["reason"])
        if metric.kind == "gauge":
            _of_ray(metric).set(sample.value, tags=labels)
        elif sample.value > 0:  # Ray takes no other
            _of_ray(metric).inc(sample.value, tags=labels)


@functools.cache
def _of_ray(metric: Metric) -> Any:
    """The metric as Ray has it; once in a process, for Ray knows them by name."""
    from ray.util import metrics

    made = metrics.Gauge if metric.kind == "gauge" else metrics.Counter
    return made(metric.name, description=metric.what, tag_keys=("run", *metric.labels))


_known: dict[tuple[str, str], set[str]] = {}


def _bounded(name: str, stage: str, reason: str) -> str:
    """The reason, or OTHER if there have been too many; what it tells in particular stands behind a colon."""
    word = reason.partition(": ")[0][:LONGEST_REASON]
    known = _known.setdefault((name, stage), set())
    if word not in known and len(known) >= MOST_REASONS:
        return OTHER
    known.add(word)
    return word
