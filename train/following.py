"""What the driver shows of a training: a bar with loss, speed and time left, and a line for what is worth one.

The workers write metrics.jsonl; the driver reads what is new in it. At a URI they bring their parts of it now and then,
and the driver looks as seldom.

Kind: pure, but for files and standard error.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sote.cluster import logs, remote
from sote.cluster.errors import Unreachable
from sote.cluster.logs import Advance
from sote.cluster.page import counted, number

Line = dict[str, Any]
SMOOTHING = 0.9  # weight on the past of the loss that is shown: a mean over about ten steps
MOST_NAMED_IDS = 3
ID_SHOWN = 10  # hex digits
SECONDS_BETWEEN_LOOKS = 4.0  # at a URI

log = logging.getLogger(__name__)


class Follower:
    """Shows on a progress bar what appears in a metrics.jsonl from now on.

    `done` steps are in the checkpoint that the run starts from. Steps made again after a restart count once.
    """

    def __init__(self, path: Path, *, done: int) -> None:
        self.path, self.highest, self.last, self.saved = path, done, done, done
        self.starts = 0  # of the workers, since this command began
        self.loss: float | None = None
        self.note = ""
        if remote.uri(path) is None:
            logs.Metrics(path)  # takes a line away that a kill has cut
        self.new: _File | _Parts = _File(path) if remote.uri(path) is None else _Parts(path)

    def look(self, advance: Advance, *, is_last: bool = False) -> list[Line]:
        """Read the new lines, show them, and return those of kind "snapshot". The last look sees all there are."""
        snapshots = []
        for line in self.new.now() if is_last and isinstance(self.new, _Parts) else self.new:
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


class _File:
    """The lines of a file from `start` on (None: from its end on), each once; a cut one comes when it is whole."""

    def __init__(self, path: Path, *, start: int | None = None) -> None:
        self.path, self.rest = path, b""
        self.place = start if start is not None else path.stat().st_size if path.exists() else 0

    def __iter__(self) -> Iterator[Line]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.place)
            lines = (self.rest + file.read()).split(b"\n")
            self.place = file.tell()
        self.rest = lines.pop()
        yield from (json.loads(line) for line in lines if line)


class _Parts:
    """The same of all parts of a metrics.jsonl at a URI, fetched every few seconds."""

    def __init__(self, path: Path) -> None:
        self.folder = path.with_suffix("")
        self.files = {part: _File(part) for part in self._fetched()}
        self.looked = time.monotonic()

    def __iter__(self) -> Iterator[Line]:
        if time.monotonic() - self.looked < SECONDS_BETWEEN_LOOKS:
            return iter(())
        return iter(self.now())

    def now(self) -> list[Line]:
        """What is new, by time, without waiting for the next look."""
        for part in self._fetched():
            self.files.setdefault(part, _File(part, start=0))
        self.looked = time.monotonic()
        return sorted((line for file in self.files.values() for line in file), key=lambda line: float(line["time"]))

    def _fetched(self) -> list[Path]:
        try:
            return remote.fetch_tree(self.folder, "*.jsonl")
        except Unreachable as error:  # the next look may see it
            log.warning("progress not seen reason=%s", error)
            return []


def say(words: str) -> None:
    """A line above the bar."""
    print(f"  train: {words}", file=sys.stderr, flush=True)


def _ids(line: Line) -> str:
    ids = [str(each)[:ID_SHOWN] for each in line.get("skipped_ids") or ()]
    more = f" and {len(ids) - MOST_NAMED_IDS} more" if len(ids) > MOST_NAMED_IDS else ""
    return f" (images {', '.join(ids[:MOST_NAMED_IDS])}{more})" if ids else ""
