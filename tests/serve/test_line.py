"""Awaits over the thread that steps: many at once, cancelled, watched, closed."""

import asyncio
import gc
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from sote.cluster.errors import NoMemory, RequestError, RunFailed
from sote.serve.decoder import DecoderModel
from sote.serve.line import DecoderLine, LineLost, PriorLine
from sote.serve.prior import PriorModel
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.schema import GenerateRequest, resolve
from sote.serve.settings import Latents, Pixels, Progress, Settings

CPU = torch.device("cpu")
T = TypeVar("T")


@pytest.fixture(scope="module")
def prior(part: ModelPart) -> PriorModel:
    return PriorModel(part, device=CPU)


@pytest.fixture(scope="module")
def decoder(part: ModelPart) -> DecoderModel:
    return DecoderModel(part, device=CPU)


@pytest.fixture
def line(prior: PriorModel) -> Iterator[PriorLine]:
    made = PriorLine(prior, slots=4)
    yield made
    made.close()


def settings(small: DefaultsPart, **fields: Any) -> Settings:
    request = GenerateRequest.model_validate({"prompt": "a red circle", "seed": 4} | fields)
    return resolve(request, small, limits=LimitsPart(), random_seed=0)


def run(work: Callable[[], Awaitable[T]]) -> T:
    async def whole() -> T:
        async with asyncio.timeout(60):
            return await work()

    return asyncio.run(whole())


def rows(line: PriorLine) -> int:
    return line._line._stepper.rows


def assert_same(found: Latents, expected: Latents) -> None:
    assert np.abs(found.latents - expected.latents).max() <= 1e-5 * np.abs(expected.latents).max()
    np.testing.assert_array_equal(found.pooled, expected.pooled)


def test_awaits_at_once_step_together_and_each_has_its_own_answer(
    line: PriorLine, prior: PriorModel, small: DefaultsPart
) -> None:
    asked = [settings(small, seed=seed, first_stage_steps=10 + seed) for seed in range(8)]

    async def work() -> list[Latents]:
        return await asyncio.gather(*map(line.latents, asked))

    found = run(work)
    for latents, each in zip(found, asked, strict=True):
        assert_same(latents, prior.latents(each))
    occupancy = [count for latents in found for count in latents.work.occupancy]
    assert max(occupancy) > 1
    assert max(occupancy) <= 4
    steps = sum(count * times for latents in found for count, times in latents.work.occupancy.items())
    assert steps == sum(10 + seed for seed in range(8))
    assert found[7].work.waited_seconds > found[0].work.waited_seconds


def test_the_event_loop_stays_free_while_pictures_step(line: PriorLine, small: DefaultsPart) -> None:
    async def work() -> int:
        task, ticks = asyncio.ensure_future(line.latents(settings(small, first_stage_steps=50))), 0
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert run(work) > 10


def test_a_cancelled_await_leaves_the_next_step_whether_it_steps_or_waits(line: PriorLine, small: DefaultsPart) -> None:
    async def work() -> None:
        long = [
            asyncio.ensure_future(line.latents(settings(small, seed=seed, first_stage_steps=50))) for seed in range(6)
        ]
        while rows(line) < 4:
            await asyncio.sleep(0.001)
        for task in (long[0], long[5]):  # one steps, one waits
            task.cancel()
        ended = await asyncio.gather(*long, return_exceptions=True)
        kinds = [isinstance(each, asyncio.CancelledError) for each in ended]
        assert kinds == [True, False, False, False, False, True]
        assert rows(line) == 0

    run(work)


def test_a_cancelled_await_stops_the_work(line: PriorLine, small: DefaultsPart) -> None:
    async def work() -> None:
        task = asyncio.ensure_future(line.latents(settings(small, first_stage_steps=50, num_images=4)))
        while not rows(line):
            await asyncio.sleep(0.001)
        task.cancel()
        begin = time.monotonic()
        while rows(line):
            await asyncio.sleep(0.001)
        assert time.monotonic() - begin < 5  # 50 steps of four pictures take longer than one

    run(work)


def test_progress_comes_with_previews_and_the_answer_comes_last(
    line: PriorLine, prior: PriorModel, small: DefaultsPart
) -> None:
    asked = settings(small, first_stage_steps=20)

    async def work() -> list[Progress | Latents]:
        return [each async for each in line.watched(asked)]

    *steps, answer = run(work)
    assert isinstance(answer, Latents)
    assert_same(answer, prior.latents(asked))
    seen = [each for each in steps if isinstance(each, Progress)]
    assert len(seen) == len(steps)
    assert [each.step for each in seen] == sorted({each.step for each in seen})
    assert seen[-1].step == 20
    assert all(each.preview is not None and each.preview.startswith(b"\xff\xd8") for each in seen)


def test_who_stops_watching_takes_the_request_away(line: PriorLine, small: DefaultsPart) -> None:
    async def work() -> None:
        steps = line.watched(settings(small, first_stage_steps=50))
        async for _ in steps:
            break
        await steps.aclose()
        async with asyncio.timeout(5):
            while rows(line):
                await asyncio.sleep(0.001)

    run(work)


def test_an_error_is_its_own_request_s_alone(line: PriorLine, prior: PriorModel, small: DefaultsPart) -> None:
    bad = replace(settings(small), start=np.zeros((9 * 32, 6 * 32, 3), np.uint8))
    assert prior.weights.encoder is None

    async def work() -> list[Any]:
        return await asyncio.gather(
            line.latents(settings(small)), line.latents(bad), _last(line, bad), return_exceptions=True
        )

    good, wrong, watched = run(work)
    assert isinstance(good, Latents)
    assert isinstance(wrong, RequestError)
    assert isinstance(watched, RequestError)


