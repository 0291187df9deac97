"""OpenAI's API for images: POST /v1/images/generations, at once or as a stream of events, and GET /v1/models.

Source: openai-python 3.54, which drives these routes as they are (resources/images.py, _streaming.py).

Kind: wiring.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sote.cluster.errors import RequestError
from sote.serve import addresses
from sote.serve.access import Visitor, visitor_of
from sote.serve.answers import NoSuchModel, body_of, documented, failure_of
from sote.serve.context import Context
from sote.serve.pictures import Painted
from sote.serve.schema import renamed
from sote.serve.schema_openai import (
    NAMES,
    ImageData,
    ImageEvent,
    ImagesRequest,
    ImagesResponse,
    InputDetails,
    ModelCard,
    ModelList,
    Usage,
)
from sote.serve.service import Painting, Watch
from sote.serve.settings import Progress, Settings

STILL_SECONDS = 15.0  # without an event a comment is sent: proxies cut silent streams
EVENT: dict[str, Any] = {  # as FastAPI writes events: OpenAPI 3.2's itemSchema
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["image_generation.partial_image", "image_generation.completed", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
STREAM = {"itemSchema": EVENT, "example": "event: image_generation.completed\ndata: {...}\n\n"}
ANSWERS: dict[int | str, dict[str, Any]] = documented("openai", 400, 404, 429, 503) | {
    200: {
        "content": {"text/event-stream": STREAM},
        "description": "JSON; with `stream` events `image_generation.partial_image` and `image_generation.completed`",
    }
}


def routes(context: Context) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["openai"])
    created = int(time.time())

    def card() -> ModelCard:
        return ModelCard(id=context.about.name, created=created)

    @router.post(
        "/v1/images/generations",
        response_model=ImagesResponse,
        response_model_exclude_none=True,
        responses=ANSWERS,
        summary="Make pictures, for OpenAI's clients",
    )
    async def generations(asked: ImagesRequest, request: Request) -> Response:
        visitor = visitor_of(request)
        try:
            settings = await context.desk.settings(asked.native(), visitor)
            if asked.stream:
                return await _streamed(asked, settings, visitor=visitor, context=context)
            painting = await context.desk.paint(settings, visitor)
        except RequestError as error:
            raise renamed(error, NAMES) from error
        if asked.response_format == "b64_json":
            data = [ImageData(b64_json=_base64(painted.data), seed=painted.seed) for painted in painting.images]
        else:
            urls = await addresses.kept(painting.images, request, context.results)
            data = [ImageData(url=url, seed=painted.seed) for url, painted in zip(urls, painting.images, strict=True)]
        whole = _whole(data, painting, settings, asked)
        if asked.model not in (None, context.about.name):  # many clients have a name that cannot be changed
            whole.warnings.append(_no_model(asked.model, context.about.name))
        return JSONResponse(whole.model_dump(exclude_none=True))

    @router.get("/v1/models", summary="The model, for OpenAI's clients")
    async def models() -> ModelList:
        return ModelList(data=[card()])

    @router.get("/v1/models/{model}", summary="The model by its name", responses=documented("openai", 404))
    async def model(model: str) -> ModelCard:
        if model != context.about.name:
            raise NoSuchModel(_no_model(model, context.about.name))
        return card()

    return router


def _no_model(asked: str, served: str) -> str:
    return f"model: {asked[:200]!r} is not here; this server has {served!r}"


def _whole(data: list[ImageData], painting: Painting, settings: Settings, asked: ImagesRequest) -> ImagesResponse:
    if settings.prompt != asked.prompt:
        data = [each.model_copy(update={"revised_prompt": settings.prompt}) for each in data]
    return ImagesResponse(
        created=int(time.time()),
        data=data,
        size=f"{settings.width}x{settings.height}",
        output_format=settings.output_format,
        usage=_usage(painting.images, painting.prompt_tokens),
        warnings=list(painting.warnings),
    )


def _usage(images: tuple[Painted, ...], tokens: int) -> Usage:
    cells = sum(painted.latents.shape[-2] * painted.latents.shape[-1] for painted in images)
    return Usage(
        input_tokens=tokens,
        output_tokens=cells,
        total_tokens=tokens + cells,
        input_tokens_details=InputDetails(text_tokens=tokens),
    )


async def _streamed(asked: ImagesRequest, settings: Settings, *, visitor: Visitor, context: Context) -> Response:
    """The events of a painting. What refuses it at once is an error with its own status, as without a stream."""
    watched = Watched.start(lambda watch: context.desk.paint(settings, visitor, watch=watch))
    try:
        first = await watched.seen.get()
        if first is None:
            watched.task.result()
    except BaseException:
        watched.task.cancel()
        raise
    partial = Partial(asked.partial_images or 0, settings.prior.steps, settings.decoder.steps)
    return EventStream(_events(watched, first, partial, size=f"{settings.width}x{settings.height}"), watched)


@dataclass(frozen=True, eq=False)
class Watched:
    """A painting under way. In `seen` is its progress, and None once it is done."""

    task: asyncio.Task[Painting]
    seen: asyncio.Queue[Progress | None]

    @staticmethod
    def start(paint: Callable[[Watch], Coroutine[Any, Any, Painting]]) -> "Watched":
        seen: asyncio.Queue[Progress | None] = asyncio.Queue()
        task = asyncio.create_task(paint(seen.put_nowait))
        task.add_done_callback(lambda _: seen.put_nowait(None))
        return Watched(task, seen)


class EventStream(StreamingResponse):
    """Server-sent events of a painting. Who leaves ends it, whether the first event was sent or not."""

    def __init__(self, events: AsyncIterator[bytes], watched: Watched) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.watched = watched

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.watched.task.cancel()


async def _events(watched: Watched, first: Progress | None, partial: "Partial", *, size: str) -> AsyncIterator[bytes]:
    progress: Progress | None = first
    while progress is not None:
        if (preview := partial.due(progress)) is not None:
            yield _event(_partial(preview, index=partial.sent - 1, size=size))
        is_still = True
        while is_still:
            try:
                progress, is_still = await asyncio.wait_for(watched.seen.get(), STILL_SECONDS), False
            except TimeoutError:
                yield b": still at work\n\n"
    try:
        painting = watched.task.result()
    except Exception as error:  # noqa: BLE001  the answer has begun: the error is its last event
        told = body_of(failure_of(error), "openai")
        yield f"event: error\ndata: {json.dumps({'type': 'error'} | told)}\n\n".encode()
        return
    for painted in painting.images:
        yield _event(_completed(painted, painting.prompt_tokens, size=size))


@dataclass
class Partial:
    """Which previews of a painting are sent: at most `wanted`, spread evenly over the steps of both stages."""

    wanted: int
    prior_steps: int
    decoder_steps: int
    sent: int = 0

    def due(self, progress: Progress) -> bytes | None:
        """The preview, if it is time for one."""
        done = progress.step + (self.prior_steps if progress.stage == "decoder" else 0)
        share = done / (self.prior_steps + self.decoder_steps)
        if progress.preview is None or self.sent >= self.wanted or share < (self.sent + 1) / (self.wanted + 1):
            return None
        self.sent += 1
        return progress.preview


def _partial(preview: bytes, *, index: int, size: str) -> ImageEvent:
    return ImageEvent(
        type="image_generation.partial_image",
        b64_json=_base64(preview),
        created_at=int(time.time()),
        size=size,
        output_format="jpeg",
        partial_image_index=index,
    )


def _completed(painted: Painted, tokens: int, *, size: str) -> ImageEvent:
    return ImageEvent(
        type="image_generation.completed",
        b64_json=_base64(painted.data),
        created_at=int(time.time()),
        size=size,
        output_format=painted.output_format,
        usage=_usage((painted,), tokens),
        seed=painted.seed,
    )


def _event(event: ImageEvent) -> bytes:
    return f"event: {event.type}\ndata: {event.model_dump_json(exclude_none=True)}\n\n".encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
