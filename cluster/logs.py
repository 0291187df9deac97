"""Log set-up, progress for people, and `metrics.jsonl` for plots.

On a terminal, progress is a rich bar on standard error; elsewhere it is a line every few seconds, so that a log file
shows it too. Metrics are one JSON object a line, appended and flushed at once.

Kind: pure, but for files and standard error.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0
Advance = Callable[[int], None]


def setup() -> None:
    """Set up logging of this process: our own events from INFO up, others from ERROR up. Called by the door only."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", handlers=[_Handler()], force=True)
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("sote").setLevel(logging.WARNING if sys.stderr.isatty() else logging.INFO)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment: a session may put it elsewhere for a while."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """`sys.stderr` is the only stream."""


@contextlib.contextmanager
def progress(what: str, total: int, *, unit: str = "rows") -> Iterator[Advance]:
    """Show how far `what` is of `total` units; yields the function that says that n more are done."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    lines = _Lines(what, total, unit)
    yield lines.advance
    lines.close()


class _Lines:
    """Progress as plain lines, at most one every few seconds and one at the end."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        moment = time.monotonic()
        if moment - self.last >= SECONDS_BETWEEN_LINES and self.done < self.total:
            self.last = moment
            left = (moment - self.start) / max(self.done, 1) * (self.total - self.done)
            self._say(f"{left:.0f} s left")

    def close(self) -> None:
        self._say(f"took {time.monotonic() - self.start:.1f} s")

    def _say(self, rest: str) -> None:
        print(f"  {self.what}: {self.done}/{self.total} {self.unit}, {rest}", file=sys.stderr, flush=True)


class Metrics:
    """Appends to a `metrics.jsonl`: one JSON object a line, each with `time` (Unix seconds)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            whole = path.read_bytes().rpartition(b"\n")[0]
            os.truncate(path, len(whole) + 1 if whole else 0)  # a kill cut the last line

    def write(self, **values: Any) -> None:
        """Append one line. Values are JSON values; names carry their unit."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3)} | values) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut by a kill is left out. No file gives no lines."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise
    return found
