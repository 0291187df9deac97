"""How far a run is: rows of each stage, rate and time that is left, what failed and why, training steps.

Only markers, records and metrics are read, so it works while the run goes on.
Reads: run.json, rows/<stage>/*.done, metrics.jsonl, events.jsonl, the resolved recipes.

Kind: pure, but for files and the picture for a terminal.
"""

import json
import math
import statistics
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pyarrow.compute
import pyarrow.parquet as pq
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sote.cluster import events, logs, remote
from sote.cluster.errors import Denied, RunFolderError
from sote.cluster.page import counted, duration, number, share
from sote.cluster.storage import RunFolder

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here
RECENT_STEPS: Final = 50  # the time that is left is judged by the median of so many steps
RECENT_SHARDS: Final = 50  # the rate of a stage at work is that of its last shards
FEWEST_GAPS: Final = 3  # so many times between shards say a rate
FIRST_STAGE: Final = "index"  # its rows are the total of every other stage


@dataclass(frozen=True)
class VerbStatus:
    """One verb that was run on the folder. `exit_code` is None while it runs, and after a kill."""

    verb: str
    start: str
    end: str | None
    exit_code: int | None


@dataclass(frozen=True)
class StageStatus:
    """One stage of curation: rows in committed shards, seconds of work in them, why rows failed or were skipped.

    `seconds_left` is None where nothing is left or no rate is known.
    """

    stage: str
    rows: int
    total: int
    failed: int
    seconds: float
    rows_per_second: float | None
    seconds_left: float | None = None
    errors: tuple[tuple[str, int], ...] = ()
    skips: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class TrainStatus:
    """The last step. `max_steps` and `seconds_left` are None where the recipe does not say or no rate is known."""

    step: int
    max_steps: int | None
    images_seen: int
    images_per_second: float | None
    seconds_left: float | None
    loss: float | None


@dataclass(frozen=True)
class Status:
    """The whole run. `ends` says why rows of the catalogue are not picked, one reason of each row."""

    run: Path
    verbs: tuple[VerbStatus, ...]
    stages: tuple[StageStatus, ...]
    ends: tuple[tuple[str, int], ...]
    picked: int | None
    training: TrainStatus | None
    images: int
    said: events.Said = events.NOTHING


def status(run: Path, *, stages: Sequence[str] = ()) -> Status:
    """Look at the run folder `run`. `stages` names stages to list in any case, in their order; those found come after.

    Raises RunFolderError: no such folder, or no run folder.
    """
    folder = RunFolder(run)
    record = read_record(folder)
    lines = logs.read_metrics(folder.metrics)
    markers = _markers(folder)
    picked, ends = _ends(folder) if remote.exists(folder.catalogue) else (None, Counter[str]())
    return Status(
        run=run,
        verbs=tuple(_verb(name, verb) for name, verb in record["verbs"].items()),
        stages=tuple(_stages(markers, lines, [*stages, *_seen(lines)])),
        ends=_often_first(ends),
        picked=picked,
        training=_training(folder, [line for line in lines if line.get("kind") == "step"]),
        images=sum(line.get("kind") == "image" for line in lines),
        said=events.look(folder, record, lines),
    )


