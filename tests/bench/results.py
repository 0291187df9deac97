"""The results of a machine: every row with machine, date, commit and command, in results/<machine>.json.

A run of a bench replaces all that was kept of that bench on that machine.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from machine import Machine
from pages import drawn
from rows import Answer, Row, put

TOP = Path(__file__).resolve().parent.parent.parent
FOLDER = TOP / "tests" / "bench" / "results"
MADE = ("BENCHMARKS.md", "tests/bench/results")  # what a run writes does not make its tree a dirty one
LOOK_SECONDS = 1.0
Kept = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where figures come from. `busy_cores` were at other work just before it began; None: not known."""

    machine: str
    date: str
    commit: str | None
    dirty: bool | None
    command: str
    busy_cores: float | None = None


def origin(machine: Machine, *, command: str, commit: str | None = None) -> Origin:
    """Of what is measured now. `commit` is for trees without .git."""
    head = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", *(f":!{path}" for path in MADE))
    return Origin(
        machine.name,
        datetime.now(UTC).isoformat(timespec="seconds"),
        commit or head or None,
        bool(changed) if head else None,
        command,
        busy_cores(),
    )


def busy_cores() -> float | None:
    """How many cores' worth of time the machine works, over a moment in which this process does nothing."""
    before = _worked()
    if before is None:
        return None
    began = time.monotonic()
    time.sleep(LOOK_SECONDS)
    return round(((_worked() or before) - before) / (time.monotonic() - began), 2)


def _worked() -> float | None:
    """Seconds that all cores have worked: proc(5), stat: user, nice, system, irq, softirq, steal."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    return sum(int(words[at]) for at in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", TOP, *words], capture_output=True, text=True, check=False).stdout.strip()


def path_of(machine: Machine, folder: Path = FOLDER) -> Path:
    """The file of a machine's results."""
    return folder / f"{machine.name}.json"


def load(path: Path) -> Kept:
    """What is kept of a machine; of a new one nothing."""
    if not path.exists():
        return {"machine": path.stem, "hardware": "", "rows": [], "plots": [], "not_measured": []}
    found: Kept = json.loads(path.read_text(encoding="utf-8"))
    return found


def put_rows(path: Path, machine: Machine, bench: str, answer: Answer, where: Origin) -> None:
    """Keep the answer of a bench in place of what was kept of it."""
    kept = load(path)
    kept |= {"machine": machine.name, "hardware": machine.said()}
    facts = asdict(where)
    new = {
        "rows": [record(bench, row) | facts for row in answer.rows],
        "plots": [{"bench": bench, **asdict(plot), "svg": _svg(drawn(plot))} | facts for plot in answer.plots],
        "not_measured": [_missing(bench, why, where) for why in answer.not_measured],
    }
    for name, lines in new.items():
        kept[name] = [each for each in kept[name] if each["bench"] != bench] + lines
    _write(path, kept)


def put_missing(path: Path, machine: Machine, missing: Mapping[str, str], where: Origin) -> None:
    """Keep why benches were not run, of those that have no figures from an earlier run."""
    kept = load(path) | {"machine": machine.name, "hardware": machine.said()}
    had = {row["bench"] for row in kept["rows"]}
    why = {bench: said for bench, said in missing.items() if bench not in had}
    others = [each for each in kept["not_measured"] if each["bench"] not in why]
    kept["not_measured"] = others + [_missing(bench, said, where) for bench, said in why.items()]
    _write(path, kept)


def _missing(bench: str, why: str, where: Origin) -> Kept:
    return {"bench": bench, "why": why, "machine": where.machine, "date": where.date, "commit": where.commit}


def record(bench: str, row: Row) -> Kept:
    """A row as it is kept, but for its origin."""
    return {"bench": bench, **asdict(row), "ratio": row.ratio}


def everything(folder: Path) -> list[Kept]:
    """All machines' results."""
    return [load(path) for path in sorted(folder.glob("*.json"))]


def newest(rows: Sequence[Kept]) -> list[Kept]:
    """Of the rows of one bench, machine and name the newest, in the order in which they were kept."""
    found: dict[tuple[str, str, str], Kept] = {}
    for row in rows:
        key = (row["bench"], row["what"], row["machine"])
        if key not in found or row["date"] >= found[key]["date"]:
            found[key] = row
    return list(found.values())


def _svg(chart: str) -> str:
    found = re.search(r"<svg.*?</svg>", chart, re.DOTALL)
    return found.group(0) if found else ""


def _write(path: Path, kept: Kept) -> None:
    put(path, json.dumps(kept, indent=1) + "\n")
