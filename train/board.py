"""Where the figures of a run go: a line of metrics.jsonl, and the same numbers under RUN/tensorboard.

Only the first worker writes. TensorBoard's files are written here and now: tensorboardX's own writer has a thread for
it, which dies in silence on a full disk and then lets training wait for ever. In a run folder at a URI they are brought
there every minute or so.

Writes: metrics.jsonl, tensorboard/.
Kind: actor.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from sote.cluster.errors import RunFailed
from sote.cluster.growing import Growing
from sote.cluster.logs import Metrics
from sote.cluster.storage import RunFolder

FOLDER = "tensorboard"
VERSION = "brain.Event:2"  # what the first record of a file must say
FLUSH_SECONDS = 10  # TensorBoard sees a step at most so much later
BRING_SECONDS = 60.0  # and at a URI so much
NO_CURVE = {"step", "workers", "epoch", "images_seen"}  # numbers of a step that say nothing as a curve of their own


class Board:
    """The record of a run from the step after `after` on: what an earlier start drew beyond it is taken back.

    Every call raises RunFailed if the disk does not take it.
    """

    def __init__(self, folder: RunFolder, *, after: int) -> None:
        self.folder = folder.root / FOLDER
        with _told(folder.metrics):
            self.metrics = Metrics(folder.metrics)
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            drawn = self.folder / f"events.out.tfevents.{time.time():.6f}"
            self.curves = RecordWriter(str(drawn))
        self.growing = Growing(drawn, seconds=BRING_SECONDS)
        self.flushed = time.monotonic()
        self._draw(0, file_version=VERSION)
        if after:
            self._draw(after + 1, session_log=SessionLog(status=SessionLog.START))

    def line(self, kind: str, **values: Any) -> None:
        """Write a line of the metrics."""
        with _told(self.metrics.path):
            self.metrics.write(kind=kind, **values)

    def step(self, step: int, **values: Any) -> None:
        """Write the line of a step, and draw its numbers."""
        self.line("step", step=step, **values)
        drawn = {name: it for name, it in values.items() if isinstance(it, int | float) and name not in NO_CURVE}
        drawn |= {"skipped": 1.0} if values.get("skipped") is not None else {}
        self._draw(step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=it) for tag, it in drawn.items()]))

    def close(self) -> None:
        """Bring everything to disk."""
        with _told(self.folder):
            self.curves.close()
        self.growing.close()

    def _draw(self, step: int, **what: Any) -> None:
        with _told(self.folder):
            self.curves.write(Event(wall_time=time.time(), step=step, **what).SerializeToString())
            if time.monotonic() - self.flushed > FLUSH_SECONDS:
                self.curves.flush()
                self.flushed = time.monotonic()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(
            f"{path}: cannot be written ({error.strerror}); the last checkpoint is good: make room and run the same "
            f"command again"
        ) from None
