"""The jobs that this server has: their turn, their painting, their end.

Kind: wiring.
"""

import asyncio
import functools
import logging
import secrets
from collections.abc import Coroutine
from typing import Any, Final

from sote.cluster.errors import Busy, RunFailed
from sote.serve.access import Visitor
from sote.serve.answers import failure_of
from sote.serve.desk import Desk, reason_of
from sote.serve.generated import response_of
from sote.serve.jobfiles import Failure, Hook, JobFiles, Record, State
from sote.serve.jobline import Line, Live
from sote.serve.recipe import JobsPart
from sote.serve.results import Results
from sote.serve.schema import GenerateRequest
from sote.serve.service import Painting
from sote.serve.settings import Progress, Settings
from sote.serve.webhooks import Rule, Teller, body_of

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3
LONGEST_HOLD: Final = 10.0  # seconds before a job that found the models' line full tries again
LOST_HOLD: Final = 2.0  # seconds before a job that lost its model tries again


class Keeper:
    """Paints at most `part.running` jobs at once through `desk`, the others wait in `line`; `now` is the disk's clock.

    `live` has every job that this server is to bring to its end, by id; `arriving` those that are being written.
    """

    def __init__(self, files: JobFiles, part: JobsPart, desk: Desk, results: Results) -> None:
        self.files, self.part, self.desk, self.results, self.now = files, part, desk, results, files.now
        self.teller = Teller(Rule(part.webhook_hosts, desk.recipe.is_public))
        self.owner = secrets.token_hex(8)
        self.line = Line()
        self.live: dict[str, Live] = {}
        self.arriving: set[str] = set()
        self.recent_seconds: float | None = None  # that the last job took
        self.stopping = asyncio.Event()
        self.running: set[Live] = set()
        self.telling: dict[str, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Be ready, after a stop too, in the loop that runs now."""
        self.stopping, self.teller = asyncio.Event(), Teller(self.teller.rule)

    async def stop(self) -> None:
        """Break off what is painted; jobs that are not done are left on disk for the next server."""
        self.stopping.set()
        for live in self.running:
            live.wish = "stop" if live.wish == "run" else live.wish
            if live.painting:
                live.painting.cancel()
        while self._tasks:  # one that ends may begin another
            for task in self.telling.values():
                task.cancel()
            await asyncio.wait(self._tasks)
        left, self.live, self.line = list(self.live.values()), {}, Line()
        for live in left:
            live.touch()

    def take_in(self, record: Record) -> Live:
        """Put a job that is on disk, and this server's, in line."""
        live = self.live[record.id] = Live(record)
        self.line.add(live)
        self.pump()
        return live

    def cancel(self, live: Live) -> None:
        """Have it cancelled; `live.tending` ends when it is."""
        if live in self.line:
            self.line.remove(live)
            live.tending = self.spawn(self.end(live, "CANCELLED"))
            self._touch_line()
        elif live.wish == "run":
            live.wish = "cancel"
            if live.painting:
                live.painting.cancel()

    def pump(self) -> None:
        """Begin what may begin."""
        is_moved = False
        while not self.stopping.is_set() and len(self.running) < self.part.running:
            live = self.line.take(_soon(0))
            if live is None:
                break
            is_moved = True
            self.running.add(live)
            live.tending = self.spawn(self._tend(live))
        if is_moved:
            self._touch_line()

    async def _tend(self, live: Live) -> None:
        """Paint a job and see what comes of it."""
        attempts = live.record.attempts + 1
        if await self.set(live, state="IN_PROGRESS", started=self.now(), attempts=attempts):
            live.painting = asyncio.create_task(self._paint(live))
            if live.wish != "run":
                live.painting.cancel()
            try:
                await asyncio.wait({live.painting})
            finally:
                live.painting.cancel()
            await self._settle(live, live.painting)
        live.painting, live.progress, live.shown = None, None, None
        self.running.discard(live)
        self.pump()

    async def _paint(self, live: Live) -> tuple[bytes, tuple[str, ...]]:
        """The answer, JSON, and the names under which its pictures are kept."""
        record = live.record
        asked = await asyncio.to_thread(self.files.request, record.id)
        visitor = Visitor(record.visitor, record.limits, record.request_id)
        settings = await self.desk.settings(asked, visitor)
        painting = await self.desk.paint(settings, visitor, watch=functools.partial(self._watched, live))
        return await asyncio.to_thread(
            kept_answer, painting, settings, asked=asked, results=self.results, base_url=record.base_url
        )

    def _watched(self, live: Live, progress: Progress) -> None:
        live.progress = progress
        live.touch()

    async def _settle(self, live: Live, painting: "asyncio.Task[tuple[bytes, tuple[str, ...]]]") -> None:
        """What came of the painting, which is done."""
        error = None if painting.cancelled() else painting.exception()
        if not painting.cancelled() and error is None:
            answer, images = painting.result()
            await self._complete(live, answer, images)
        elif live.wish == "cancel":
            await self.end(live, "CANCELLED")
        elif live.wish == "stop":
            await self.set(live, state="IN_QUEUE", started=None, owner=None, attempts=live.record.attempts - 1)
        elif isinstance(error, Busy):
            await self._wait(live, min(error.retry_after_seconds, LONGEST_HOLD), attempts=live.record.attempts - 1)
        elif (error is None or reason_of(error) == "lost") and live.record.attempts < MAX_ATTEMPTS:
            log.warning("job lost its model id=%s attempts=%d error=%r", live.record.id, live.record.attempts, error)
            await self._wait(live, LOST_HOLD, attempts=live.record.attempts)
        else:
            await self.end(live, "FAILED", failure=failure(error or RunFailed("its painting was broken off")))

    async def _wait(self, live: Live, seconds: float, *, attempts: int) -> None:
        """Back to its place in line. The desk's reasons are mostly the same for all jobs of a visitor."""
        live.is_refused = True
        self.line.hold(live.record.visitor, until=_soon(seconds))
        if not await self.set(live, state="IN_QUEUE", started=None, attempts=attempts):
            return
        if live.wish == "cancel":  # in the meantime
            await self.end(live, "CANCELLED")
        else:
            self.line.add(live)
            self._touch_line()

    async def _complete(self, live: Live, answer: bytes, images: tuple[str, ...]) -> None:
        started, finished = live.record.started or self.now(), self.now()
        try:
            is_done = await self._save(live, state="COMPLETED", answer=answer, images=images, **self._times(finished))
        except (OSError, RunFailed) as error:
            await asyncio.to_thread(self.results.remove, images)
            await self.end(live, "FAILED", failure=failure(error))
            return
        if is_done:
            self.recent_seconds = finished - started
            self.ended(live)
        else:
            await asyncio.to_thread(self.results.remove, images)

    async def end(self, live: Live, state: State, *, failure: Failure | None = None) -> None:
        """The end of a job without pictures."""
        if await self.set(live, state=state, failure=failure, **self._times(self.now())):
            self.ended(live)

    def ended(self, live: Live) -> None:
        record = live.record
        log.info("job ended id=%s state=%s attempts=%d", record.id, record.state, record.attempts)
        self.line.release(record.visitor)
        if live.is_saved or (record.expires or 0) <= self.now():
            self.live.pop(record.id, None)
            if record.is_open:
                self.tell(record)
        live.touch()

    def _times(self, finished: float) -> dict[str, float]:
        return {"finished": finished, "expires": finished + self.part.keep_seconds}

    async def set(self, live: Live, **fields: Any) -> bool:
        """As `_save`; where the disk does not take it the job goes on, and is saved later."""
        try:
            return await self._save(live, **fields)
        except (OSError, RunFailed) as error:
            log.error("job not saved id=%s error=%s", live.record.id, error)
            live.record, live.is_saved = live.record.model_copy(update=fields), False
            live.touch()
            return True

    async def _save(self, live: Live, *, answer: bytes | None = None, **fields: Any) -> bool:
        """Change the job on disk and here; False: another server has it now, and it is let go of."""
        record = live.record.model_copy(update=fields)
        saved = await asyncio.to_thread(self.files.change, record, owner=self.owner, answer=answer)
        if saved:
            live.record, live.is_saved = record, True
        else:
            log.warning("job lost to another server id=%s", record.id)
            self.live.pop(record.id, None)
        live.touch()
        return saved

    def tell(self, record: Record) -> None:
        task = self.telling[record.id] = self.spawn(self._told(record))
        task.add_done_callback(lambda _: self.telling.pop(record.id, None))

    async def _told(self, record: Record) -> None:
        """Tell the job's end to its webhook."""
        if record.webhook is None:
            return
        answer = await asyncio.to_thread(self.files.result, record.id)

        async def noted(hook: Hook) -> bool:
            log.info("webhook tried id=%s tries=%d state=%s", record.id, hook.tries, hook.state)
            changed = record.model_copy(update={"webhook": hook})
            try:
                return await asyncio.to_thread(self.files.change, changed, owner=self.owner)
            except (OSError, RunFailed) as error:
                log.error("job not saved id=%s error=%s", record.id, error)
                return True

        await self.teller.tell(record.webhook, body_of(record, answer), noted=noted)

    def _touch_line(self) -> None:
        for live in self.line:
            live.touch()

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.critical("work on jobs ended", exc_info=error)


def failure(error: BaseException) -> Failure:
    """What a request that failed so would have been answered."""
    told = failure_of(error)
    return Failure(status=told.status, message=told.message, detail=[each.model_dump() for each in told.detail])


def kept_answer(
    painting: Painting, settings: Settings, *, asked: GenerateRequest, results: Results, base_url: str
) -> tuple[bytes, tuple[str, ...]]:
    """The answer, JSON, and the names of the pictures that were kept for it. Raises DiskFull or RunFailed."""
    names = () if asked.sync_mode else tuple(results.keep(each) for each in painting.images)
    urls = [f"{base_url}/v1/results/{name}" for name in names] or [each.data_uri for each in painting.images]
    answer = response_of(painting, settings, asked, urls=urls)
    return answer.model_dump_json(exclude_none=True).encode(), names


def _soon(seconds: float) -> float:
    """That many seconds from now, on the clock of the loop."""
    return asyncio.get_running_loop().time() + seconds
