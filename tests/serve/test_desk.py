"""The desk before a service that paints pictures of one colour, at once or when it is told."""

import asyncio
import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.exceptions import ActorDiedError

from sote.cluster.errors import AccessError, Busy, NoMemory, RequestError, RunFailed
from sote.serve import pictures
from sote.serve.access import Visitor
from sote.serve.desk import Account, Desk, Withheld, reason_of
from sote.serve.figures import Figures
from sote.serve.keys import Limits
from sote.serve.pictures import Painted
from sote.serve.recipe import DefaultsPart, LimitsPart, SafetyPart, ServeRecipe
from sote.serve.schema import GenerateRequest, ImageSize
from sote.serve.service import Painting, Watch
from sote.serve.settings import Numbers, Progress, Settings, Work


@dataclass
class OneColour:
    """Pictures whose colour is their seed. `gate` is awaited before each painting; `error` is raised after it."""

    gate: asyncio.Event | None = None
    error: BaseException | None = None
    flagged: tuple[tuple[str, ...], ...] | None = None
    asked: list[Settings] = field(default_factory=list)
    given_up: int = 0

    async def paint(self, settings: Settings, *, watch: Watch | None = None) -> Painting:
        self.asked.append(settings)
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.error is not None:
            raise self.error
        if watch is not None:
            watch(Progress("prior", settings.prior.steps, settings.prior.steps))
        images = tuple(self._picture(settings, index) for index in range(settings.images))
        work = Work("prior", 0.5, 0.1, megapixel_steps=1.0, occupancy={1: 4})
        return Painting(images, (work,), 2.4, warnings=(), prompt_tokens=1, flagged=self.flagged)

    async def decode(self, latents: Numbers, settings: Settings, *, watch: Watch | None = None) -> Painting:
        return await self.paint(replace(settings, images=len(latents)), watch=watch)

    async def deployments(self) -> dict[str, str]:
        return {"OneColour": "HEALTHY"}

    def _picture(self, settings: Settings, index: int) -> Painted:
        seed = settings.image_seed(index)
        pixels = np.full((settings.height, settings.width, 3), seed % 256, np.uint8)
        data = pictures.encode(pixels, "png", parameters="")
        return Painted(data, "png", settings.width, settings.height, seed, "", np.zeros((16, 6, 6), np.float32))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


DEFAULTS = DefaultsPart(width=256, height=256, prior_steps=6, decoder_steps=4)
ASKED = GenerateRequest(prompt="1girl, solo", seed=7)


def desk_of(service: OneColour, *, safety: SafetyPart = SafetyPart(), clock: Clock | None = None) -> Desk:  # noqa: B008
    recipe = ServeRecipe(run="run", defaults=DEFAULTS, safety=safety, limits=LimitsPart(max_images=10))
    return Desk(recipe, service, Figures(), clock=clock or Clock())


def visitor(**limits: int) -> Visitor:
    return Visitor("ada", Limits(**limits) if limits else None, "r-1")


def ask(desk: Desk, who: Visitor, asked: GenerateRequest = ASKED) -> Painting:
    async def whole() -> Painting:
        return await desk.paint(await desk.settings(asked, who), who)

    return asyncio.run(whole())


def counted(desk: Desk, name: str) -> float:
    return desk.figures.registry.get_sample_value(*_parts(name)) or 0.0


def _parts(name: str) -> tuple[str, dict[str, str]]:
    metric, _, labels = name.rstrip("}").partition("{")
    return metric, dict(part.split("=") for part in labels.split(",") if part)


def test_a_request_becomes_settings_and_settings_become_pictures_that_are_counted() -> None:
    desk, who, steps = desk_of(OneColour()), visitor(), []

    async def whole() -> Painting:
        settings = await desk.settings(ASKED.model_copy(update={"num_images": 2}), who)
        return await desk.paint(settings, who, watch=steps.append)

    painting = asyncio.run(whole())
    assert [picture.seed for picture in painting.images] == [7, 8]
    assert painting.images[1].image.getpixel((0, 0)) == (8, 8, 8)
    assert [each.step for each in steps] == [6]
    assert who.tally.images == 2
    assert counted(desk, "sote_images_total{format=png}") == 2
    assert counted(desk, "sote_paintings_in_flight") == 0


