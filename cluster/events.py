"""What a run has said and whether it goes on: its last warnings and errors, its job, and how long it has been quiet.

Reads: events.jsonl, run.json, and the time of the last line of metrics.jsonl.

Kind: pure, but for files and the picture for a terminal.
"""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sote.cluster import jsonlines, logs
from sote.cluster.page import counted, duration
from sote.cluster.storage import RunFolder

SHOWN: Final = 5  # warnings and errors, the last ones
QUIET_SECONDS: Final = 600.0  # without a committed shard or a step, from which on it is said
LEVELS: Final = ("warning", "error", "critical")
# Fields of a line that are not the event's own values
NOT_VALUES: Final = (*jsonlines.OURS, "pid")


@dataclass(frozen=True)
class Event:
    """One warning or error. `time` is Unix seconds, `said` the event with its values, in one line."""

    time: float
    level: str
    said: str
    verb: str | None
    job: str | None


@dataclass(frozen=True)
class Life:
    """A verb that has no end yet. `quiet_seconds` is the time since it started or last went on, whichever is later.

    `killed`: it ran on this machine, and its process is gone.
    """

    verb: str
    node: str | None
    pid: int | None
    job: str | None
    quiet_seconds: float | None
    killed: bool


@dataclass(frozen=True)
class Said:
    """The last warnings and errors, how many there are, and the verbs that are not at their end."""

    last: tuple[Event, ...]
    count: int
    lives: tuple[Life, ...]


NOTHING: Final = Said((), 0, ())


def look(
    folder: RunFolder, record: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], *, now: float | None = None
) -> Said:
    """What the run folder says. `record` is its run.json, `lines` are those of its metrics, `now` Unix seconds."""
    found = logs.read_metrics(folder.events)
    bad = [_event(line) for line in found if line.get("level") in LEVELS]
    newest = float(lines[-1]["time"]) if lines else None
    open_verbs = [name for name, verb in record["verbs"].items() if verb.get("end") is None]
    moment = time.time() if now is None else now
    lives = (_life(name, record["verbs"][name], found, newest=newest, now=moment) for name in open_verbs)
    return Said(tuple(bad[-SHOWN:]), len(bad), tuple(lives))


def _event(line: Mapping[str, Any]) -> Event:
    values = [f"{name}={value}" for name, value in line.items() if name not in NOT_VALUES]
    error = [_in_a_line(str(line["error"]))] if line.get("error") else []
    said = ": ".join([" ".join([str(line.get("event")), *values]), *error])
    return Event(float(line["time"]), str(line["level"]), said, line.get("verb"), line.get("job"))


def _in_a_line(error: str) -> str:
    """An error in one line: of one that brings its trace along, as Ray's do, its kind and the last line."""
    lines = error.strip().splitlines() or [""]
    return lines[0] if len(lines) == 1 else f"{lines[0].partition(':')[0]}: {lines[-1].strip()}"


def _life(
    name: str, verb: Mapping[str, Any], found: Sequence[Mapping[str, Any]], *, newest: float | None, now: float
) -> Life:
    starts = [line for line in found if line.get("event") == logs.STARTED and line.get("verb") == name]
    start: Mapping[str, Any] = starts[-1] if starts else {}
    times = [float(each) for each in (start.get("time"), newest) if each is not None]
    pid, node = start.get("pid"), start.get("node")
    gone = pid is not None and node == platform.node() and not Path(f"/proc/{pid}").exists()
    quiet = max(now - max(times), 0.0) if times else None
    return Life(name, node, pid, start.get("job") or verb.get("job"), quiet, gone)


def render(said: Said) -> list[RenderableType]:
    """For a terminal: what is wrong with the verbs under way, then the last warnings and errors. Nothing to say: []."""
    parts: list[RenderableType] = [Text(line) for line in map(_of_life, said.lives) if line]
    if said.last:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for head in ("at", "", "what", "job"):
            table.add_column(head)
        for each in said.last:
            when = datetime.fromtimestamp(each.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
            level = Text(each.level, style="yellow" if each.level == "warning" else "red")
            table.add_row(when, level, Text(each.said), each.job or "")
        parts.append(table)
        if more := said.count - len(said.last):
            parts.append(Text(f"and {counted(more, 'earlier one')} in events.jsonl", style="dim"))
    return parts


def _of_life(life: Life) -> str:
    where = f"process {life.pid} on {life.node}" if life.pid is not None else ""
    if life.job is not None:
        where = f"job {life.job}, {where}" if where else f"job {life.job}"
    quiet = ""
    if life.quiet_seconds is not None and life.quiet_seconds >= QUIET_SECONDS:
        quiet = f"no progress since {duration(life.quiet_seconds)}"
    if life.killed:
        state = f"was killed ({where} is gone); the same command continues it"
        return f"{life.verb}: {state}"
    return f"{life.verb}: " + "; ".join(filter(None, (quiet, where))) if quiet or where else ""
