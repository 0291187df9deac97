"""The jobs of one server in memory: what it knows of each, and the line of those that wait for their turn.

Kind: pure.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sote.serve.jobfiles import Record
from sote.serve.settings import Progress, StageName

# Of the whole work: prior to decoder is about 4 to 1 at the seed's settings
SHARES: Final[dict[StageName, tuple[float, float]]] = {"prior": (0.0, 0.8), "decoder": (0.8, 0.2)}
TOLD_FROM = 0.05  # of the work: what is left is no good guess before


@dataclass(eq=False)
class Live:
    """A job that this server has. `wish`: what is to become of it where painting is cancelled."""

    record: Record
    progress: Progress | None = None
    shown: Progress | None = None  # as it is on disk
    wish: Literal["run", "cancel", "stop"] = "run"
    is_refused: bool = False  # the desk has told it to wait at least once
    is_saved: bool = True  # False: the disk would not take its end, so it is kept here
    painting: asyncio.Task[Any] | None = None
    tending: asyncio.Task[Any] | None = None  # what works on its state now
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def touch(self) -> None:
        """Wake whoever waits for a change; who waits from now on waits for the next."""
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(frozen=True)
class Sight:
    """A job as its visitor sees it. `position`: how many are before it, while it waits."""

    record: Record
    position: int | None = None
    progress: Progress | None = None
    seconds_left: float | None = None

    @property
    def share(self) -> float:
        """How much of the work is done, 0 to 1."""
        if self.record.state == "COMPLETED":
            return 1.0
        return share_of(self.progress) if self.record.state == "IN_PROGRESS" else 0.0


class Line:
    """Jobs in the order of their arrival. All of a visitor's are passed over while the desk has told them to wait."""

    def __init__(self) -> None:
        self._waiting: list[Live] = []
        self._held: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Live]:
        return iter(list(self._waiting))

    def __contains__(self, live: Live) -> bool:
        return live in self._waiting

    def add(self, live: Live) -> None:
        """To its place by its arrival, so that one that comes back loses nothing."""
        self._waiting.append(live)
        self._waiting.sort(key=lambda each: each.record.place)

    def remove(self, live: Live) -> None:
        self._waiting.remove(live)

    def position(self, live: Live) -> int | None:
        """How many are before it; None where it does not wait."""
        return self._waiting.index(live) if live in self._waiting else None

    def take(self, now: float) -> Live | None:
        """The next whose turn it is, out of the line."""
        for live in self._waiting:
            if self._held.get(live.record.visitor, 0.0) <= now:
                self._waiting.remove(live)
                return live
        return None

    def hold(self, visitor: str, *, until: float) -> None:
        """Pass over this visitor's jobs until then."""
        self._held[visitor] = until

    def release(self, visitor: str) -> None:
        """A place of theirs is free again."""
        self._held.pop(visitor, None)


def share_of(progress: Progress | None) -> float:
    """How much of the work is done, 0 to 1."""
    if progress is None:
        return 0.0
    before, part = SHARES[progress.stage]
    return before + part * min(1.0, progress.step / max(1, progress.steps))


def seconds_left(record: Record, progress: Progress | None, *, now: float) -> float | None:
    """A guess from how long it took so far; None where there is nothing to guess from."""
    share = share_of(progress)
    if record.state != "IN_PROGRESS" or record.started is None or share < TOLD_FROM:
        return None
    return max(0.0, (now - record.started) * (1 - share) / share)
