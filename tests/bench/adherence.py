"""What the demo's models paint of what they are asked for, and what the demo takes: `python tests/bench/adherence.py`.

Runs `sote demo` anew in runs/bench/demo, eight to ten minutes on two cores, and reads its adherence.json: the goals
that the demo sets itself, each with whether it is met, and as details every group of tags by each of the three models.
The seconds are those of the whole command. `--weights DIR` begins the demo with other models;
their seconds have no goal. `--run RUN` reads a demo that has been run in place of running one; its seconds are then
those between the times in its run.json, without the pictures' drawing before and the report after.

Not measured: any model of full size, another seed, another world.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from rows import Answer, Row, add_option, write

from sote.cluster.errors import RunFolderError
from sote.cluster.storage import RunFolder
from sote.serve import adherence_file
from sote.serve.adherence_file import Adherence, Goal

RUN = Path(__file__).resolve().parents[2] / "runs" / "bench" / "demo"
MOST_SECONDS = 900.0  # the demo's goal, on two cores
NOT_MEASURED = ("models of full size", "other seeds than the demo's")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--run", type=Path, help="the folder of a demo that has been run: read it, and run none")
    asked.add_argument("--weights", type=Path, help="the demo begins with these models in place of the committed ones")
    add_option(asked)
    given = asked.parse_args()
    try:
        found = answer(given.run) if given.run is not None else measured(given.weights)
    except RunFolderError as error:
        asked.exit(2, f"{error}\n")
    for row in found.rows:
        print(f"{row.line()}  ({row.note})")
    print("not measured: " + "; ".join(found.not_measured))
    write(given.json, found)


def measured(weights: Path | None = None) -> Answer:
    """Of a demo that is run now."""
    shutil.rmtree(RUN, ignore_errors=True)
    begun_with = [] if weights is None else ["--weights", str(weights)]
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "sote.cluster.cli", "demo", "--out", str(RUN), *begun_with], check=False
    )
    seconds = time.monotonic() - started
    if ended.returncode:
        raise SystemExit(f"sote demo ended with exit code {ended.returncode}")
    found = _read(RUN)
    took = _seconds(seconds) if weights is None else _took(seconds)
    return Answer([*goals(found), took, *details(found)], (), NOT_MEASURED)


def answer(run: Path) -> Answer:
    """Of a demo that has been run; every row says so. Raises RunFolderError: nothing was measured in it."""
    found, told = _read(run), json.loads((run / "run.json").read_text(encoding="utf-8"))
    parts = list(told["verbs"].values())
    note = f"read from {run}, begun {min(part['start'] for part in parts)}, commit {(told['commit'] or 'unknown')[:10]}"
    not_measured, rows = list(NOT_MEASURED), list(goals(found, note))
    if any(part["continued"] or not part.get("end") for part in parts):
        not_measured.append("the demo's seconds: the run that was read had been continued, or has not ended")
    else:
        rows.append(_seconds(_between(parts), f"by its run.json, without drawing and report; {note}"))
    return Answer([*rows, *details(found, note)], (), not_measured)


def goals(found: Adherence, note: str = "") -> Iterator[Row]:
    """The demo's own goals, in per cent."""
    for goal in found.goals:
        better: Any = "higher" if goal.least is not None else "lower"
        yield Row(goal.what, 100 * goal.value, "%", better, note=_joined(_bound(goal), note))


def details(found: Adherence, note: str = "") -> Iterator[Row]:
    """Each group of tags by each model, and the whole concept."""
    for group, scores in found.groups.items():
        for name in adherence_file.NAMES:
            yield _share(f"{name}: {group}", scores[name], note)
    for name in adherence_file.NAMES:
        yield _share(f"{name}: the whole concept in one painting", found.concept.score(name), note)


def _share(what: str, score: adherence_file.Score, note: str) -> Row:
    hits, total = score
    return Row(what, 100 * hits / total, "%", note=_joined(f"{hits} of {total}", note), detail=True)


def _seconds(seconds: float, note: str = "") -> Row:
    is_met = "met" if seconds <= MOST_SECONDS else "NOT MET"
    return _took(seconds, _joined(f"goal at most {MOST_SECONDS:.0f}: {is_met}", note))


def _took(seconds: float, note: str = "") -> Row:
    return Row("the demo from its start to its end", seconds, "s", "lower", note=note)


def _bound(goal: Goal) -> str:
    least = goal.least is not None
    bound = goal.least if least else goal.most
    return f"goal at {'least' if least else 'most'} {bound:.0%}: {'met' if goal.met else 'NOT MET'}"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _between(parts: list[Any]) -> float:
    """Seconds from the first start to the last end."""
    start, end = min(part["start"] for part in parts), max(part["end"] for part in parts)
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _read(run: Path) -> Adherence:
    found = adherence_file.read(RunFolder(run))
    if found is None:
        raise RunFolderError(f"{run}: there is no {adherence_file.FILE}; only a whole `sote demo` writes it")
    return found


if __name__ == "__main__":
    main()
