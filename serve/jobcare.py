"""Looking after the jobs of this server beside their painting: it says that it lives, meets the other servers on disk,
takes over what dead ones left, and removes what is over its time.

Kind: wiring.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from sote.cluster.errors import RunFailed
from sote.serve.jobkeeper import MAX_ATTEMPTS, Keeper, failure
from sote.serve.jobline import Live

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.5  # a cancel mark of another server is seen, and progress shown to it, within this
BEAT_TICKS: Final = 4
SWEEP_TICKS: Final = 60


class Care:
    """Of one keeper's jobs."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper, self.files, self.results = keeper, keeper.files, keeper.results
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take over what others left, and go on looking after it. Raises OSError where the folder cannot be used."""
        self.keeper.start()
        await asyncio.to_thread(self.files.beat, self.keeper.owner)
        await self.adopt()
        self.keeper.spawn(self._tick_on())

    async def stop(self) -> None:
        """Leave all jobs that are not done to the next server."""
        await self.keeper.stop()
        await asyncio.to_thread(self.files.leave, self.keeper.owner)

    async def adopt(self) -> None:
        """Take over the open jobs that no living server has, this one's own that it forgot among them."""
        for record in await asyncio.to_thread(self.files.orphans, owner=self.keeper.owner):
            if record.id in self.keeper.live or record.id in self.keeper.arriving or record.id in self.keeper.telling:
                continue
            mine = await asyncio.to_thread(self.files.adopt, record.id, owner=self.keeper.owner)
            if mine is None:
                continue
            log.warning("job adopted id=%s state=%s attempts=%d", mine.id, mine.state, mine.attempts)
            if mine.is_ended:
                self.keeper.tell(mine)
            elif mine.state == "IN_PROGRESS" and mine.attempts >= MAX_ATTEMPTS:
                live = self.keeper.live[mine.id] = Live(mine)
                text = f"the server ended {mine.attempts} times while it worked on this; it is not tried again"
                await self.keeper.end(live, "FAILED", failure=failure(RunFailed(text)))
            else:
                self.keeper.take_in(mine.model_copy(update={"state": "IN_QUEUE", "started": None}))

    async def _tick_on(self) -> None:
        keeper, ticks = self.keeper, 0
        while not keeper.stopping.is_set():
            if ticks % SWEEP_TICKS == 0 and not (self._sweeping and not self._sweeping.done()):
                self._sweeping = keeper.spawn(_minded(self.sweep))  # it may take longer than others wait for a beat
            await _minded(self._meet)
            if ticks % BEAT_TICKS == 0:
                await _minded(self._beat)
                await _minded(self.adopt)
            ticks += 1
            keeper.pump()
            keeper.desk.figures.jobs({"IN_QUEUE": len(keeper.line), "IN_PROGRESS": len(keeper.running)})
            await happens(keeper.stopping, seconds=TICK_SECONDS)

    async def _meet(self) -> None:
        """Meet other servers: they see how far the jobs are, and say what is to be cancelled."""
        for id in await asyncio.to_thread(self._look, list(self.keeper.live.values())):
            if live := self.keeper.live.get(id):
                self.keeper.cancel(live)

    def _look(self, lives: list[Live]) -> list[str]:
        """Show others how far the jobs are; returns the ids of those that others want cancelled."""
        for live in lives:
            if live.progress is not None and live.progress != live.shown:
                live.shown = live.progress
                self.files.write_progress(live.record.id, live.shown, owner=self.keeper.owner)
        return [live.record.id for live in lives if self.files.is_asked_to_cancel(live.record.id)]

    async def _beat(self) -> None:
        """Say that this server lives. If it was taken for dead, let go of what others have now."""
        was_alive = await asyncio.to_thread(self.files.is_alive, self.keeper.owner)
        await asyncio.to_thread(self.files.beat, self.keeper.owner)
        if was_alive:
            return
        for live in list(self.keeper.live.values()):
            record = await asyncio.to_thread(self.files.record, live.record.id)
            if record is None or record.owner != self.keeper.owner:
                log.warning("job lost to another server id=%s", live.record.id)
                self.keeper.live.pop(live.record.id, None)
                if live in self.keeper.line:
                    self.keeper.line.remove(live)
                self.keeper.cancel(live)
                live.touch()

    async def sweep(self) -> None:
        """Remove what is over its time; save what the disk did not take before."""
        for record in await asyncio.to_thread(self.files.sweep):
            await asyncio.to_thread(self.results.remove, record.images)
        await asyncio.to_thread(self.results.sweep)
        for live in [each for each in self.keeper.live.values() if not each.is_saved and each.record.is_ended]:
            if await self.keeper.set(live) and (live.is_saved or (live.record.expires or 0) <= self.keeper.now()):
                self.keeper.ended(live)


async def _minded(work: Callable[[], Awaitable[None]]) -> None:
    """Do it; a disk that is full or away for a while is no reason to end."""
    try:
        await work()
    except OSError as error:
        log.error("jobs not looked after: %s", error)


async def happens(event: asyncio.Event, *, seconds: float) -> None:
    """Wait for `event`, and no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
