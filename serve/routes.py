"""The ingress: what the server answers over HTTP. No torch, no model; it checks, asks the replicas, and puts together.

Kind: wiring.
"""

import asyncio
import logging
import math
import secrets
import time
from importlib import metadata
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from sote.cluster.errors import RequestError, RunFailed
from sote.serve.pictures import Painted
from sote.serve.recipe import DefaultsPart, LimitsPart, OutputFormat
from sote.serve.schema import (
    CONTENT_TYPES,
    MAX_SEED,
    GenerateRequest,
    GenerateResponse,
    ImageOut,
    Latents,
    Settings,
    resolve,
)

log = logging.getLogger(__name__)

MODELS = ("Prior", "Decoder")
DESCRIPTION = """One POST to `/v1/generate` makes pictures.

With `Accept: image/png` (or `image/jpeg`, `image/webp`, `image/*`) the answer is the picture itself, its parameters
inside. Otherwise it is JSON in fal's form; there is no file host here, so each `url` is a data URI with the whole file,
whatever `sync_mode` says."""

api = FastAPI(title="Sote", version=metadata.version("sote"), description=DESCRIPTION)
PICTURE: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in CONTENT_TYPES.values()}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": PICTURE, "description": "JSON, or the picture itself where `Accept` asks for one"},
    429: {"description": "The line is full: come again after `Retry-After` seconds"},
    500: {"description": "The model gave no picture; the message names stage and step"},
    503: {"description": "The models are not up"},
}


@api.exception_handler(RequestValidationError)
async def refuse_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """422 in FastAPI's form (which is fal's too), and all of it as one readable `message`."""
    detail, lines = [], []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        field = ".".join(str(step) for step in item["loc"][1:]) or "body"
        detail.append({"loc": list(item["loc"]), "msg": message, "type": item["type"]})
        lines.append(f"{field}: {message}")
    return JSONResponse({"message": "; ".join(lines), "detail": detail}, 422)


@api.exception_handler(RequestError)
async def refuse_request(_: Request, error: RequestError) -> JSONResponse:
    """422 for what only the server's limits rule out."""
    field, message = str(error).split(": ", maxsplit=1)
    detail = [{"loc": ["body", field], "msg": message, "type": "value_error"}]
    return JSONResponse({"message": str(error), "detail": detail}, 422)


@api.exception_handler(DeploymentUnavailableError)
async def refuse_down(_: Request, error: DeploymentUnavailableError) -> JSONResponse:
    """503: a model is down."""
    return JSONResponse({"message": f"a model is not up: {error}"}, 503)


@api.exception_handler(RayError)
async def fail_lost(_: Request, error: RayError) -> JSONResponse:
    """503: a replica was lost under the request."""
    log.error("request lost error=%r", error)
    return JSONResponse({"message": "a model was lost while it worked on this; ask again"}, 503)


@api.exception_handler(RayTaskError)
async def fail(_: Request, error: RayTaskError) -> JSONResponse:
    """500: what a replica raised, in one line."""
    cause = error.cause
    log.error("request failed error=%r", cause)
    message = str(cause) if isinstance(cause, RunFailed) else f"{type(cause).__name__}: {cause}"
    return JSONResponse({"message": message}, 500)


def _deployments() -> dict[str, str]:
    """Status of each deployment of this application, by name."""
    name = serve.get_replica_context().app_name
    found = serve.status().applications.get(name)
    return {each: str(state.status.value) for each, state in found.deployments.items()} if found else {}


def _picture_wanted(accept: str) -> OutputFormat | Literal["any"] | None:
    """The picture format that the first entry of an Accept header asks for, "any" for image/*, None for JSON."""
    first = accept.split(",")[0].split(";")[0].strip().lower()
    if first == "image/*":
        return "any"
    by_type = {content_type: name for name, content_type in CONTENT_TYPES.items()}
    return by_type.get(first)


def _picture(painted: Painted, warnings: tuple[str, ...]) -> Response:
    headers = {"X-Sote-Seed": str(painted.seed)}
    if warnings:
        headers["X-Sote-Warning"] = "; ".join(warnings)
    return Response(painted.data, media_type=painted.content_type, headers=headers)


def _answer(
    painted: list[Painted], settings: Settings, *, timings: dict[str, float], warnings: tuple[str, ...]
) -> GenerateResponse:
    images = [
        ImageOut(url=each.data_uri, content_type=each.content_type, width=each.width, height=each.height)
        for each in painted
    ]
    return GenerateResponse(
        images=images, timings=timings, seed=settings.seed, prompt=settings.prompt, warnings=list(warnings)
    )


# Last in the file: `serve.ingress` takes a copy of `api`, and of what its functions use, as they are at this line
@serve.ingress(api)
class Ingress:
    """Holds the handles of the two models, and what a request gets that does not say otherwise."""

    def __init__(self, prior: Any, decoder: Any, *, defaults: DefaultsPart, limits: LimitsPart) -> None:
        self.prior, self.decoder = prior, decoder
        self.defaults, self.limits = defaults, limits
        self.recent_seconds = 1.0  # of the last request: what Retry-After says

    @api.get("/healthz", summary="The ingress is alive")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/readyz", summary="Both models are up; 503 until they are", responses={503: ANSWERS[503]})
    async def readyz(self) -> JSONResponse:
        found = await asyncio.to_thread(_deployments)
        is_ready = all(found.get(name) == "HEALTHY" for name in MODELS)
        return JSONResponse({"ready": is_ready, "deployments": found}, 200 if is_ready else 503)

    @api.post("/v1/generate", response_model=GenerateResponse, responses=ANSWERS, summary="Make pictures")
    async def generate(self, request: GenerateRequest, accept: Annotated[str, Header()] = "*/*") -> Response:
        start = time.monotonic()
        wanted = _picture_wanted(accept)
        if wanted and wanted != "any":
            request = request.model_copy(update={"output_format": wanted})
        settings = resolve(request, self.defaults, limits=self.limits, random_seed=secrets.randbelow(MAX_SEED + 1))
        if wanted and settings.images > 1:
            raise RequestError(
                f"num_images: {settings.images} pictures do not go into one image answer; ask for 1, or accept JSON"
            )
        try:
            latents: Latents = await self.prior.latents.remote(settings)
            painted, decoder_seconds = await self.decoder.paint.remote(latents, settings)
        except BackPressureError:
            return self._full()
        self.recent_seconds = seconds = time.monotonic() - start
        log.info(
            "request done images=%d pixels=%d seconds=%.2f", settings.images, settings.width * settings.height, seconds
        )
        timings = {"prior": latents.seconds, "decoder": decoder_seconds, "inference": seconds}
        if wanted:
            return _picture(painted[0], latents.warnings)
        return JSONResponse(_answer(painted, settings, timings=timings, warnings=latents.warnings).model_dump())

    def _full(self) -> JSONResponse:
        """429: a line is full. It moves on by one request in about the time that the last one took."""
        seconds = math.ceil(self.recent_seconds)
        message = f"the line is full; come again in {seconds} s"
        return JSONResponse({"message": message}, 429, headers={"Retry-After": str(seconds)})
