"""A file of the run folder that one process leaves for another to see: the stop file, a worker's error.

In a local folder it is looked for at every question. At a URI a thread looks every few seconds, so that a question
costs a step nothing; a look that fails is the network's trouble, and the next one tells.

Kind: pure, but for files.
"""

import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from sote.cluster import remote
from sote.cluster.errors import Unreachable

SECONDS_BETWEEN_LOOKS = 3.0

log = logging.getLogger(__name__)


class Sign:
    """Whether the file at `path` is there. `close` ends the thread, if there is one."""

    def __init__(self, path: Path, *, seconds: float = SECONDS_BETWEEN_LOOKS) -> None:
        self.path, self.seconds = path, seconds
        self._seen, self._over = threading.Event(), threading.Event()
        if remote.uri(path) is not None:
            threading.Thread(target=self._look_on, name=f"looks for {path.name}", daemon=True).start()

    def is_there(self) -> bool:
        """At a URI: whether the last look saw it."""
        return self._seen.is_set() if remote.uri(self.path) is not None else self.path.exists()

    def is_there_now(self) -> bool:
        """As `is_there`, but looked for at this moment. Raises Unreachable."""
        return remote.exists(self.path)

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _look_on(self) -> None:
        while not self._over.wait(self.seconds):
            try:
                is_there = remote.exists(self.path)
            except Unreachable as error:
                log.warning("not looked for file=%s reason=%s", self.path.name, error)
                continue
            if is_there:
                self._seen.set()
            else:
                self._seen.clear()
