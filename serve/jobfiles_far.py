"""The jobs of a run folder at a URI, so that a server on another node takes them over (jobfiles.py).

A store has no locks, no folders to rename and no times of one's own, so here
    RUN/jobs/<id>/job.json        counts from the moment it is there: it comes last and goes first
    RUN/jobs/<id>/claim           whoever creates it may take the job over; one alone can
    RUN/jobs/cancels/<id>         somebody wants it cancelled
    RUN/jobs/owners/<owner>       when the server last said that it lives, in seconds since 1970
Servers look at each other's jobs every few seconds instead of twice a second, and are shown no progress. A server that
is taken for dead while it only cannot reach the store may write once more in the moment it is replaced: the job is then
painted twice, from the same seeds. The clocks of the nodes must agree to some seconds.

Kind: pure, but for files.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sote.cluster import remote, store
from sote.serve import disk
from sote.serve.jobfiles import ID, SWEPT_AT_ONCE, JobFiles, Record
from sote.serve.schema import GenerateRequest
from sote.serve.settings import Progress

BEAT_SECONDS: Final = 5.0
DEAD_SECONDS: Final = 30.0  # without a beat: five were missed
CANCEL_SECONDS: Final = 5.0  # between two looks for cancel marks
ORPHAN_SECONDS: Final = 10.0  # between two looks for jobs of the dead
CLAIM, CANCELS, OWNERS = "claim", "cancels", "owners"


@dataclass
class Seen:
    """What was looked at lately, and when on the monotonic clock."""

    cancels: frozenset[str] = frozenset()
    cancels_at: float = float("-inf")
    orphans_at: float = float("-inf")
    beat_at: float = float("-inf")
    beats: dict[str, float] = field(default_factory=dict)  # of this process, by owner, on the clock of the jobs


@dataclass(frozen=True)
class FarJobFiles(JobFiles):
    """All jobs in `folder`, a path in the mirror. Raises Unreachable as it comes."""

    seen: Seen = field(default_factory=Seen)

    def create(self, record: Record, request: GenerateRequest) -> None:
        with disk.in_words("the job"):
            asked = request.model_dump_json(exclude_unset=True, exclude={"webhook_url"})
            self._local(record.id)
            disk.write(self.folder / record.id / "request.json", asked.encode())
            disk.write(self.folder / record.id / "job.json", record.model_dump_json().encode())

    def ids(self) -> list[str]:
        return [name for name in remote.names(self.folder) if ID.fullmatch(name)]

    def record(self, id: str) -> Record | None:
        if not ID.fullmatch(id):
            return None
        with contextlib.suppress(FileNotFoundError):
            remote.fetch(self.folder / id / "job.json")
        return super().record(id)

    def records(self) -> list[Record]:
        there = remote.fetch_tree(self.folder, "*/job.json")
        found = [record for path in there if (record := super(FarJobFiles, self).record(path.parent.name))]
        return sorted(found, key=lambda record: record.place)

    def request(self, id: str) -> GenerateRequest:
        remote.fetch(self.folder / id / "request.json")
        return super().request(id)

    def adopt(self, id: str, *, owner: str) -> Record | None:
        claim = self.folder / id / CLAIM
        where = remote.named(claim)
        if store.create(where, owner.encode()) is None:
            with contextlib.suppress(FileNotFoundError):
                if not self.is_alive(store.read(where).decode()):  # it died in the middle of it: the next look takes it
                    remote.remove(claim)
            return None
        try:
            return super().adopt(id, owner=owner)
        finally:
            remote.remove(claim)

    def orphans(self, *, owner: str) -> list[Record]:
        if not self._is_time("orphans_at", ORPHAN_SECONDS):
            return []
        alive: dict[str | None, bool] = {owner: False}

        def is_others(record: Record) -> bool:
            if record.owner not in alive:
                alive[record.owner] = self.is_alive(record.owner)
            return alive[record.owner]

        return [each for each in self.records() if each.is_open and not is_others(each)]

    def result(self, id: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            remote.fetch(self.folder / id / "result.json")
        return super().result(id)

    def ask_to_cancel(self, id: str) -> None:
        remote.put(self.folder / CANCELS / id, b"cancel")

    def is_asked_to_cancel(self, id: str) -> bool:
        if self._is_time("cancels_at", CANCEL_SECONDS):
            self.seen.cancels = frozenset(remote.names(self.folder / CANCELS))
        return id in self.seen.cancels

    def write_progress(self, id: str, progress: Progress, *, owner: str) -> None:
        """Steps come faster than a store is written to: other servers see none."""

    def progress(self, record: Record) -> Progress | None:  # noqa: ARG002  see write_progress
        return None

    def remove(self, id: str) -> bool:
        with self._held(id) as record:
            if record is None:
                return False
            remote.remove(self.folder / id / "job.json", self.folder / CANCELS / id)
            remote.remove(self.folder / id)
        self.known.pop(id, None)
        return True

    def sweep(self) -> list[Record]:
        found = self.records()
        dead = [name for name in remote.names(self.folder / OWNERS) if not self.is_alive(name)]
        remote.remove(*(self.folder / OWNERS / name for name in dead))
        over = [each for each in found if each.expires is not None and each.expires <= self.now()]
        return [record for record in over[:SWEPT_AT_ONCE] if self.remove(record.id)]

    def beat(self, owner: str) -> None:
        if owner in self.seen.beats and not self._is_time("beat_at", BEAT_SECONDS):
            return
        now = self.now()
        remote.put(self.folder / OWNERS / owner, repr(now).encode())
        self.seen.beats[owner], self.seen.beat_at = now, time.monotonic()

    def leave(self, owner: str) -> None:
        self.seen.beats.pop(owner, None)
        remote.remove(self.folder / OWNERS / owner)

    def is_alive(self, owner: str | None) -> bool:
        if owner is None:
            return False
        told = self.seen.beats.get(owner)
        if told is None:
            try:
                told = float(store.read(remote.named(self.folder / OWNERS / owner)))
            except (FileNotFoundError, ValueError):
                return False
        return self.now() - told < DEAD_SECONDS

    def _is_time(self, what: str, seconds: float) -> bool:
        """Whether so long has passed since this was last true."""
        now = time.monotonic()
        if now - getattr(self.seen, what) < seconds:
            return False
        setattr(self.seen, what, now)
        return True

    def _local(self, id: str) -> Path:
        """The folder of a job here, for its owner's eyes only."""
        path = self.folder / id
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    @contextlib.contextmanager
    def _held(self, id: str) -> Iterator[Record | None]:
        """Locked against other threads; what another node does meanwhile, the claim and the owner decide."""
        with disk.locked(self._local(id)):
            yield self.record(id)


def files_of(folder: Path, now: Callable[[], float]) -> JobFiles:
    """The jobs in `folder`, here or at a URI."""
    return JobFiles(folder, now) if remote.uri(folder) is None else FarJobFiles(folder, now)