def test_latents_are_decoded_under_the_same_rules() -> None:
    desk, latents = desk_of(OneColour()), np.zeros((3, 16, 6, 6), np.float32)

    async def whole() -> Painting:
        who = visitor(requests_per_minute=1)
        settings = await desk.settings(ASKED, who)
        painting = await desk.decode(latents, settings, who)
        with pytest.raises(Busy):
            await desk.decode(latents, settings, who)
        return painting

    assert len(asyncio.run(whole()).images) == 3
    assert counted(desk, "sote_failures_total{reason=busy}") == 1


def test_a_request_with_a_picture_is_read_off_the_loop() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    asked = ASKED.model_copy(update={"image_url": url, "strength": 0.5})
    settings = asyncio.run(desk_of(OneColour()).settings(asked, visitor()))
    assert settings.start is not None
    assert settings.start[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("limit", "changes", "told"),
    [
        ("max_pixels", {"image_size": ImageSize(width=384, height=256)}, "image_size: 384x256 is 98304 pixels"),
        ("max_steps", {"first_stage_steps": 7}, "11 steps of both stages"),
        ("max_steps", {"second_stage_steps": 5}, "11 steps of both stages"),
        ("max_images", {"num_images": 3}, "num_images: 3"),
    ],
)
def test_a_key_has_limits_that_are_named(limit: str, changes: dict[str, Any], told: str) -> None:
    most = {"max_pixels": 256 * 256, "max_steps": 10, "max_images": 2}
    service = OneColour()
    desk, who = desk_of(service), visitor(**most)
    ask(desk, who, ASKED.model_copy(update={"num_images": 2}))  # just what it may
    with pytest.raises(AccessError) as raised:
        ask(desk, who, ASKED.model_copy(update=changes))
    assert raised.value.status == 403
    assert str(raised.value).startswith(told)
    assert f"key 'ada' may have at most {most[limit]} ({limit})" in str(raised.value)
    assert counted(desk, f"sote_refusals_total{{limit={limit}}}") == 1
    assert len(service.asked) == 1
    ask(desk, visitor(), ASKED.model_copy(update=changes))  # another key's limits are none


def test_a_rate_says_exactly_when_to_come_again() -> None:
    clock = Clock()
    desk, who = desk_of(OneColour(), clock=clock), visitor(requests_per_minute=4)
    for _ in range(4):
        ask(desk, who)
    with pytest.raises(Busy, match="4 requests a minute; come again in 15 s") as raised:
        ask(desk, who)
    assert raised.value.retry_after_seconds == 15  # a fourth of a minute
    clock.now += 14.9
    with pytest.raises(Busy, match="come again in 1 s"):
        ask(desk, who)
    clock.now += 0.1
    ask(desk, who)
    clock.now += 3600
    for _ in range(4):  # a long rest saves up no more than a minute's
        ask(desk, who)
    with pytest.raises(Busy):
        ask(desk, who)
    assert counted(desk, "sote_refusals_total{limit=requests_per_minute}") == 3


def test_keys_have_rates_of_their_own_and_local_has_none() -> None:
    desk = desk_of(OneColour())
    ask(desk, visitor(requests_per_minute=1))
    ask(desk, Visitor("grace", Limits(requests_per_minute=1), "r"))
    for _ in range(10):
        ask(desk, Visitor("local", None, "r"))
    with pytest.raises(Busy):
        ask(desk, visitor(requests_per_minute=1))


def test_a_rate_that_the_file_now_has_otherwise_counts_at_once() -> None:
    account = Account()
    assert account.take(2, 0.0) == account.take(2, 0.0) == 0
    assert account.take(2, 0.0) == pytest.approx(30)
    assert account.take(60, 1.0) == 0  # one a second now


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def test_a_place_is_given_back_when_a_request_ends_fails_or_is_given_up() -> None:
    async def whole() -> None:
        service = OneColour(gate=asyncio.Event())
        desk, who = desk_of(service), visitor(concurrency=2)
        settings = await desk.settings(ASKED, who)
        first, second = (asyncio.create_task(desk.paint(settings, who)) for _ in range(2))
        await _until(lambda: len(service.asked) == 2)
        with pytest.raises(Busy, match="key 'ada' may make 2 requests at once") as raised:
            await desk.paint(settings, who)
        assert raised.value.retry_after_seconds == 1
        await asyncio.gather(*[asyncio.create_task(_cancelled(first))])
        assert service.given_up == 1
        third = asyncio.create_task(desk.paint(settings, who))
        await _until(lambda: len(service.asked) == 3)
        service.error = RunFailed("prior, step 3: values are not finite")
        assert service.gate is not None
        service.gate.set()
        ended = await asyncio.gather(second, third, return_exceptions=True)
        assert [type(each) for each in ended] == [RunFailed, RunFailed]
        service.error = None
        await desk.paint(settings, who)
        assert desk.accounts["ada"].running == 0
        assert counted(desk, "sote_failures_total{reason=cancelled}") == 1
        assert counted(desk, "sote_failures_total{reason=failed}") == 2
        assert counted(desk, "sote_refusals_total{limit=concurrency}") == 1
        assert counted(desk, "sote_paintings_in_flight") == 0

    asyncio.run(whole())


