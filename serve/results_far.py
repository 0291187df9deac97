"""Painted pictures of a run folder at a URI, so that a server on another node hands them out, too (results.py).

When a picture was kept, the store says, by its own clock. Who painted it here knows without asking.

Kind: pure, but for files.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sote.cluster import remote, store
from sote.serve.pictures import Painted
from sote.serve.results import NAME, Results

SWEEP_SECONDS: Final = 600.0  # between two looks at all that is kept there


@dataclass(frozen=True)
class FarResults(Results):
    """The pictures in `folder`, a path in the mirror. `kept`: when, by name; `swept`: when that was, monotonic."""

    kept: dict[str, float] = field(default_factory=dict)
    swept: list[float] = field(default_factory=lambda: [time.monotonic()])

    def keep(self, painted: Painted) -> str:
        name = super().keep(painted)
        self.kept[name] = self.now()
        return name

    def read(self, name: str) -> bytes | None:
        if not self.seconds_left(name):
            return None
        path = self.folder / name
        try:
            return (path if path.exists() else remote.fetch(path)).read_bytes()  # a picture never changes
        except FileNotFoundError:
            return None

    def remove(self, names: Iterable[str]) -> None:
        found = [name for name in names if NAME.fullmatch(name)]
        remote.remove(*(self.folder / name for name in found))
        for name in found:
            self.kept.pop(name, None)

    def sweep(self) -> int:
        if time.monotonic() - self.swept[0] < SWEEP_SECONDS:
            return 0
        self.swept[0] = time.monotonic()
        over = [name for name in remote.names(self.folder) if NAME.fullmatch(name) and not self.seconds_left(name)]
        self.remove(over)
        return len(over)

    def _kept(self, name: str) -> float:
        if name not in self.kept:
            filesystem, path = store.at(remote.named(self.folder / name))
            written: Any = store.tried(lambda: filesystem.modified(path), name)
            self.kept[name] = float(written.timestamp())
        return self.kept[name]


def results_of(folder: Path, keep_seconds: float, now: Callable[[], float] = time.time) -> Results:
    """The pictures in `folder`, here or at a URI."""
    kind = Results if remote.uri(folder) is None else FarResults
    return kind(folder, keep_seconds, now)