async def _last(line: PriorLine, asked: Settings) -> Any:
    return [each async for each in line.watched(asked)][-1]


def test_pooled_text_is_read_while_all_slots_are_taken(line: PriorLine, prior: PriorModel, small: DefaultsPart) -> None:
    async def work() -> None:
        task = asyncio.ensure_future(line.latents(settings(small, first_stage_steps=50, num_images=4)))
        pooled = await line.pooled(settings(small))
        assert not task.done()
        np.testing.assert_array_equal(pooled, prior.pooled(settings(small)))
        await task

    run(work)


def test_what_is_answered_or_given_up_is_let_go_at_once(
    line: PriorLine, prior: PriorModel, small: DefaultsPart
) -> None:
    """Without waiting for Python to look for objects that hold each other: on a GPU that would be gigabytes."""
    seen: list[weakref.ref[Any]] = []
    begin = prior.request

    def watching(asked: Settings, **fields: Any) -> Any:
        request = begin(asked, **fields)
        seen.extend(weakref.ref(row) for row in request.rows)
        seen.extend(weakref.ref(row.conditional) for row in request.rows)
        return request

    async def work() -> None:
        await line.latents(settings(small, num_images=2))
        task = asyncio.ensure_future(line.latents(settings(small, first_stage_steps=50)))
        while not rows(line):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await line.latents(settings(small))  # a step further, what was given up is gone

    gc.disable()
    try:
        prior.request = watching  # type: ignore[method-assign]
        run(work)
        deadline = time.monotonic() + 10
        while any(each() is not None for each in seen) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(seen) >= 6
        assert [each() for each in seen if each() is not None] == []
    finally:
        del prior.request
        gc.enable()


def test_a_closed_line_says_so_and_whoever_waits_is_told(prior: PriorModel, small: DefaultsPart) -> None:
    line = PriorLine(prior, slots=1)
    line.check()

    async def work() -> list[Any]:
        tasks = [asyncio.ensure_future(line.latents(settings(small, first_stage_steps=50))) for _ in range(3)]
        while not rows(line):
            await asyncio.sleep(0.001)
        await asyncio.to_thread(line.close)
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(each, LineLost) for each in run(work))
    with pytest.raises(LineLost, match="prior: the thread that steps has ended"):
        line.check()
    with pytest.raises(LineLost):
        run(lambda: line.latents(settings(small)))


def test_a_device_that_fails_ends_the_line(part: ModelPart, small: DefaultsPart) -> None:
    model = PriorModel(part, device=CPU)
    line = PriorLine(model, slots=4)

    def die(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    model.weights.unet.embedding.register_forward_pre_hook(die)
    with pytest.raises(LineLost):
        run(lambda: line.latents(settings(small)))
    line._line._thread.join(timeout=10)
    with pytest.raises(LineLost):
        line.check()


def test_a_device_without_room_is_an_error_of_the_request_and_the_line_goes_on(
    part: ModelPart, small: DefaultsPart
) -> None:
    model = PriorModel(part, device=CPU)
    line = PriorLine(model, slots=4)

    def full(_: Any, args: tuple[torch.Tensor]) -> None:
        if args[0].shape[1] > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.weights.unet.embedding.register_forward_pre_hook(full)
    with pytest.raises(NoMemory, match="ask for a smaller one"):
        run(lambda: line.latents(settings(small, image_size={"width": 256, "height": 512})))
    assert run(lambda: line.latents(settings(small))).latents.shape == (1, 16, 9, 6)
    line.close()


def test_the_decoder_s_pictures_are_those_of_its_model(
    prior: PriorModel, decoder: DecoderModel, small: DefaultsPart
) -> None:
    line = DecoderLine(decoder, slots=4)
    asked = settings(small, num_images=2)
    latents = prior.latents(asked)

    async def work() -> list[Any]:
        return [each async for each in line.watched(latents, asked)]

    alone, _ = decoder.paint(latents, asked)
    answer = run(lambda: line.paint(latents, asked))
    *steps, watched = run(work)
    line.close()
    assert [each.data for each in answer.images] == [each.data for each in alone]
    assert [each.data for each in watched.images] == [each.data for each in alone]
    assert answer.flagged is None
    assert answer.work.occupancy == {2: 4}
    assert steps[-1].stage == "decoder"
    assert steps[-1].step == 4


def test_broken_numbers_of_stage_a_are_an_error(part: ModelPart, prior: PriorModel, small: DefaultsPart) -> None:
    model = DecoderModel(part, device=CPU)
    with torch.no_grad():
        for values in model.weights.vqgan.parameters():
            values.fill_(float("nan"))
    line = DecoderLine(model, slots=2)
    with pytest.raises(RunFailed, match="vqgan: "):
        run(lambda: line.paint(prior.latents(settings(small)), settings(small)))
    line.close()


def test_a_tagger_looks_at_each_picture(part: ModelPart, prior: PriorModel, small: DefaultsPart) -> None:
    class Brightness:
        def flagged(self, pixels_HWC: Pixels) -> tuple[str, ...]:
            assert pixels_HWC.shape == (384, 256, 3)
            return (f"mean {pixels_HWC.mean():.3f}",)

    model = DecoderModel(part, device=CPU)
    model.looker = Brightness()  # type: ignore[assignment]
    line, asked = DecoderLine(model, slots=2), settings(small, num_images=2)
    answer = run(lambda: line.paint(prior.latents(asked), asked))
    line.close()
    assert answer.flagged == tuple((f"mean {np.asarray(each.image).mean():.3f}",) for each in answer.images)