def read_record(folder: RunFolder) -> dict[str, Any]:
    """`run.json` of a run folder. Raises RunFolderError in one line: no such folder, or no run folder."""
    root = remote.named(folder.root)
    try:
        record = json.loads(remote.fetch(folder.record).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if remote.names(folder.root) or (remote.uri(folder.root) is None and folder.root.is_dir()):
            raise RunFolderError(f"{root}: is not a run folder: it has no run.json") from None
        what = "is a file" if remote.exists(folder.root) else "no such folder"
        raise RunFolderError(f"{root}: {what}; name the run folder, which the recipe's line `run` says") from None
    except Denied as error:
        raise RunFolderError(str(error)) from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{remote.named(folder.record)}: cannot be read as a run's record ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("verbs"), dict):
        raise RunFolderError(f"{remote.named(folder.record)}: is not a run's record: it has no table of verbs")
    return record


def _verb(name: str, verb: dict[str, Any]) -> VerbStatus:
    return VerbStatus(name, str(verb.get("start")), verb.get("end"), verb.get("exit_code"))


def _markers(folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """The facts in the markers of all committed shards, by stage. A marker without its file does not count."""
    found: dict[str, list[dict[str, Any]]] = {}
    there = set(remote.paths(folder.root / "rows", "*/*.parquet"))
    for path in remote.fetch_tree(folder.root / "rows", "*/*.parquet.done"):
        if path.with_suffix("") in there:
            found.setdefault(path.parent.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def _seen(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The stages in the order in which they first committed a shard."""
    return list(dict.fromkeys(str(line["stage"]) for line in lines if line.get("kind") == "stage"))


def _stages(
    markers: dict[str, list[dict[str, Any]]], lines: Sequence[dict[str, Any]], order: Sequence[str]
) -> Iterator[StageStatus]:
    total = sum(int(facts["rows"]) for facts in markers.get(FIRST_STAGE, []))
    for stage in dict.fromkeys([*(order if markers else ()), *markers]):
        facts = markers.get(stage, [])
        rows, failed = (sum(int(each[name]) for each in facts) for name in ("rows", "failed"))
        seconds = sum(float(each["seconds"]) for each in facts)
        rate = rows / seconds if seconds > 0 else None
        if rows < total:
            rate = _recent_rate([line for line in lines if line.get("stage") == stage]) or rate
        left = (total - rows) / rate if rate and rows < total else None
        yield StageStatus(
            stage, rows, total, failed, seconds, rate, left, _sums(facts, "errors"), _sums(facts, "skips")
        )


def _recent_rate(lines: Sequence[dict[str, Any]]) -> float | None:
    """Rows a second of the last shards of a stage, by the clock; None if they are too few.

    The longest time between two shards is left out: it may be the pause between two runs.
    """
    recent = [line for line in lines if line.get("kind") == "stage"][-RECENT_SHARDS - 1 :]
    gaps = [
        (max(float(after["time"]) - float(before["time"]), 0.0), int(after["rows"]))
        for before, after in pairwise(recent)
    ]
    if len(gaps) < FEWEST_GAPS:
        return None
    gaps.remove(max(gaps))
    seconds = sum(gap for gap, _ in gaps)
    return sum(rows for _, rows in gaps) / seconds if seconds > 0 else None


def _sums(facts: Sequence[dict[str, Any]], name: str) -> tuple[tuple[str, int], ...]:
    found: Counter[str] = Counter()
    for each in facts:
        found.update(each.get(name) or {})
    return _often_first(found)


def _often_first(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _ends(folder: RunFolder) -> tuple[int, Counter[str]]:
    """How the rows of the catalogue ended: the picked ones, and the others by reason."""
    picked, found = 0, Counter[str]()
    with remote.opened(folder.catalogue) as catalogue, pq.ParquetFile(catalogue) as file:
        for batch in file.iter_batches(columns=["pick", "skip_reason", "error"]):
            picked += pc.sum(batch["pick"]).as_py() or 0
            aside = batch.filter(pc.invert(pc.fill_null(batch["pick"], False)))
            for line in pc.value_counts(pc.coalesce(aside["error"], aside["skip_reason"])):
                found[line["values"].as_py() or "catalogue: no reason"] += line["counts"].as_py()
    return picked, found


def _training(folder: RunFolder, lines: Sequence[dict[str, Any]]) -> TrainStatus | None:
    if not lines:
        return None
    last = lines[-1]
    max_steps = _max_steps(folder)
    seconds = _seconds_per_step(lines[-RECENT_STEPS:])
    left = None if max_steps is None or seconds is None else max(max_steps - int(last["step"]), 0) * seconds
    loss = last.get("loss")
    return TrainStatus(
        step=int(last["step"]),
        max_steps=max_steps,
        images_seen=int(last["images_seen"]),
        images_per_second=last.get("images_per_second"),
        seconds_left=left,
        loss=None if loss is None else float(loss),
    )


def _seconds_per_step(lines: Sequence[dict[str, Any]]) -> float | None:
    """The median time of a step, so that a pause between two runs does not count."""
    gaps = [
        (float(after["time"]) - float(before["time"])) / (int(after["step"]) - int(before["step"]))
        for before, after in pairwise(lines)
        if int(after["step"]) > int(before["step"])
    ]
    return statistics.median(gaps) if gaps else None


def _max_steps(folder: RunFolder) -> int | None:
    path = folder.recipe("train")
    return _found(tomllib.loads(path.read_text(encoding="utf-8")), "max_steps") if path.exists() else None


def _found(table: dict[str, Any], name: str) -> int | None:
    """The value of `name` in a table or in the tables inside it."""
    if isinstance(table.get(name), int):
        return int(table[name])
    inner = (_found(value, name) for value in table.values() if isinstance(value, dict))
    return next((value for value in inner if value is not None), None)


def render(state: Status) -> RenderableType:
    """The status for a terminal."""
    parts: list[RenderableType] = [
        Text.assemble((remote.named(state.run), "bold"), *_verbs(state.verbs)),
        *events.render(state.said),
    ]
    if state.stages:
        parts.append(_stage_table(state.stages))
    if state.picked is not None:
        total = state.picked + sum(count for _, count in state.ends)
        parts.append(Text(f"{number(state.picked)} of {number(total)} files picked ({share(state.picked, total)})"))
    if any(each.errors or each.skips for each in state.stages):
        parts.append(_reason_table(state.stages))
    elif state.ends:
        parts.append(_end_table(state.ends))
    parts.append(Text(_training_line(state.training)) if state.training else Text("No training step yet.", style="dim"))
    if state.images:
        parts.append(Text(f"{counted(state.images, 'image')} painted"))
    return Group(*parts)


def _verbs(verbs: Sequence[VerbStatus]) -> Iterator[str]:
    for verb in verbs:
        if verb.end is None:
            yield f"\n{verb.verb}: since {verb.start}, not at its end"
        else:
            yield f"\n{verb.verb}: {'done' if verb.exit_code == 0 else f'exit code {verb.exit_code}'} at {verb.end}"


def _stage_table(stages: Sequence[StageStatus]) -> Table:
    table = _table("stage")
    for head in ("rows", "of", "", "failed", "time", "rows/s", "left"):
        table.add_column(head, justify="right")
    for each in stages:
        rate, left = each.rows_per_second, each.seconds_left
        cells = (number(each.rows), number(each.total), share(each.rows, each.total), number(each.failed))
        pace = ("" if rate is None else number(rate, 1), "" if left is None else duration(left))
        table.add_row(each.stage, *cells, duration(each.seconds), *pace)
    return table


def _reason_table(stages: Sequence[StageStatus]) -> Table:
    """Why rows failed or were skipped, stage by stage. A row may stand in several stages."""
    table = _table("stage", "")
    table.add_column("rows", justify="right")
    table.add_column("reason")
    for each in stages:
        for what, reasons in (("failed", each.errors), ("skipped", each.skips)):
            for reason, count in reasons:
                table.add_row(each.stage, what, number(count), Text(reason.removeprefix(f"{each.stage}: ")))
    return table


def _end_table(ends: Sequence[tuple[str, int]]) -> Table:
    """Why rows of the catalogue are not picked, where the stages' own rows are gone."""
    table = _table()
    table.add_column("rows", justify="right")
    table.add_column("reason")
    for reason, count in ends:
        table.add_row(number(count), Text(reason))
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head)
    return table


def _training_line(training: TrainStatus) -> str:
    of = f" of {number(training.max_steps)}" if training.max_steps is not None else ""
    parts = [f"step {number(training.step)}{of}", f"{counted(training.images_seen, 'image')} seen"]
    if training.images_per_second is not None:
        parts.append(f"{training.images_per_second:.3g} images/s")
    if training.seconds_left:
        parts.append(f"{duration(training.seconds_left)} left")
    if training.loss is not None:
        parts.append(f"loss {training.loss:.4g}" if math.isfinite(training.loss) else "loss is not finite")
    return ", ".join(parts)
