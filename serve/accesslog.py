"""The access log: one JSON object a line for each request, in RUN/access.jsonl and, when that is full, .1 to .5.

It says who asked for which route and what came of it, and never what was asked: no prompts, keys or query strings.
Probes and scrapes that went well are left out. One process writes it. In a run folder at a URI each process has files
of its own, RUN/access/<host>-<pid>-<n>.jsonl, which are brought there every half minute and stay; what was written
since then goes with a process that is killed.

Kind: pure, but for files.
"""

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from sote.cluster import remote
from sote.cluster.growing import Growing

MAX_BYTES: Final = 10_000_000
BACKUPS: Final = 5
BRING_SECONDS: Final = 30.0  # to a URI
PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})

log = logging.getLogger(__name__)


def path_in(run: Path) -> Path:
    """Where this process writes the access log of a run folder."""
    if remote.uri(run) is None:
        return run / "access.jsonl"
    return run / "access" / f"{platform.node()}-{os.getpid()}-{time.time_ns():x}.jsonl"


@dataclass(frozen=True)
class Entry:
    """One request. `route` is a template; `visitor` the name of the key; `bytes` those of the answer's body."""

    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    visitor: str
    bytes: int
    images: int


class AccessLog:
    """Appends to the log at `path`. A line that cannot be written fails no request: `lost` is called for each, and the
    program's log says so once, until a line can be written again."""

    def __init__(self, path: Path, *, lost: Callable[[], None], max_bytes: int = MAX_BYTES) -> None:
        self.path, self.lost, self.is_losing = path, lost, False
        kind = _Handler if remote.uri(path) is None else _FarHandler
        self.handler = kind(
            path, maxBytes=max_bytes, backupCount=BACKUPS, encoding="utf-8", delay=True, failed=self._failed
        )

    def write(self, entry: Entry) -> None:
        """Append a line."""
        if entry.route in PROBES and entry.status == 200:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | asdict(entry)
        text = json.dumps(line | {"seconds": round(entry.seconds, 4)})
        lost_before = self.handler.failures
        self.handler.handle(logging.makeLogRecord({"msg": text}))
        if self.handler.failures == lost_before:
            self.is_losing = False

    def close(self) -> None:
        """Close the file; a line that is written later opens it again."""
        try:
            self.handler.close()
        except OSError as error:  # what is left of a line does not fit
            self._failed(error)

    def _failed(self, error: BaseException | None) -> None:
        self.lost()
        if not self.is_losing:
            log.error("access log not written file=%s error=%r; requests go on without it", self.path.name, error)
        self.is_losing = True


class _Handler(RotatingFileHandler):
    """Tells of a line that could not be written instead of printing a traceback."""

    failures = 0

    def __init__(self, path: Path, *, failed: Callable[[BaseException | None], None], **options: object) -> None:
        self.failed = failed
        super().__init__(path, **options)  # type: ignore[arg-type]

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        self.failures += 1
        self.failed(sys.exc_info()[1])


class _FarHandler(_Handler):
    """The files of this process in the mirror: what is full is brought a last time, and the next is begun."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.growing = Growing(path, seconds=BRING_SECONDS)

    def doRollover(self) -> None:  # noqa: N802  logging's name
        if self.stream:
            self.stream.close()
            self.stream = None
        self.growing.close(waits=False)
        path = path_in(Path(self.baseFilename).parents[1])
        self.baseFilename = str(path)
        self.growing = Growing(path, seconds=BRING_SECONDS)

    def close(self) -> None:
        super().close()
        self.growing.close()
