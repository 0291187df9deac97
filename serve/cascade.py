"""The whole cascade in one process: for notebooks, `sote generate`, samples of a training, and tests of the routes.

The server runs the same two models in replicas.

Kind: actor.
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from sote.serve import room
from sote.serve.decoder import DecoderModel
from sote.serve.line import DecoderAnswer, DecoderLine, PriorLine
from sote.serve.pictures import Painted
from sote.serve.prior import PriorModel
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart, SafetyPart
from sote.serve.schema import GenerateRequest, resolve
from sote.serve.service import Painting, Watch
from sote.serve.settings import MAX_SEED, Latents, Numbers, Progress, Settings, Work

A = TypeVar("A")


@dataclass(frozen=True)
class Cascade:
    """Both models, each by what gives it when it is its turn, and the defaults for what a request does not say."""

    prior: Callable[[], PriorModel]
    decoder: Callable[[], DecoderModel]
    defaults: DefaultsPart
    limits: LimitsPart

    @classmethod
    def load(
        cls,
        part: ModelPart,
        *,
        defaults: DefaultsPart | None = None,
        limits: LimitsPart | None = None,
        sequential: bool = False,
    ) -> "Cascade":
        """Load the weights that `part` names, on the GPU if there is one. `sequential`: they are loaded for each
        request, one model after the other, so that the two are never in memory together.

        Raises WeightsError or CheckpointError where they are missing or are not what `part` takes them for.
        """
        defaults, limits = defaults or DefaultsPart(), limits or LimitsPart()
        if sequential:
            return cls(lambda: PriorModel(part, limits=limits), lambda: DecoderModel(part), defaults, limits)
        prior, decoder = PriorModel(part, limits=limits), DecoderModel(part)
        return cls(lambda: prior, lambda: decoder, defaults, limits)

    def generate(self, request: GenerateRequest | str, **fields: Any) -> list[Painted]:
        """The pictures of a request, or of a prompt and other fields of a request by name.

        The same request with a seed gives the same bytes on the same machine. Raises RequestError beyond the limits,
        pydantic's ValidationError for what is no field or value of a request, RunFailed where values are not finite,
        NoMemory.
        """
        if isinstance(request, str):
            request = GenerateRequest.model_validate({"prompt": request} | fields)
        seed = secrets.randbelow(MAX_SEED + 1)
        return self.paint([resolve(request, self.defaults, limits=self.limits, random_seed=seed)])[0]

    def paint(self, asked: Sequence[Settings]) -> list[list[Painted]]:
        """The pictures of each of several settings: all through the prior, then all through the decoder."""
        prior = self.prior()
        latents, device = [prior.latents(settings) for settings in asked], prior.device
        del prior
        room.free(device)
        decoder = self.decoder()
        return [decoder.paint(each, settings)[0] for each, settings in zip(latents, asked, strict=True)]


class Local:
    """The service of `service.Service` without replicas: both models in this process, each with its line."""

    def __init__(self, prior: PriorModel, decoder: DecoderModel, *, slots: int) -> None:
        self.prior, self.decoder = PriorLine(prior, slots=slots), DecoderLine(decoder, slots=slots)

    @classmethod
    def load(
        cls, part: ModelPart, *, slots: int = 8, safety: SafetyPart | None = None, limits: LimitsPart | None = None
    ) -> "Local":
        """Load the weights that `part` names. Raises as `Cascade.load`."""
        return cls(PriorModel(part, limits=limits), DecoderModel(part, safety=safety), slots=slots)

    async def paint(self, settings: Settings, *, watch: Watch | None = None) -> Painting:
        """As `Service.paint`."""
        begin = time.monotonic()
        if watch is None:
            latents = await self.prior.latents(settings)
        else:
            latents = await _watched(self.prior.watched(settings), watch)
        return await self._painted(latents, settings, begin=begin, watch=watch)

    async def decode(self, latents: Numbers, settings: Settings, *, watch: Watch | None = None) -> Painting:
        """As `Service.decode`."""
        begin = time.monotonic()
        pooled = await self.prior.pooled(settings)
        given = Latents(np.asarray(latents, np.float32), pooled, Work("prior", 0.0, 0.0, 0.0), ())
        return await self._painted(given, settings, begin=begin, watch=watch)

    async def deployments(self) -> dict[str, str]:
        """As `Service.deployments`. Raises LineLost where one has ended."""
        self.prior.check()
        self.decoder.check()
        return {"Prior": "HEALTHY", "Decoder": "HEALTHY"}

    def close(self) -> None:
        """End both lines."""
        self.prior.close()
        self.decoder.close()

    async def _painted(self, latents: Latents, settings: Settings, *, begin: float, watch: Watch | None) -> Painting:
        answer: DecoderAnswer
        if watch is None:
            answer = await self.decoder.paint(latents, settings)
        else:
            answer = await _watched(self.decoder.watched(latents, settings), watch)
        return Painting(
            images=tuple(answer.images),
            work=(latents.work, answer.work),
            seconds=time.monotonic() - begin,
            warnings=latents.warnings,
            prompt_tokens=latents.prompt_tokens,
            flagged=answer.flagged,
        )


async def _watched(steps: AsyncIterator[Progress | A], watch: Watch) -> A:
    """The answer that comes after the progress."""
    answers = []
    async for each in steps:
        if isinstance(each, Progress):
            watch(each)
        else:
            answers.append(each)
    return answers[-1]
