"""Jobs over HTTP: ask now, follow by server-sent events, fetch later. Words and forms are fal's where fal has them.

Kind: wiring.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from sote.serve.access import visitor_of
from sote.serve.addresses import base_of
from sote.serve.answers import PAINTING, NativeError, documented
from sote.serve.context import Context
from sote.serve.jobline import Sight
from sote.serve.results import content_type
from sote.serve.schema import GenerateResponse
from sote.serve.schema_jobs import CancelAnswer, JobAccepted, JobList, JobRequest, JobStatus, status_of
from sote.serve.settings import CONTENT_TYPES

EVENT_ID: Final = re.compile(r"[0-9]{1,15}")
NOT_THERE: Final = "there is no such job, or its time is over"
Id = Annotated[str, Path(description="`id` of the answer that made it", examples=["0" * 32])]
WHEN_NOT_DONE: Final[dict[int | str, dict[str, Any]]] = {
    202: {"model": JobStatus, "description": "Not done yet: how it stands"}
}
EVENTS_EXAMPLE: Final = (
    'id: 1\nevent: status\ndata: {"id": "...", "status": "IN_QUEUE", "queue_position": 2}\n\n'
    'id: 2\nevent: progress\ndata: {"status": "IN_PROGRESS", "progress": 0.4, "stage": "prior", "step": 15, '
    '"steps": 30, "preview": "data:image/jpeg;base64,..."}\n\n'
    'id: 3\nevent: completed\ndata: {"status": "COMPLETED", "result": {"images": [{"url": "..."}]}}\n\n'
)
EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["status", "progress", "completed", "failed", "cancelled"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {"text/event-stream": {"itemSchema": EVENT, "example": EVENTS_EXAMPLE}},
        "description": "Events status, progress, and one of completed, failed, cancelled, with which it ends. The data "
        "of each is the job's status as JSON, progress has `preview`. First comes how it stands. A comment every 15 s "
        "keeps a silent stream open. Who leaves cancels nothing.",
    }
}
PICTURE: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in CONTENT_TYPES.values()},
        "description": "The picture. Who knows its address may fetch it, without a key, for the time in Cache-Control",
    }
}


def routes(context: Context) -> APIRouter:
    """The routes of jobs, and of pictures that are kept."""
    router = APIRouter()
    _make(router, context)
    _see(router, context)
    _end(router, context)

    @router.get(
        "/v1/results/{name}",
        tags=["pictures"],
        summary="A picture by its address",
        response_class=Response,
        responses=PICTURE | documented("native", 404),
    )
    async def picture(name: Annotated[str, Path(examples=[f"{'0' * 32}.png"])]) -> Response:
        data = await asyncio.to_thread(context.results.read, name)
        if data is None:
            raise HTTPException(404, "there is no such picture, or its time is over")
        seconds = context.results.seconds_left(name)
        headers = {"Cache-Control": f"private, max-age={seconds}, immutable", "X-Content-Type-Options": "nosniff"}
        return Response(data, media_type=content_type(name), headers=headers)

    return router


def _make(router: APIRouter, context: Context) -> None:
    jobs = context.jobs

    @router.post(
        "/v1/jobs",
        tags=["jobs"],
        summary="Ask for pictures that are fetched later",
        status_code=202,
        response_model_exclude_none=True,
        responses=documented("native", *PAINTING),
    )
    async def make(
        asked: JobRequest,
        request: Request,
        fal_webhook: Annotated[str | None, Query(description="As `webhook_url`, where fal's clients put it")] = None,
    ) -> JobAccepted:
        seen = await jobs.create(
            asked, visitor_of(request), base_url=base_of(request), webhook_url=asked.webhook_url or fal_webhook
        )
        own = f"{base_of(request)}/v1/jobs/{seen.record.id}"
        return JobAccepted(
            id=seen.record.id,
            request_id=seen.record.id,
            status=seen.record.state,
            queue_position=seen.position,
            status_url=own,
            response_url=f"{own}/result",
            cancel_url=f"{own}/cancel",
            events_url=f"{own}/events",
            webhook_secret=seen.record.webhook.secret if seen.record.webhook else None,
        )


def _see(router: APIRouter, context: Context) -> None:
    jobs = context.jobs
    how: dict[str, Any] = {"tags": ["jobs"], "response_model_exclude_none": True}

    @router.get("/v1/jobs", summary="Your jobs, the newest first, without their prompts", **how)
    async def listed(request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> JobList:
        seen = await jobs.listed(visitor_of(request))
        return JobList(jobs=[status_of(each) for each in seen[:limit]], total=len(seen))

    @router.get("/v1/jobs/{id}", summary="How a job stands", responses=documented("native", 404), **how)
    async def status(id: Id, request: Request) -> JobStatus:
        return await _whole(await _found(context, id, request), context)

    @router.get(
        "/v1/jobs/{id}/result",
        summary="The answer of a job that is done",
        description="Not done: 202 and how it stands. Failed: the status and words that /v1/generate would have "
        "answered. Cancelled: 409.",
        response_model=GenerateResponse,
        responses=WHEN_NOT_DONE | documented("native", 404, 409, *PAINTING),
        **how,
    )
    async def result(id: Id, request: Request) -> Response:
        seen = await _found(context, id, request)
        record = seen.record
        match record.state:
            case "COMPLETED":
                answer = await jobs.answer(id)
                if answer is None:
                    raise HTTPException(404, NOT_THERE)
                return Response(answer, media_type="application/json")
            case "FAILED" if record.failure:
                told = NativeError.model_validate(record.failure.model_dump(include={"message", "detail"}))
                return JSONResponse(told.model_dump(), record.failure.status)
            case "CANCELLED":
                raise HTTPException(409, "the job was cancelled")
        return JSONResponse(status_of(seen).model_dump(exclude_none=True), 202)

    @router.get(
        "/v1/jobs/{id}/events",
        tags=["jobs"],
        summary="Follow a job by server-sent events",
        response_class=StreamingResponse,
        responses=EVENTS | documented("native", 404),
    )
    async def events(id: Id, request: Request, last_event_id: Annotated[str, Header()] = "") -> Response:
        await _found(context, id, request)
        first = int(last_event_id) + 1 if EVENT_ID.fullmatch(last_event_id) else 1
        stream = _events(context, id, request, first=first)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx must not hold events back
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


def _end(router: APIRouter, context: Context) -> None:
    jobs = context.jobs
    how: dict[str, Any] = {"tags": ["jobs"], "status_code": 202}
    told = documented("native", 404) | {400: {"model": CancelAnswer, "description": "It is over already"}}

    @router.put("/v1/jobs/{id}/cancel", summary="Cancel a job", responses=told, **how)
    @router.post("/v1/jobs/{id}/cancel", summary="Cancel a job", responses=told, **how)
    async def cancel(id: Id, request: Request) -> CancelAnswer:
        before = await _found(context, id, request)
        if before.record.is_ended:
            return JSONResponse(CancelAnswer(status="ALREADY_COMPLETED").model_dump(), 400)  # type: ignore[return-value]
        await jobs.cancel(id, visitor_of(request))
        return CancelAnswer(status="CANCELLATION_REQUESTED")

    @router.delete(
        "/v1/jobs/{id}",
        tags=["jobs"],
        summary="Cancel a job, or remove one that is over and its pictures",
        responses=documented("native", 404),
        response_model_exclude_none=True,
    )
    async def remove(id: Id, request: Request) -> JobStatus:
        before = await _found(context, id, request)
        if before.record.is_ended:
            await jobs.remove(before.record)
            return status_of(before)
        return status_of(await jobs.cancel(id, visitor_of(request)) or before)


async def _found(context: Context, id: str, request: Request) -> Sight:
    """The job, or 404: also for another visitor's."""
    seen = await context.jobs.sight(id, visitor_of(request))
    if seen is None:
        raise HTTPException(404, NOT_THERE)
    return seen


