"""Jobs: asked for now, painted in their turn, fetched later. They are files, so that a server that dies loses none.

Each server (ingress) has the jobs that it was asked for. It says every 2 s that it lives; the jobs of one that was not
heard of for 10 s, or that ended, are taken over by the next and painted again from their seeds, which gives the same
pictures. Changes are made under a lock and by the owner alone: a server that was only slow, and lost its jobs to
another, finds that out and lets go of them.

Kind: wiring.
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from sote.cluster.errors import Busy
from sote.serve.access import Visitor
from sote.serve.desk import Desk
from sote.serve.jobcare import TICK_SECONDS, Care, happens
from sote.serve.jobfiles import Hook, Record
from sote.serve.jobfiles_far import files_of
from sote.serve.jobkeeper import Keeper
from sote.serve.jobline import Live, Sight, seconds_left
from sote.serve.recipe import JobsPart
from sote.serve.results import Results
from sote.serve.schema import GenerateRequest
from sote.serve.settings import MAX_SEED

STILL_SECONDS: Final = 15.0  # without a change a follower is told that nothing changed: proxies cut silent streams


class Jobs:
    """All jobs below `folder`; those that this server has are painted through `desk`, at most `part.running` at once.

    `now` is the clock of what is on disk. Nobody is shown another visitor's job: methods answer None as for a job that
    is not there.
    """

    def __init__(
        self, folder: Path, part: JobsPart, desk: Desk, results: Results, *, now: Callable[[], float] = time.time
    ) -> None:
        self.files, self.part, self.desk, self.results, self.now = files_of(folder, now), part, desk, results, now
        self.keeper = Keeper(self.files, part, desk, results)
        self.care = Care(self.keeper)

    async def start(self) -> None:
        """Take over what others left, and begin. Raises OSError where the folder cannot be used."""
        await self.care.start()

    async def stop(self) -> None:
        """Leave all jobs that are not done to the next server."""
        await self.care.stop()

    async def create(
        self, asked: GenerateRequest, visitor: Visitor, *, base_url: str, webhook_url: str | None = None
    ) -> Sight:
        """Put a job in line. Raises what `Desk.settings` does, RequestError for a webhook that may not be asked, Busy
        where too many wait, and DiskFull."""
        keeper, id = self.keeper, secrets.token_hex(16)
        self._check_room()
        keeper.arriving.add(id)
        try:
            await self.desk.settings(asked, visitor)  # what cannot be made is refused now, not later
            if webhook_url is not None:
                await keeper.teller.rule.address(webhook_url)
            record = Record(
                id=id,
                visitor=visitor.name,
                limits=visitor.limits,
                request_id=visitor.request_id,
                created=self.now(),
                owner=keeper.owner,
                base_url=base_url,
                webhook=Hook(url=webhook_url, secret=secrets.token_hex(32)) if webhook_url else None,
            )
            seed = secrets.randbelow(MAX_SEED + 1) if asked.seed is None else asked.seed
            await asyncio.to_thread(self.files.create, record, asked.model_copy(update={"seed": seed}))
            return self._sight(keeper.take_in(record))
        finally:
            keeper.arriving.discard(id)

    async def sight(self, id: str, visitor: Visitor) -> Sight | None:
        """The job as it stands."""
        live = self.keeper.live.get(id)
        seen = self._sight(live) if live else await asyncio.to_thread(self._others, id)
        if seen is None or seen.record.visitor != visitor.name or self._is_over(seen.record):
            return None
        return seen

    async def listed(self, visitor: Visitor) -> list[Sight]:
        """All jobs of the visitor, the newest first."""
        records = await asyncio.to_thread(self.files.records)
        own = [each for each in records if each.visitor == visitor.name and not self._is_over(each)]
        live = {each.record.id: self._sight(each) for each in self.keeper.live.values()}
        return [live.get(record.id) or Sight(record) for record in reversed(own)]

    async def answer(self, id: str) -> bytes | None:
        """The answer of a completed job, JSON. Whose job it is must have been looked at."""
        return await asyncio.to_thread(self.files.result, id)

    async def follow(self, id: str, visitor: Visitor) -> AsyncIterator[Sight | None]:
        """The job now and after each change, up to its end; a slow follower misses what is overtaken.

        None: nothing changed for a while. Ends without the job's end when the server stops or the job is removed.
        """
        last, told = None, time.monotonic()
        while True:
            live = self.keeper.live.get(id)
            changed = live.changed if live else None
            seen = await self.sight(id, visitor)
            if seen is None:
                return
            is_news = last is None or (seen.record, seen.position, seen.progress) != last
            last = (seen.record, seen.position, seen.progress)
            if is_news or time.monotonic() - told >= STILL_SECONDS:
                told = time.monotonic()
                yield seen if is_news else None
            if seen.record.is_ended or self.keeper.stopping.is_set():
                return
            if changed:
                await happens(changed, seconds=STILL_SECONDS)
            else:
                await asyncio.sleep(TICK_SECONDS)

    async def cancel(self, id: str, visitor: Visitor) -> Sight | None:
        """The job, cancelled if it was not over: at once, or within a second where another server has it."""
        seen = await self.sight(id, visitor)
        if seen is None or seen.record.is_ended:
            return seen
        if live := self.keeper.live.get(id):
            self.keeper.cancel(live)
            if live.tending:
                await asyncio.wait({live.tending})
        else:
            await asyncio.to_thread(self.files.ask_to_cancel, id)
        return await self.sight(id, visitor)

    async def remove(self, record: Record) -> None:
        """Remove an ended job and its pictures before their time."""
        self.keeper.live.pop(record.id, None)
        await asyncio.to_thread(self.files.remove, record.id)
        await asyncio.to_thread(self.results.remove, record.images)

    def _sight(self, live: Live) -> Sight:
        record, position = live.record, self.keeper.line.position(live)
        if live.is_refused and record.state == "IN_PROGRESS" and live.progress is None:
            # It asks again whether there is room: not to be seen as a start each time
            record, position = record.model_copy(update={"state": "IN_QUEUE", "started": None}), 0
        left = seconds_left(record, live.progress, now=self.now())
        if position is not None and self.keeper.recent_seconds is not None:
            left = (position // self.part.running + 1) * self.keeper.recent_seconds
        return Sight(record, position, live.progress, left)

    def _others(self, id: str) -> Sight | None:
        """A job that is over, or that another server has, from the disk."""
        record = self.files.record(id)
        if record is None or record.is_ended:
            return Sight(record) if record else None
        if record.state == "IN_QUEUE":
            line = [each for each in self.files.records() if each.state == "IN_QUEUE" and each.owner == record.owner]
            return Sight(record, sum(each.place < record.place for each in line))
        progress = self.files.progress(record)
        return Sight(record, None, progress, seconds_left(record, progress, now=self.now()))

    def _is_over(self, record: Record) -> bool:
        return record.expires is not None and record.expires <= self.now()

    def _check_room(self) -> None:
        """Raises Busy where no more jobs may wait."""
        keeper = self.keeper
        if keeper.stopping.is_set():
            raise Busy("the server is ending; come again in 5 s", retry_after_seconds=5)
        waiting = len(keeper.line) + len(keeper.arriving)
        if waiting >= self.part.max_waiting:
            wait = max(1, math.ceil(keeper.recent_seconds or 1))
            raise Busy(f"{waiting} jobs wait already; come again in {wait} s", retry_after_seconds=wait)
