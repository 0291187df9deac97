"""What is on disk of the jobs: a folder each, so that nothing is lost when a process dies.

    RUN/jobs/<id>/job.json        state, times, visitor, owner, webhook; changed under a lock, by its owner alone
    RUN/jobs/<id>/request.json    the request as asked, its seed fixed
    RUN/jobs/<id>/result.json     the answer, once it is there
    RUN/jobs/<id>/progress.<owner>   the last step and preview, for other servers
    RUN/jobs/<id>/cancel          somebody wants it cancelled
    RUN/jobs/owners/<owner>       touched every 2 s by each server that is alive

Kind: pure, but for files.
"""

import base64
import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sote.serve import disk
from sote.serve.keys import Limits
from sote.serve.schema import GenerateRequest
from sote.serve.settings import Progress

log = logging.getLogger(__name__)

State = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"]  # the first three are fal's words
ENDED: Final[tuple[State, ...]] = ("COMPLETED", "FAILED", "CANCELLED")
ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
DEAD_SECONDS = 10.0  # without a touch: five were missed
SWEPT_AT_ONCE = 500  # a busy disk takes 10 ms for each
LEFT_SECONDS = 3600.0  # until what nobody can use is removed


class Failure(BaseModel):
    """Why a job failed: the HTTP status that the request would have had by itself, and the words."""

    status: int
    message: str
    detail: list[dict[str, Any]] = []


class Hook(BaseModel):
    """Who is told when the job ends, and how that goes."""

    model_config = ConfigDict(frozen=True)

    url: str
    secret: str
    state: Literal["waiting", "delivered", "failed"] = "waiting"
    tries: int = 0
    error: str | None = None


