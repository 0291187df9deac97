"""Routes that say what this server is and how it does: /v1/about, /healthz, /readyz, /metrics.

Kind: wiring.
"""

from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from sote.serve import figures
from sote.serve.about import Document
from sote.serve.context import Context

HEALTHY: Final = "HEALTHY"
METRICS_EXAMPLE: Final = '# TYPE sote_images_total counter\nsote_images_total{format="png"} 12.0\n'


class Health(BaseModel):
    """The ingress is alive."""

    status: str = "ok"


class Ready(BaseModel):
    """Whether every part is up, and the status of each."""

    ready: bool
    deployments: dict[str, str]


def routes(context: Context) -> APIRouter:
    """The routes; all but /metrics are open without a key, and that too on loopback."""
    router = APIRouter(tags=["about"])

    @router.get(
        "/v1/about",
        summary="Models, hashes, licences, where the source is; defaults, limits and names",
        responses={200: {"content": {"application/json": {"example": context.about.known()}}}},
    )
    async def about() -> Document:
        return context.about.document()

    @router.get("/healthz", summary="The ingress is alive")
    async def healthz() -> Health:
        return Health()

    @router.get("/readyz", summary="All parts are up; 503 until they are", responses=_ready_answers())
    async def readyz() -> JSONResponse:
        found = await context.service.deployments()
        is_ready = bool(found) and all(status == HEALTHY for status in found.values())
        return JSONResponse(Ready(ready=is_ready, deployments=found).model_dump(), 200 if is_ready else 503)

    @router.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"example": METRICS_EXAMPLE}}, "description": "All figures"}},
    )
    async def metrics() -> Response:
        return Response(context.figures.text(), headers={"Content-Type": figures.CONTENT_TYPE})

    return router


def _ready_answers() -> dict[int | str, dict[str, Any]]:
    def answer(words: str, *, is_ready: bool, prior: str) -> dict[str, Any]:
        example = {"ready": is_ready, "deployments": {"Prior": prior, "Decoder": HEALTHY}}
        return {"model": Ready, "description": words, "content": {"application/json": {"example": example}}}

    return {
        200: answer("All parts are up", is_ready=True, prior=HEALTHY),
        503: answer("A part is starting, or was lost", is_ready=False, prior="UPDATING"),
    }
