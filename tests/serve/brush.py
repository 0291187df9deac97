"""What tests of the routes paint with where a model would only be slow: pictures out of seeds, at a test's own pace."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sote.serve import pictures
from sote.serve.access import Visitor
from sote.serve.desk import Desk
from sote.serve.figures import Figures
from sote.serve.jobs import Jobs
from sote.serve.recipe import JobsPart, ServeRecipe
from sote.serve.results import Results
from sote.serve.schema import GenerateRequest
from sote.serve.service import Painting, Watch
from sote.serve.settings import Numbers, Progress, Settings, Work

STEPS = 4


class Clock:
    """A clock that a test turns. No two looks at it see the same time."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        self.time += 1e-6
        return self.time


@dataclass
class Brush:
    """A service: each picture is noise of its seed. It waits for `gate` before the last step; `errors` are raised by
    the next paintings, one each."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    errors: list[Exception] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    inside: int = 0
    most: int = 0

    async def paint(self, settings: Settings, *, watch: Watch | None = None) -> Painting:
        self.begun.append(settings.seed)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if self.errors:
                raise self.errors.pop(0)
            for step in range(1, STEPS + 1):
                if step == STEPS:
                    await self.gate.wait()
                await asyncio.sleep(0)
                if watch:
                    watch(Progress("prior", step, STEPS, b"a small jpeg"))
        except asyncio.CancelledError:
            self.cancelled.append(settings.seed)
            raise
        finally:
            self.inside -= 1
        self.done.append(settings.seed)
        return painting(settings)

    async def decode(self, latents: Numbers, settings: Settings, *, watch: Watch | None = None) -> Painting:
        return await self.paint(settings, watch=watch)

    async def deployments(self) -> dict[str, str]:
        return {"Brush": "HEALTHY"}


def painting(settings: Settings) -> Painting:
    images = []
    for index in range(settings.images):
        numbers = np.random.default_rng(settings.image_seed(index))
        pixels = numbers.integers(0, 256, (16, 16, 3), np.uint8)
        data = pictures.encode(pixels, settings.output_format, parameters=settings.prompt)
        latents = numbers.standard_normal((16, 6, 9), np.float32)
        images.append(
            pictures.Painted(
                data, settings.output_format, settings.width, settings.height, settings.image_seed(index), "", latents
            )
        )
    work = (Work("prior", 0.2, 0.1, 1.0), Work("decoder", 0.1, 0.0, 1.0))
    return Painting(tuple(images), work, 0.3, (), 3)


@dataclass
class House:
    """One run folder, and as many servers' jobs over it as a test opens."""

    run: Path
    clock: Callable[[], float]
    part: JobsPart = field(default_factory=lambda: JobsPart(keep_seconds=100, running=1, max_waiting=8))
    recipe: ServeRecipe | None = None

    def jobs(self, brush: Any) -> Jobs:
        recipe = self.recipe or ServeRecipe(run=str(self.run), jobs=self.part)
        desk = Desk(recipe, brush, Figures())
        results = Results(self.run / "results", self.part.keep_seconds, now=self.clock)
        return Jobs(self.run / "jobs", self.part, desk, results, now=self.clock)

    @contextlib.asynccontextmanager
    async def open(self, brush: Any) -> AsyncIterator[Jobs]:
        jobs = self.jobs(brush)
        await jobs.start()
        try:
            yield jobs
        finally:
            await jobs.stop()


def visitor(name: str = "ada", **limits: Any) -> Visitor:
    from sote.serve.keys import Limits

    return Visitor(name, Limits(**limits) if limits else None, "r")


def asked(seed: int | None = 7, **fields: Any) -> GenerateRequest:
    return GenerateRequest(prompt="1girl, cat ears", seed=seed, **fields)


async def until(happened: Callable[[], bool | Awaitable[bool]], *, seconds: float = 20) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(seconds):
        while True:
            found = happened()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)
