"""The models in their replicas, asked through handles: Serve's local mode runs the replicas in this process."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from ray import serve
from ray.exceptions import ActorDiedError, RayError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from sote.cluster.errors import Busy, RunFailed
from sote.serve import replicas
from sote.serve.figures import Figures
from sote.serve.line import DecoderAnswer, LineLost
from sote.serve.pictures import Painted
from sote.serve.recipe import DefaultsPart, LimitsPart
from sote.serve.replicas import IS_ACCEPTED, Replicas
from sote.serve.schema import GenerateRequest, resolve
from sote.serve.service import Painting
from sote.serve.settings import Latents, Numbers, Progress, Settings, Work

FULL = BackPressureError(2, 2)
# What befalls the next calls of each deployment, before they go well
TROUBLES: dict[str, deque[Exception]] = {"prior": deque(), "decoder": deque()}
CALLS: list[str] = []
CANCELLED: list[str] = []


def trouble(stage: str) -> None:
    CALLS.append(stage)
    if TROUBLES[stage]:
        raise TROUBLES[stage].popleft()


class Prior:
    async def latents(self, settings: Settings) -> Latents:
        trouble("prior")
        try:
            await asyncio.sleep(30 if settings.prompt == "for long" else 0)
        except asyncio.CancelledError:
            CANCELLED.append("prior")
            raise
        shape = (settings.images, 16, 2, 2)
        return Latents(np.full(shape, settings.seed, np.float32), await self.pooled(settings), work("prior"), ("w",), 3)

    async def latents_watched(self, settings: Settings) -> AsyncIterator[Progress | Latents]:
        yield Progress("prior", 1, 2)
        yield await self.latents(settings)

    async def pooled(self, settings: Settings) -> Numbers:
        return np.zeros((1, 1, 8), np.float32)


class Decoder:
    async def paint(self, latents: Latents, settings: Settings) -> DecoderAnswer:
        trouble("decoder")
        seed = int(latents.latents.flat[0])
        painted = Painted(b"x", "png", 256, 256, seed, "", latents.latents[0])
        return DecoderAnswer([painted], work("decoder"), None)

    async def paint_watched(self, latents: Latents, settings: Settings) -> AsyncIterator[Progress | DecoderAnswer]:
        yield Progress("decoder", 1, 1)
        yield await self.paint(latents, settings)


def work(stage: Any) -> Work:
    return Work(stage, 2.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def handles() -> tuple[Any, Any]:
    return tuple(  # type: ignore[misc]
        serve.run(serve.deployment(kind).bind(), name=kind.__name__, route_prefix=None, _local_testing_mode=True)
        for kind in (Prior, Decoder)
    )


@pytest.fixture
def service(handles: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Replicas:
    monkeypatch.setattr(replicas, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(replicas, "SETTLED_SECONDS", 0.05)
    monkeypatch.setattr(replicas, "PAUSE_SECONDS", 0.01)
    CALLS.clear()
    for each in TROUBLES.values():
        each.clear()
    return Replicas(*handles, slots=4, places=3, figures=Figures())


def settings(prompt: str = "a") -> Settings:
    return resolve(GenerateRequest(prompt=prompt, seed=5), DefaultsPart(), limits=LimitsPart(), random_seed=0)


def paint(service: Replicas, **watch: Any) -> Painting:
    return asyncio.run(service.paint(settings(), **watch))


def test_a_painting_has_what_both_stages_did(service: Replicas) -> None:
    painting = paint(service)
    assert [each.seed for each in painting.images] == [5]
    assert [each.stage for each in painting.work] == ["prior", "decoder"]
    assert (painting.warnings, painting.prompt_tokens, painting.flagged) == (("w",), 3, None)


def test_a_request_that_is_watched_tells_of_its_steps(service: Replicas) -> None:
    steps: list[Progress] = []
    assert paint(service, watch=steps.append).images[0].seed == 5
    assert [each.stage for each in steps] == ["prior", "decoder"]


def test_latents_that_are_there_already_go_to_the_decoder_alone(service: Replicas) -> None:
    painting = asyncio.run(service.decode(np.full((1, 16, 2, 2), 9, np.float32), settings()))
    assert painting.images[0].seed == 9
    assert CALLS == ["decoder"]


@pytest.mark.parametrize("lost", [ActorDiedError(), LineLost("prior: the thread that steps has ended")])
@pytest.mark.parametrize("watch", [{}, {"watch": lambda _: None}])
def test_a_stage_whose_replica_dies_is_asked_again(service: Replicas, lost: Exception, watch: dict[str, Any]) -> None:
    TROUBLES["prior"].extend([lost, lost])
    TROUBLES["decoder"].append(lost)
    assert paint(service, **watch).images[0].seed == 5
    assert CALLS == ["prior"] * 3 + ["decoder"] * 2


def test_replicas_that_die_again_and_again_end_a_request(service: Replicas) -> None:
    TROUBLES["prior"].extend([ActorDiedError()] * 20)
    with pytest.raises(RayError, match="the prior was lost 7 times under one request"):
        paint(service)
    assert len(CALLS) == replicas.TRIES


def test_errors_of_ours_come_out_as_they_are(service: Replicas) -> None:
    TROUBLES["decoder"].append(RunFailed("decoder: step 2 of 4 gave values that are not finite"))
    with pytest.raises(RunFailed, match="step 2 of 4"):
        paint(service)
    assert CALLS == ["prior", "decoder"]


def test_a_full_line_of_the_prior_says_when_to_come_again(service: Replicas) -> None:
    TROUBLES["prior"].extend([FULL] * 50)
    service.recent_seconds = 10.0
    with pytest.raises(Busy, match="the line is full; come again in 3 s") as found:
        paint(service)
    assert found.value.retry_after_seconds == 3  # ten seconds of work for each of four slots


def test_nothing_is_begun_for_a_decoder_whose_line_is_full(service: Replicas) -> None:
    service.at_decoder = 3
    with pytest.raises(Busy, match="the line is full"):
        paint(service)
    with pytest.raises(Busy, match="the line is full"):
        asyncio.run(service.decode(np.zeros((1, 16, 2, 2), np.float32), settings()))
    assert CALLS == []
    service.at_decoder = 2
    assert paint(service).images[0].seed == 5
    assert service.at_decoder == 2


def test_a_full_line_of_the_decoder_is_waited_out(service: Replicas) -> None:
    TROUBLES["decoder"].extend([FULL] * 8)
    assert paint(service).images[0].seed == 5
    assert CALLS.count("prior") == 1


def test_a_request_that_was_taken_in_once_waits_for_its_place(service: Replicas) -> None:
    TROUBLES["prior"].extend([ActorDiedError(), *[FULL] * 8])
    assert paint(service).images[0].seed == 5

    async def again() -> Painting:
        IS_ACCEPTED.set(True)
        return await service.paint(settings())

    TROUBLES["prior"].extend([FULL] * 8)
    assert asyncio.run(again()).images[0].seed == 5


def test_cancelling_the_await_cancels_the_replicas_work(service: Replicas) -> None:
    async def give_up() -> None:
        asked = asyncio.create_task(service.paint(settings("for long")))
        while not CALLS:
            await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises((asyncio.CancelledError, RequestCancelledError)):  # the latter is local mode's
            await asked
        deadline = time.monotonic() + 10
        while not CANCELLED and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    asyncio.run(give_up())
    assert CANCELLED == ["prior"]
