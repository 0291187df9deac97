"""The desk: the one way from every route to the models. It holds to what a key may ask for and counts what came of it.

Rates and concurrency are kept in this process, by the name of the key.

Kind: wiring.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from sote.cluster.errors import AccessError, Busy, NoMemory, RequestError, RunFailed, UserError
from sote.serve.access import Visitor
from sote.serve.figures import Figures, LimitName, Reason
from sote.serve.keys import Limits
from sote.serve.recipe import ServeRecipe
from sote.serve.safety import BlockList
from sote.serve.schema import GenerateRequest, resolve
from sote.serve.service import Painting, Service, Watch
from sote.serve.settings import MAX_SEED, Numbers, Settings

Clock = Callable[[], float]


class Withheld(RequestError):
    """A picture was painted, and the server's tagger found in it what is not handed out."""


@dataclass
class Account:
    """What a key has used. `tokens`: requests that it may still make at once; None before the first."""

    running: int = 0
    tokens: float | None = None
    filled: float = 0.0

    def take(self, per_minute: int, now: float) -> float:
        """Take the right to one request. Returns 0, or the seconds until there is one, and then takes none."""
        rate = per_minute / 60
        tokens = per_minute if self.tokens is None else self.tokens + (now - self.filled) * rate
        self.tokens, self.filled = min(tokens, per_minute), now
        if self.tokens < 1:
            return (1 - self.tokens) / rate
        self.tokens -= 1
        return 0.0


@dataclass
class Desk:
    """Settings out of requests, and paintings out of settings."""

    recipe: ServeRecipe
    service: Service
    figures: Figures
    clock: Clock = time.monotonic
    accounts: dict[str, Account] = field(default_factory=dict)
    recent_seconds: float = 1.0  # of the last painting: when a place at a key's limit will be free

    def __post_init__(self) -> None:
        self.blocked = BlockList.of(self.recipe.safety)

    async def settings(self, asked: GenerateRequest, visitor: Visitor) -> Settings:
        """What `asked` means here. Raises RequestError for what cannot be made or is not painted here, AccessError
        (403) for what the visitor's key may not ask for."""
        if asked.image_url is None and not asked.variation_image_urls:
            settings = self._resolve(asked)
        else:  # reading pictures takes up to a second
            settings = await asyncio.to_thread(self._resolve, asked)
        if found := self.blocked.found(settings.prompt):
            self.figures.refused("blocked_tags")
            raise RequestError(f"prompt: the tag {found[0]!r} is not painted on this server")
        self._hold(settings, visitor)
        return settings

    async def paint(self, settings: Settings, visitor: Visitor, *, watch: Watch | None = None) -> Painting:
        """The pictures of `settings`. Raises what `Service` does, Busy at the key's rate or concurrency, and Withheld
        for what the tagger found."""
        return await self._counted(lambda: self.service.paint(settings, watch=watch), settings, visitor)

    async def decode(
        self, latents: Numbers, settings: Settings, visitor: Visitor, *, watch: Watch | None = None
    ) -> Painting:
        """The pictures of latents [B, 16, h, w]. Raises as `paint` does."""
        return await self._counted(lambda: self.service.decode(latents, settings, watch=watch), settings, visitor)

    def _resolve(self, asked: GenerateRequest) -> Settings:
        recipe = self.recipe
        return resolve(asked, recipe.defaults, limits=recipe.limits, random_seed=secrets.randbelow(MAX_SEED + 1))

    async def _counted(self, work: Callable[[], Awaitable[Painting]], settings: Settings, visitor: Visitor) -> Painting:
        with self._failures(), self._admitted(visitor), self.figures.paintings_in_flight.track_inprogress():
            painting = await work()
            self.recent_seconds = painting.seconds
            _check_flagged(painting)
        self.figures.painted(painting, settings)
        visitor.tally.images += len(painting.images)
        return painting

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Counts what ends the block otherwise than well."""
        try:
            yield
        except BaseException as error:
            self.figures.failed(reason_of(error))
            raise

    @contextlib.contextmanager
    def _admitted(self, visitor: Visitor) -> Iterator[None]:
        """Holds one of the places that the visitor's key has. Raises Busy: none is free, or it asks too often."""
        limits = visitor.limits or Limits()
        account = self.accounts.setdefault(visitor.name, Account())
        if limits.concurrency is not None and account.running >= limits.concurrency:
            what = f"{limits.concurrency} requests at once, and they are under way"
            self._busy("concurrency", visitor, what, seconds=self.recent_seconds)
        if limits.requests_per_minute is not None:
            seconds = account.take(limits.requests_per_minute, self.clock())
            if seconds > 0:
                what = f"{limits.requests_per_minute} requests a minute"
                self._busy("requests_per_minute", visitor, what, seconds=seconds)
        account.running += 1
        try:
            yield
        finally:
            account.running -= 1

    def _busy(self, limit: LimitName, visitor: Visitor, what: str, *, seconds: float) -> NoReturn:
        self.figures.refused(limit)
        wait = max(math.ceil(seconds), 1)
        raise Busy(f"key {visitor.name!r} may make {what}; come again in {wait} s", retry_after_seconds=wait)

    def _hold(self, settings: Settings, visitor: Visitor) -> None:
        """Raises AccessError for what is beyond the limits of the visitor's key."""
        limits = visitor.limits or Limits()
        size = f"{settings.width}x{settings.height}"
        asked: tuple[tuple[LimitName, int, int | None, str], ...] = (
            ("max_pixels", settings.width * settings.height, limits.max_pixels, f"image_size: {size} is {{}} pixels"),
            ("max_steps", settings.prior.steps + settings.decoder.steps, limits.max_steps, "{} steps of both stages"),
            ("max_images", settings.images, limits.max_images, "num_images: {}"),
        )
        for limit, value, most, text in asked:
            if most is not None and value > most:
                self.figures.refused(limit)
                raise AccessError(
                    f"{text.format(value)} asked for, key {visitor.name!r} may have at most {most} ({limit})",
                    status=403,
                )


def reason_of(error: BaseException) -> Reason:
    """The word under which a failed painting is counted."""
    match error:
        case Busy():
            return "busy"
        case Withheld():
            return "withheld"
        case UserError():
            return "refused"
        case NoMemory():
            return "no memory"
        case RunFailed():
            return "failed"
        case asyncio.CancelledError():
            return "cancelled"
    # Ray's errors by their home: ray itself is not loaded for the sake of a name
    return "lost" if type(error).__module__.split(".")[0] == "ray" else "error"


def _check_flagged(painting: Painting) -> None:
    """Raises Withheld, naming each picture that is not handed out and why."""
    flagged = [(number, tags) for number, tags in enumerate(painting.flagged or (), start=1) if tags]
    if flagged:
        told = "; ".join(
            f"picture {number} was withheld, the server's tagger finds: {', '.join(tags)}" for number, tags in flagged
        )
        raise Withheld(f"images: {told}")