class Record(BaseModel):
    """A job as it stands in job.json. Times are seconds since 1970.

    `visitor`, `limits` and `request_id`: who asked, what their key allowed then, and under which id it was logged.
    `attempts`: how often painting was begun by servers that then died, or lost their models, the present one included.
    `base_url`: the server's address as its visitor wrote it. `images`: names of pictures kept for it.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    state: State = "IN_QUEUE"
    visitor: str
    limits: Limits | None = None
    request_id: str = ""
    created: float
    started: float | None = None
    finished: float | None = None
    expires: float | None = None
    owner: str | None = None
    attempts: int = 0
    base_url: str
    images: tuple[str, ...] = ()
    failure: Failure | None = None
    webhook: Hook | None = None

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED

    @property
    def is_open(self) -> bool:
        """Whether a server has something to do for it: to paint, or to tell its end."""
        return not self.is_ended or (self.webhook is not None and self.webhook.state == "waiting")

    @property
    def place(self) -> tuple[float, str]:
        """Its place in the order of arrival."""
        return self.created, self.id


@dataclass(frozen=True)
class JobFiles:
    """All jobs in `folder`. Every method waits for the disk: call them in a thread. Raises OSError as it comes."""

    folder: Path
    now: Callable[[], float] = time.time
    # Records as last read, by id, with what changes when the file does
    known: dict[str, tuple[tuple[int, int], Record]] = field(default_factory=dict)

    def create(self, record: Record, request: GenerateRequest) -> None:
        """Put a new job there, whole or not at all. Raises DiskFull or RunFailed where it cannot be written."""
        new = self.folder / f".new-{record.id}"
        with disk.in_words("the job"):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            new.mkdir(mode=0o700)
            try:
                asked = request.model_dump_json(exclude_unset=True, exclude={"webhook_url"})
                disk.write(new / "request.json", asked.encode())
                disk.write(new / "job.json", record.model_dump_json().encode())
                new.replace(self.folder / record.id)
            except OSError:
                shutil.rmtree(new, ignore_errors=True)
                raise

    def ids(self) -> list[str]:
        """The ids of all jobs that are there."""
        try:
            with os.scandir(self.folder) as entries:
                return [entry.name for entry in entries if ID.fullmatch(entry.name)]
        except FileNotFoundError:
            return []

    def record(self, id: str) -> Record | None:
        """The job, or None for what is no id, is not there, or cannot be read (which is logged)."""
        if not ID.fullmatch(id):
            return None
        path = self.folder / id / "job.json"
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            kept = self.known.get(id)
            if kept and kept[0] == stamp:
                return kept[1]
            record = Record.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            self.known.pop(id, None)
            return None
        except ValidationError as error:
            log.error("job unreadable id=%s problems=%d", id, error.error_count())
            return None
        self.known[id] = (stamp, record)
        return record

    def records(self) -> list[Record]:
        """All jobs, in the order of their arrival."""
        found = [record for id in self.ids() if (record := self._record_again(id))]
        return sorted(found, key=lambda record: record.place)

    def request(self, id: str) -> GenerateRequest:
        """What was asked for. Raises FileNotFoundError when the job is gone."""
        return GenerateRequest.model_validate_json((self.folder / id / "request.json").read_bytes())

    def change(self, record: Record, *, owner: str, answer: bytes | None = None) -> bool:
        """Put `record`, and its `answer` (JSON), on disk; False: the job is gone, or another owner has it now.

        Raises DiskFull or RunFailed where it cannot be written.
        """
        with self._held(record.id) as found:
            if found is None or found.owner != owner:
                return False
            with disk.in_words("the job"):
                if answer is not None:
                    disk.write(self.folder / record.id / "result.json", answer)
                self._write(record)
            return True

    def adopt(self, id: str, *, owner: str) -> Record | None:
        """Take an open job that nobody else alive has; None: somebody has it, or there is nothing left to do."""
        with self._held(id) as record:
            if record is None or not record.is_open or self._is_others(record, owner):
                return None
            mine = record.model_copy(update={"owner": owner})
            self._write(mine)
            return mine

    def orphans(self, *, owner: str) -> list[Record]:
        """Open jobs that nobody alive has but `owner`, in the order of their arrival."""
        return [each for each in self.records() if each.is_open and not self._is_others(each, owner)]

    def result(self, id: str) -> bytes | None:
        """The answer, JSON, if it is there."""
        try:
            return (self.folder / id / "result.json").read_bytes()
        except FileNotFoundError:
            return None

    def ask_to_cancel(self, id: str) -> None:
        """Leave word for whoever has the job; nothing where it is gone."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / id / "cancel").touch(disk.MODE)

    def is_asked_to_cancel(self, id: str) -> bool:
        return (self.folder / id / "cancel").exists()

    def write_progress(self, id: str, progress: Progress, *, owner: str) -> None:
        """Let other servers see how far it is; nothing where the job is gone."""
        preview = base64.b64encode(progress.preview).decode() if progress.preview else None
        facts = {"stage": progress.stage, "step": progress.step, "steps": progress.steps, "preview": preview}
        with contextlib.suppress(FileNotFoundError):
            disk.replace(self.folder / id / f"progress.{owner}", json.dumps(facts).encode())

    def progress(self, record: Record) -> Progress | None:
        """How far its owner said it is."""
        try:
            facts = json.loads((self.folder / record.id / f"progress.{record.owner}").read_bytes())
        except FileNotFoundError:
            return None
        preview = base64.b64decode(facts["preview"]) if facts["preview"] else None
        return Progress(facts["stage"], facts["step"], facts["steps"], preview)

    def remove(self, id: str) -> bool:
        """Remove all that is there of a job, at once or not at all; False where another server was faster."""
        away = self.folder / f".old-{id}-{secrets.token_hex(4)}"
        with self._held(id):
            try:
                (self.folder / id).replace(away)
            except FileNotFoundError:
                return False
        self.known.pop(id, None)
        shutil.rmtree(away, ignore_errors=True)
        return True

    def sweep(self) -> list[Record]:
        """Remove jobs that are over their time, at most SWEPT_AT_ONCE, and what servers that died left half done;
        returns the jobs."""
        found = self.records()
        for path in [*self.folder.glob(".new-*"), *self.folder.glob(".old-*")]:
            if self._age(path) > LEFT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / "owners").glob("*"):
            if self._age(path) > LEFT_SECONDS:
                path.unlink(missing_ok=True)
        for id in set(self.ids()) - {record.id for record in found}:  # without a job.json that can be read
            if self._age(self.folder / id) > LEFT_SECONDS:
                self.remove(id)
        over = [each for each in found if each.expires is not None and each.expires <= self.now()]
        return [record for record in over[:SWEPT_AT_ONCE] if self.remove(record.id)]

    def beat(self, owner: str) -> None:
        """Say that `owner` is alive."""
        path = self.folder / "owners" / owner
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(disk.MODE)
        os.utime(path, (self.now(), self.now()))

    def leave(self, owner: str) -> None:
        """Say that `owner` is no more."""
        (self.folder / "owners" / owner).unlink(missing_ok=True)

    def is_alive(self, owner: str | None) -> bool:
        """Whether `owner` was heard of lately; None is nobody."""
        return owner is not None and self._age(self.folder / "owners" / owner) < DEAD_SECONDS

    def _is_others(self, record: Record, owner: str) -> bool:
        return record.owner != owner and self.is_alive(record.owner)

    def _age(self, path: Path) -> float:
        """Seconds since the last touch; without end for what is not there."""
        try:
            return self.now() - path.stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def _record_again(self, id: str) -> Record | None:
        """As `record`, without a look at the disk for what changes no more: thousands may be kept."""
        kept = self.known.get(id)
        return kept[1] if kept and not kept[1].is_open else self.record(id)

    @contextlib.contextmanager
    def _held(self, id: str) -> Iterator[Record | None]:
        """The job, locked against all other servers and threads; None where it is gone."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(disk.locked(self.folder / id))
            except FileNotFoundError:
                yield None
                return
            yield self.record(id)

    def _write(self, record: Record) -> None:
        disk.write(self.folder / record.id / "job.json", record.model_dump_json().encode())
