"""A model call that never returns: the process that it hangs in is ended, and the piece is tried again.

    Watchdog (in the actor)  -- begins, ended, alive -->  watchdog_process  ends the actor when it hangs

What hangs in a driver or is stopped cannot end itself, and a Ray actor that hangs is alive for Ray. So a small process
beside each actor listens to it: it ends the actor when one call takes longer than `work.hang_timeout_seconds`, or when
nothing is heard of it for so long. Ray starts the actor again and gives it the same piece; results are the same, since
a piece depends on nothing but its rows. Loading and compiling count nothing: a Watchdog is made when the models are
there. Each hang leaves a note in `RUN/.hangs/`; a piece that has TRIES of them ends the run.

Kind: pure, but for processes and files.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sote.cluster import remote
from sote.cluster.errors import RunFailed
from sote.data.watchdog_process import ALIVE

if TYPE_CHECKING:
    from sote.data.shards import Work

TRIES = 3  # of a piece that hangs: a device may hang by itself, but not three of them at the same rows
ALIVE_SECONDS = 10.0  # between two signs of life; a quarter of the limit where that is less
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long one call of a stage's models may take, and the folder in which hangs are noted."""

    stage: str
    seconds: float
    notes: Path

    def hangs(self, key: str) -> int:
        """How often the piece `key` was noted."""
        return sum(name.startswith(f"{key}.") for name in remote.names(self.notes))


@contextlib.contextmanager
def patience(work: "Work", stage: str) -> Iterator[Patience]:
    """What the actors of a pass are given. Its hangs are written to the metrics at the end, as lines of kind "hang"."""
    part = work.recipe.work
    pass_name = f"{stage}-{time.time_ns()}"  # the hangs of an earlier command are not held against this one
    given = Patience(stage, part.hang_timeout_seconds, work.folder.root / ".hangs" / pass_name)
    try:
        yield given
    finally:
        for name in remote.names(given.notes):
            note = remote.fetch(given.notes / name).read_text(encoding="utf-8")
            work.metrics.write(kind="hang", **json.loads(note))


class Watchdog:
    """Watches the calls of the actor that makes it, one call at a time."""

    def __init__(self, given: Patience) -> None:
        self._patience, self._is_new = given, True
        facts = {"owner": os.getpid(), "seconds": given.seconds, "stage": given.stage}
        self._facts = json.dumps(facts | {"notes": remote.named(given.notes)})
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._watcher = _started(self._facts)
        threading.Thread(target=self._live, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def over(self, shard: int, rows: str, *, key: str) -> Iterator[None]:
        """The block is one call of a model, for these rows of a shard. `key` names the piece among all of the stage.

        Raises RunFailed where the piece has hung TRIES times; only a new process can have been given such a one.
        """
        if self._is_new and self._patience.hangs(key) >= TRIES:
            raise RunFailed(
                f"{self._patience.stage}: the models hung {TRIES} times, for more than {self._patience.seconds:g} s "
                f"each (work.hang_timeout_seconds), at shard {shard}, {rows}; look at these pictures and at the "
                "devices, then run the same command again"
            )
        self._is_new = False
        self._tell({"shard": shard, "rows": rows, "key": key})
        try:
            yield
        finally:
            self._tell(None)

    def each(self, items: Iterable[T], shard: int) -> Iterator[T]:
        """The items, which a model computes as they are asked for; each is a call, the whole shard one piece."""
        coming = iter(items)
        for at in itertools.count(1):
            with self.over(shard, f"picture {at} of those that are read", key=f"{shard:05d}"):
                try:
                    found = next(coming)
                except StopIteration:
                    return
            yield found

    @property
    def watcher(self) -> int:
        """The process that watches."""
        return self._watcher.pid

    def close(self) -> None:
        """Watch no longer. The end of this process closes as well."""
        self._closed.set()
        with self._lock:
            _ended(self._watcher)

    def _live(self) -> None:
        while not self._closed.wait(min(ALIVE_SECONDS, self._patience.seconds / 4)):
            self._tell(ALIVE)

    def _tell(self, what: Any) -> None:
        line = json.dumps(what).encode() + b"\n"
        with self._lock:
            if self._closed.is_set():
                return
            try:
                _write(self._watcher, line)
            except BrokenPipeError:  # the watcher was ended, by the system perhaps
                _ended(self._watcher)
                self._watcher = _started(self._facts)
                _write(self._watcher, line)


Watcher = subprocess.Popen[bytes]


def _started(facts: str) -> Watcher:
    """The watcher, which ends when this process holds its input no more, so with this process.

    It has a session of its own: what ends this process with its group leaves the one that is to note why.
    """
    command = [sys.executable, "-m", "sote.data.watchdog_process", facts]
    return subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)


def _write(watcher: Watcher, line: bytes) -> None:
    if watcher.stdin is not None:
        watcher.stdin.write(line)


def _ended(watcher: Watcher) -> None:
    if watcher.stdin is not None:
        watcher.stdin.close()
    watcher.wait()