async def _whole(seen: Sight, context: Context) -> JobStatus:
    """With the answer, where there is one."""
    answer = await context.jobs.answer(seen.record.id) if seen.record.state == "COMPLETED" else None
    result = GenerateResponse.model_validate_json(answer) if answer else None
    return status_of(seen).model_copy(update={"result": result})


async def _events(context: Context, id: str, request: Request, *, first: int) -> AsyncIterator[str]:
    number, before = first, None
    async for seen in context.jobs.follow(id, visitor_of(request)):
        if seen is None:
            yield ": nothing new\n\n"
            continue
        for name in names_of(before, seen):
            told = (
                await _whole(seen, context) if name == "completed" else status_of(seen, has_preview=name == "progress")
            )
            data = json.dumps(told.model_dump(exclude_none=True))
            yield f"id: {number}\nevent: {name}\ndata: {data}\n\n"
            number += 1
        before = seen


def names_of(before: Sight | None, seen: Sight) -> list[str]:
    """The events that tell what changed."""
    if seen.record.is_ended:
        return [seen.record.state.lower()]
    names = []
    if before is None or (before.record.state, before.position) != (seen.record.state, seen.position):
        names.append("status")
    if seen.progress is not None and (before is None or before.progress != seen.progress):
        names.append("progress")
    return names
