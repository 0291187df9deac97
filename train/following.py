"""What the driver shows of a training: a bar with loss, speed and time left, and a line for what is worth one.

The workers write metrics.jsonl; the driver reads what is new in it.

Kind: pure, but for files and standard error.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sote.cluster import logs
from sote.cluster.logs import Advance
from sote.cluster.page import counted, number

Line = dict[str, Any]
SMOOTHING = 0.9  # weight on the past of the loss that is shown: a mean over about ten steps
MOST_NAMED_IDS = 3
ID_SHOWN = 10  # hex digits


class Follower:
    """Shows on a progress bar what appears in a metrics.jsonl from now on.

    `done` steps are in the checkpoint that the run starts from. Steps made again after a restart count once.
    """

    def __init__(self, path: Path, *, done: int) -> None:
        self.path, self.highest, self.last, self.saved = path, done, done, done
        self.starts = 0  # of the workers, since this command began
        self.loss: float | None = None
        self.note = ""
        logs.Metrics(path)  # takes a line away that a kill has cut
        self.place = path.stat().st_size if path.exists() else 0
        self.rest = b""

    def look(self, advance: Advance) -> list[Line]:
        """Read the new lines, show them, and return those of kind "snapshot"."""
        snapshots = []
        for line in self._new():
            if line["kind"] == "step":
                self._step(line, advance)
            elif line["kind"] == "start":
                self._start(line)
                advance(0)  # from now on steps are made: what came before is no measure of the rest
            elif line["kind"] == "checkpoint":
                self.saved = int(line["step"])
            elif line["kind"] == "snapshot":
                snapshots.append(line)
        return snapshots

    def _new(self) -> Iterator[Line]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.place)
            lines = (self.rest + file.read()).split(b"\n")
            self.place = file.tell()
        self.rest = lines.pop()
        yield from (json.loads(line) for line in lines if line)

    def _step(self, line: Line, advance: Advance) -> None:
        self.last = int(line["step"])
        reason = line.get("skipped")
        if reason:
            say(f"step {number(self.last)} skipped: {reason}{_ids(line)}")
        else:
            self._show(line)
        if self.last > self.highest:
            advance(self.last - self.highest, {str(reason): 1} if reason else None, note=self.note)
            self.highest = self.last

    def _show(self, line: Line) -> None:
        loss = line.get("loss")
        if loss is not None and math.isfinite(loss):
            self.loss = float(loss) if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * float(loss)
        words = [f"loss {self.loss:.4f}"] if self.loss is not None else []
        speed = line.get("images_per_second")
        self.note = ", ".join(words + ([f"{float(speed):.3g} images/s"] if speed is not None else []))

    def _start(self, line: Line) -> None:
        self.starts += 1
        self.saved = self.last = int(line.get("resumed_from") or 0)
        if self.starts > 1:
            say(f"workers started again: {counted(int(line['workers']), 'worker')}, from step {number(self.saved)}")


def say(words: str) -> None:
    """A line above the bar."""
    print(f"  train: {words}", file=sys.stderr, flush=True)


def _ids(line: Line) -> str:
    ids = [str(each)[:ID_SHOWN] for each in line.get("skipped_ids") or ()]
    more = f" and {len(ids) - MOST_NAMED_IDS} more" if len(ids) > MOST_NAMED_IDS else ""
    return f" (images {', '.join(ids[:MOST_NAMED_IDS])}{more})" if ids else ""
