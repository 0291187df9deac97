"""A file that is appended to here, and brought to its URI now and then by a thread: object stores know no append.

What was written since the last time is lost with a process that is killed. A file that grows large is brought the more
seldom, so that this takes no more than a small share of the time.

Kind: pure, but for files.
"""

import logging
import os
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sote.cluster import remote
from sote.cluster.errors import Unreachable

SECONDS: Final = 30.0
REST: Final = 20  # times what bringing it took last, at least, before it is brought again

log = logging.getLogger(__name__)


class Growing:
    """Brings the file at `path` from now on until `close`, which brings it once more. Of a local file, nothing."""

    def __init__(self, path: Path, *, seconds: float = SECONDS) -> None:
        self.path, self.seconds = path, seconds
        self._there = (0, 0)  # size and time of change, as it was brought
        self._over, self._bringing = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        if remote.uri(path) is not None:
            self._thread = threading.Thread(target=self._go_on, name=f"brings {path.name}", daemon=True)
            self._thread.start()

    def bring(self) -> None:
        """Bring it now, if it has changed. Raises Unreachable."""
        if remote.uri(self.path) is None:
            return
        with self._bringing:
            try:
                found = self.path.stat()
            except FileNotFoundError:
                return
            state = found.st_size, found.st_mtime_ns
            if state == self._there:
                return
            copy = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            try:
                shutil.copyfile(self.path, copy)  # it may grow meanwhile
                remote.push(self.path, source=copy)
            finally:
                copy.unlink(missing_ok=True)
            self._there = state

    def close(self, *, waits: bool = True) -> None:
        """Have it brought a last time, and wait for that; where it fails, it is said in the log."""
        self._over.set()
        if self._thread is not None and waits:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _go_on(self) -> None:
        rest = self.seconds
        while not self._over.wait(rest):
            began = time.monotonic()
            self._try()
            rest = max(self.seconds, REST * (time.monotonic() - began))
        self._try()

    def _try(self) -> None:
        try:
            self.bring()
        except Unreachable as error:
            log.warning("not brought file=%s reason=%s", self.path.name, error)
