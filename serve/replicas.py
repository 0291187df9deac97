"""The models in their replicas, asked through Ray Serve's handles: what the routes' service is in the server.

The ingress awaits the prior, then asks the decoder: what passes between them is below 100 KB a picture, and so each
deployment's line and autoscaling count only its own work. A full line is the caller's to hear, that of the decoder
before the prior begins: once the prior has worked, its request waits for the decoder, first come, first served. A
replica that dies under a request loses nothing: the stage is asked again with the same settings, and the same seed
gives the same picture.

Kind: wiring.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import numpy as np
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from sote.cluster.errors import Busy
from sote.serve.figures import Figures
from sote.serve.line import LineLost
from sote.serve.service import Painting, Watch
from sote.serve.settings import Latents, Numbers, Progress, Settings, StageName, Work

T = TypeVar("T")
log = logging.getLogger(__name__)

LOST: Final = (ActorDiedError, ActorUnavailableError, WorkerCrashedError, ReplicaUnavailableError, LineLost)
TRIES: Final = 7  # of a stage whose replicas die under a request: ten seconds, in which Serve finds and ends them
FIRST_PAUSE_SECONDS: Final = 0.1  # before the second try, and twice as long before each further one
# For a stage that is asked again: a replica that loads gigabytes of weights, and the work itself
AGAIN_SECONDS: Final = 300.0
# Requests that come at once are counted as waiting until each has its replica; Serve takes milliseconds for that
SETTLED_SECONDS: Final = 0.25
PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 1.0
RECENT: Final = 0.2  # weight of the newest request in what a request takes
IS_ACCEPTED: ContextVar[bool] = ContextVar("is_accepted", default=False)


class Replicas:
    """The service of `service.Service` over the handles of both deployments.

    `slots`: pictures that step together in a replica, for what Busy says about when to come again. `places`: requests
    that are at the decoder or wait for it, beyond which no new one is begun. How many are at each stage is counted in
    `figures`.
    """

    def __init__(
        self,
        prior: DeploymentHandle[Any],
        decoder: DeploymentHandle[Any],
        *,
        slots: int,
        places: int,
        figures: Figures,
    ) -> None:
        self.prior, self.decoder, self.slots, self.places = prior, decoder, slots, places
        self.figures = figures
        self.at_decoder = 0
        self.recent_seconds = 1.0  # of both stages' work for a request

    async def paint(self, settings: Settings, *, watch: Watch | None = None) -> Painting:
        """As `Service.paint`. Raises RayError or DeploymentUnavailableError where a model is lost for good."""
        self._check_decoder()
        begin = time.monotonic()
        with self.figures.inside("prior"):
            latents: Latents = await self._asked("prior", self.prior, "latents", settings, watch=watch)
        return await self._painted(latents, settings, begin=begin, watch=watch)

    async def decode(self, latents: Numbers, settings: Settings, *, watch: Watch | None = None) -> Painting:
        """As `Service.decode`."""
        self._check_decoder()
        begin = time.monotonic()
        pooled: Numbers = await self._asked("prior", self.prior, "pooled", settings)
        given = Latents(np.asarray(latents, np.float32), pooled, Work("prior", 0.0, 0.0, 0.0), ())
        return await self._painted(given, settings, begin=begin, watch=watch)

    async def deployments(self) -> dict[str, str]:
        """Status of each deployment of this application, by name. Raises RayError where Serve's controller is lost."""
        return await asyncio.to_thread(_deployments)

    async def _painted(self, latents: Latents, settings: Settings, *, begin: float, watch: Watch | None) -> Painting:
        self.at_decoder += 1
        try:
            with self.figures.inside("decoder"):
                answer = await self._asked("decoder", self.decoder, "paint", latents, settings, watch=watch)
        finally:
            self.at_decoder -= 1
        own = sum(work.seconds - work.waited_seconds for work in (latents.work, answer.work))
        self.recent_seconds += RECENT * (own - self.recent_seconds)
        return Painting(
            images=tuple(answer.images),
            work=(latents.work, answer.work),
            seconds=time.monotonic() - begin,
            warnings=latents.warnings,
            prompt_tokens=latents.prompt_tokens,
            flagged=answer.flagged,
        )

    async def _asked(
        self, stage: StageName, handle: DeploymentHandle[Any], method: str, *asked: Any, watch: Watch | None = None
    ) -> Any:
        """What `method` of a replica answers, whatever happens to replicas meanwhile."""
        is_accepted = IS_ACCEPTED.get() or stage == "decoder"
        for attempt in itertools.count(1):
            call = _unary(handle, method, asked) if watch is None else _watched(handle, method, asked, watch=watch)
            try:
                async with asyncio.timeout(AGAIN_SECONDS if attempt > 1 else None):
                    return await self._in_line(call, is_patient=is_accepted or attempt > 1)
            except RayTaskError as error:  # ours, as it was raised there; or what it died of
                cause = error.cause
                if not isinstance(cause, LOST):
                    raise cause from None
                lost: BaseException = cause
            except LOST as error:
                lost = error
            except TimeoutError:
                raise RayError(f"no replica of the {stage} came up in {AGAIN_SECONDS:.0f} s") from None
            log.warning("replica lost, asking again stage=%s attempt=%d error=%s", stage, attempt, type(lost).__name__)
            if attempt == TRIES:
                raise RayError(f"the {stage} was lost {TRIES} times under one request") from lost
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2**attempt)

    async def _in_line(self, call: Callable[[], Awaitable[T]], *, is_patient: bool) -> T:
        """Await `call`, again while the line is full; raises Busy where the line is not to be waited for."""
        pause, deadline = PAUSE_SECONDS, time.monotonic() + SETTLED_SECONDS
        while True:
            try:
                return await call()
            except BackPressureError:
                if not is_patient and time.monotonic() > deadline:
                    raise self._busy() from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS) if is_patient else pause

    def _check_decoder(self) -> None:
        """Raises Busy where the decoder's line is full, for requests that are not taken in yet."""
        if self.at_decoder >= self.places and not IS_ACCEPTED.get():
            raise self._busy()

    def _busy(self) -> Busy:
        """A place is free when one of the requests in the replica's slots is done."""
        seconds = max(1, math.ceil(self.recent_seconds / self.slots))
        return Busy(f"the line is full; come again in {seconds} s", retry_after_seconds=seconds)


def _unary(handle: DeploymentHandle[Any], method: str, asked: tuple[Any, ...]) -> Callable[[], Awaitable[Any]]:
    """A call that answers once. Cancelling its await cancels the work in the replica."""

    async def call() -> Any:
        response = getattr(handle, method).remote(*asked)
        try:
            return await response
        except BaseException:  # above all that nobody waits any more
            response.cancel()
            raise

    return call


def _watched(
    handle: DeploymentHandle[Any], method: str, asked: tuple[Any, ...], *, watch: Watch
) -> Callable[[], Awaitable[Any]]:
    """A call that tells of its progress on the way. Its replica's method has the name with `_watched` behind it."""

    async def call() -> Any:
        steps = getattr(handle.options(stream=True), f"{method}_watched").remote(*asked)
        try:
            async for each in steps:
                if isinstance(each, Progress):
                    watch(each)
                else:
                    return each
        except BaseException:
            steps.cancel()
            raise
        raise RayError(f"{method}: the replica ended before it answered")

    return call


def _deployments() -> dict[str, str]:
    name = serve.get_replica_context().app_name
    found = serve.status().applications.get(name)
    return {each: str(state.status.value) for each, state in found.deployments.items()} if found else {}
