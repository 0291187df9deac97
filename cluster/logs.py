"""Log set-up, progress for people, and `metrics.jsonl` for plots.

On a terminal, progress is a rich bar on standard error; elsewhere it is a line every few seconds, so that a log file
shows it too. Events are lines for people there, and JSON elsewhere (jsonlines.py); a run keeps its warnings and errors
in events.jsonl. Metrics are one JSON object a line, appended and flushed at once (at a URI: parts.py).

Kind: pure, but for files and standard error.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sote.cluster import gauges, jsonlines, parts, remote
from sote.cluster.errors import Stopped
from sote.cluster.jsonlines import Who

SECONDS_BETWEEN_LINES = 5.0
REASONS_SHOWN = 3
STARTED, ENDED, STOPPED = "started", "ended", "stopped"  # events of every run
OURS = "sote"  # the root of our loggers
Reasons = Mapping[str, int]
log = logging.getLogger(__name__)


class Advance(Protocol):
    """Says that `count` units more are done, how many of them failed for which reason, and what else is to be shown."""

    def __call__(self, count: int, reasons: Reasons | None = None, *, note: str = "") -> None: ...


def setup() -> None:
    """Set up logging of this process: our own events from INFO up, others from ERROR up. Called by the door only."""
    handler, for_people = _Handler(), sys.stderr.isatty()
    if not for_people:
        handler.setFormatter(jsonlines.Lines())
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", handlers=[handler], force=True)
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger(OURS).setLevel(logging.WARNING if for_people else logging.INFO)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment: a session may put it elsewhere for a while."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """`sys.stderr` is the only stream."""


@contextlib.contextmanager
def events(path: Path, who: Who) -> Iterator[None]:
    """Keep warnings and errors of this process in the file `path` while the block runs, with a line for its start and
    one for its end; and say in all events whose they are."""
    kept = Metrics(path)
    kept.write(level="info", event=STARTED, **{name: value for name, value in asdict(who).items() if value is not None})
    handler, root = _Keeper(kept), logging.getLogger()
    root.addHandler(handler)
    with jsonlines.being(who):
        try:
            yield
        except BaseException as error:
            _keep_end(kept, who, error)
            raise
        else:
            _keep_end(kept, who, None)
        finally:
            root.removeHandler(handler)


class _Keeper(logging.Handler):
    """Keeps our warnings, and everyone's errors."""

    def __init__(self, file: "Metrics") -> None:
        super().__init__(logging.WARNING)
        self.file = file

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.name.partition(".")[0] == OURS

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.file.write(**jsonlines.fields(record))
        except OSError:
            self.handleError(record)


def _keep_end(kept: "Metrics", who: Who, error: BaseException | None) -> None:
    """A stop that was asked for is no error. Where the line cannot be kept, what ended the run matters more."""
    asked = isinstance(error, Stopped | KeyboardInterrupt)
    said = {"verb": who.verb} | ({} if who.job is None else {"job": who.job})
    said |= {} if error is None else {"error": f"{type(error).__name__}: {error}"}
    level = "info" if error is None or asked else "error"
    try:
        kept.write(level=level, event=STOPPED if asked else ENDED, **said)
    except OSError as refused:
        log.warning("end not kept file=%s error=%s", kept.path, refused.strerror)


@contextlib.contextmanager
def progress(what: str, total: int, *, unit: str = "rows") -> Iterator[Advance]:
    """Show how far `what` is of `total` units, how fast, how long still, and what failed and why.

    Yields the function that says that n more are done, and how many of them failed for which reason.
    """
    console = Console(stderr=True)
    tally = Tally(what, total, unit)
    tally.export()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rest]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, rest="")

            def show(count: int, reasons: Reasons | None = None, *, note: str = "") -> None:
                tally.add(count, reasons, note)
                bar.update(task, advance=count, rest=tally.rest())

            yield show
        return
    lines = _Lines(tally)
    yield lines.advance
    lines.close()


@dataclass
class Tally:
    """What is done of a piece of work since it began, and what of that failed."""

    what: str
    total: int
    unit: str
    done: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    start: float = field(default_factory=time.monotonic)
    note: str = ""
    first: tuple[int, float] | None = None  # what was done when the first of it was, and when

    def add(self, count: int, reasons: Reasons | None, note: str = "") -> None:
        self.done += count
        self.first = self.first or (self.done, time.monotonic())
        self.reasons.update(reasons or {})
        self.note = note
        if count:
            self.export()

    def export(self) -> None:
        """Let Prometheus see how far it is, inside a run."""
        if (who := jsonlines.current()) is not None:
            gauges.moved(who.run, verb=who.verb, what=self.what, done=self.done, total=self.total)

    @property
    def rate(self) -> float:
        """Units a second since the first were done, for getting ready is no measure of the rest; until there are more,
        since the start. Who knows when the work began says that nothing (0) is done yet."""
        done, start = self.first if self.first is not None and self.first[0] < self.done else (0, self.start)
        return (self.done - done) / max(time.monotonic() - start, 1e-3)

    def rest(self) -> str:
        """Rate, time left, what else was said, and the most frequent reasons of failure."""
        left = (self.total - self.done) / self.rate if self.done else None
        parts = [f"{self.rate:,.1f} {self.unit}/s" if self.rate >= 1 else f"{self.rate:.2g} {self.unit}/s"]
        parts += [f"{_clock(left)} left"] if left is not None and self.done < self.total else []
        return ", ".join(parts + ([self.note] if self.note else []) + self.failures())

    def failures(self) -> list[str]:
        if not self.reasons:
            return []
        often = self.reasons.most_common(REASONS_SHOWN)
        more = f", and {len(self.reasons) - len(often)} more reasons" if len(self.reasons) > len(often) else ""
        return [f"{self.reasons.total()} failed ({'; '.join(f'{reason} {count}' for reason, count in often)}{more})"]


class _Lines:
    """Progress as plain lines, at most one every few seconds and one at the end."""

    def __init__(self, tally: Tally) -> None:
        self.tally, self.last = tally, tally.start

    def advance(self, count: int, reasons: Reasons | None = None, *, note: str = "") -> None:
        self.tally.add(count, reasons, note)
        moment = time.monotonic()
        if count and moment - self.last >= SECONDS_BETWEEN_LINES and self.tally.done < self.tally.total:
            self.last = moment
            self._say(self.tally.rest())

    def close(self) -> None:
        took = f"took {time.monotonic() - self.tally.start:.1f} s"
        self._say(", ".join([took, *self.tally.failures()]))

    def _say(self, rest: str) -> None:
        tally = self.tally
        print(f"  {tally.what}: {tally.done}/{tally.total} {tally.unit}, {rest}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    """12 s, 3 min, 2 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Metrics:
    """Appends to a `metrics.jsonl`: one JSON object a line, each with `time` (Unix seconds). Ray exports them, too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if remote.uri(path) is not None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and _cut(path):
            whole = path.read_bytes().rpartition(b"\n")[0]
            os.truncate(path, len(whole) + 1 if whole else 0)

    def write(self, **values: Any) -> None:
        """Append one line. Values are JSON values; names carry their unit."""
        line = json.dumps({"time": round(time.time(), 3)} | values)
        if remote.uri(self.path) is not None:
            parts.add(self.path, line)
        else:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        gauges.export(self.path.absolute().parent.name, values)


def _cut(path: Path) -> bool:
    """Whether a kill cut the last line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return size > 0 and file.read(1) != b"\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut by a kill is left out. No file gives no lines."""
    return [json.loads(line) for line in parts.lines(path)]
