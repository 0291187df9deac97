"""What each visitor of the AUTOMATIC1111 routes has under way: how far it is, and how it is ended.

That API asks for the progress of "the" work and interrupts "it": here those of the visitor who asks. It is known to the
one process that answers the request that paints.

Kind: wiring.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sote.serve.schema_a1111 import ProgressAnswer, State
from sote.serve.service import Painting
from sote.serve.settings import Progress, Settings


@dataclass(eq=False)
class Run:
    """One request under way. `job` is txt2img or img2img."""

    job: str
    settings: Settings
    started: float = field(default_factory=time.time)
    step: int = 0
    preview: bytes | None = None
    is_interrupted: bool = False
    is_skipped: bool = False
    task: "asyncio.Task[Painting] | None" = None

    @property
    def steps(self) -> int:
        """Of both stages."""
        return self.settings.prior.steps + self.settings.decoder.steps

    @property
    def timestamp(self) -> str:
        """When it began, as AUTOMATIC1111 writes it: 20250131120000."""
        return time.strftime("%Y%m%d%H%M%S", time.localtime(self.started))

    def see(self, progress: Progress) -> None:
        """A step was made."""
        self.step = progress.step + (self.settings.prior.steps if progress.stage == "decoder" else 0)
        self.preview = progress.preview or self.preview

    async def result(self, painting: Coroutine[Any, Any, Painting]) -> Painting | None:
        """What comes of the painting; None if it was ended by `Underway.end`. Cancelled, it cancels the painting."""
        self.task = task = asyncio.create_task(painting)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        return None if task.cancelled() and self.is_interrupted else task.result()


class Underway:
    """All runs, by the name of the visitor."""

    def __init__(self) -> None:
        self._runs: dict[str, list[Run]] = {}

    @contextmanager
    def begun(self, name: str, run: Run) -> Iterator[Run]:
        """`run` is the visitor's while the block runs."""
        self._runs.setdefault(name, []).append(run)
        try:
            yield run
        finally:
            self._runs[name].remove(run)
            if not self._runs[name]:
                del self._runs[name]

    def of(self, name: str) -> tuple[Run, ...]:
        """The visitor's runs, the oldest first."""
        return tuple(self._runs.get(name, ()))

    def end(self, name: str, *, is_skip: bool) -> int:
        """End the visitor's runs within a step; returns how many."""
        runs = [run for run in self.of(name) if run.task is not None]
        for run in runs:
            run.is_interrupted, run.is_skipped = True, run.is_skipped or is_skip
            if run.task is not None:
                run.task.cancel()
        return len(runs)


def progress_of(runs: tuple[Run, ...], *, now: float) -> tuple[ProgressAnswer, bytes | None]:
    """How far the oldest of a visitor's runs is, and its preview."""
    if not runs:
        return ProgressAnswer(), None
    run = runs[0]
    share = min(run.step / run.steps, 1.0)
    left = (now - run.started) * (1 - share) / share if share else 0.0
    state = State(
        skipped=run.is_skipped,
        interrupted=run.is_interrupted and not run.is_skipped,
        job=run.job,
        job_count=len(runs),
        job_timestamp=run.timestamp,
        sampling_step=run.step,
        sampling_steps=run.steps,
    )
    return ProgressAnswer(progress=round(share, 4), eta_relative=round(max(left, 0.0), 2), state=state), run.preview