async def _cancelled(task: asyncio.Task[Painting]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_busy_key_is_told_the_time_that_a_painting_took() -> None:
    async def whole() -> None:
        service = OneColour()
        desk, who = desk_of(service), visitor(concurrency=1)
        settings = await desk.settings(ASKED, who)
        await desk.paint(settings, who)  # 2.4 s, it says
        service.gate = asyncio.Event()
        task = asyncio.create_task(desk.paint(settings, who))
        await _until(lambda: len(service.asked) == 2)
        with pytest.raises(Busy, match="come again in 3 s"):
            await desk.paint(settings, who)
        await _cancelled(task)

    asyncio.run(whole())


def test_a_refusal_for_concurrency_does_not_use_up_the_rate() -> None:
    async def whole() -> None:
        service = OneColour(gate=asyncio.Event())
        desk, who = desk_of(service), visitor(concurrency=1, requests_per_minute=2)
        settings = await desk.settings(ASKED, who)
        task = asyncio.create_task(desk.paint(settings, who))
        await _until(lambda: len(service.asked) == 1)
        for _ in range(5):
            with pytest.raises(Busy, match="at once"):
                await desk.paint(settings, who)
        assert service.gate is not None
        service.gate.set()
        await task
        await desk.paint(settings, who)

    asyncio.run(whole())


def test_a_blocked_tag_is_refused_before_anything_is_painted_and_a_negative_prompt_may_have_it() -> None:
    service = OneColour()
    desk = desk_of(service, safety=SafetyPart(blocked_tags=("gore",)))
    with pytest.raises(RequestError, match=r"prompt: the tag 'gore' is not painted on this server"):
        ask(desk, visitor(), ASKED.model_copy(update={"prompt": "1girl, (GORE:1.3)"}))
    assert service.asked == []
    assert counted(desk, "sote_refusals_total{limit=blocked_tags}") == 1
    ask(desk, visitor(), ASKED.model_copy(update={"negative_prompt": "gore"}))


def test_a_picture_that_the_tagger_flags_is_withheld_and_says_why() -> None:
    desk, who = desk_of(OneColour(flagged=((), ("gore 0.93", "blood 0.71")))), visitor()
    told = r"images: picture 2 was withheld, the server's tagger finds: gore 0\.93, blood 0\.71"
    with pytest.raises(Withheld, match=told):
        ask(desk, who, ASKED.model_copy(update={"num_images": 2}))
    assert who.tally.images == 0
    assert counted(desk, "sote_images_total{format=png}") == 0
    assert counted(desk, "sote_failures_total{reason=withheld}") == 1
    ask(desk_of(OneColour(flagged=((),))), who)  # looked at, and nothing found


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Busy("full", retry_after_seconds=1), "busy"),
        (Withheld("images: withheld"), "withheld"),
        (RequestError("prompt: bad"), "refused"),
        (AccessError("no", status=403), "refused"),
        (NoMemory("2560x2560"), "no memory"),
        (RunFailed("prior, step 1"), "failed"),
        (asyncio.CancelledError(), "cancelled"),
        (ActorDiedError(), "lost"),
        (ValueError("a bug"), "error"),
    ],
)
def test_what_ends_a_painting_has_one_word_and_goes_on_as_it_is(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason
    desk = desk_of(OneColour(error=error))
    with pytest.raises(type(error)):
        ask(desk, visitor())
    assert counted(desk, f"sote_failures_total{{reason={reason}}}") == 1


def test_prompts_are_not_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level("DEBUG")
    ask(desk_of(OneColour()), visitor(), ASKED.model_copy(update={"prompt": "a very secret prompt"}))
    assert "secret" not in caplog.text
