"""The native API: POST /v1/generate with fal's field names, POST /v1/decode for latents that are there already.

Kind: wiring.
"""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response

from sote.cluster.errors import RequestError
from sote.serve import addresses, latentfile
from sote.serve.access import visitor_of
from sote.serve.answers import PAINTING, documented
from sote.serve.context import Context
from sote.serve.generated import response_of
from sote.serve.schema import DecodeRequest, GenerateRequest, GenerateResponse, for_latents
from sote.serve.service import Painting
from sote.serve.settings import CONTENT_TYPES, OutputFormat, Settings

Wanted = OutputFormat | Literal["any"]
PICTURE: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in CONTENT_TYPES.values()}
PICTURE_HEADERS: dict[str, Any] = {
    "X-Sote-Seed": {"description": "Of a picture that is the answer itself", "schema": {"type": "integer"}},
    "X-Sote-Size": {"description": "Its width and height: 1024x1536", "schema": {"type": "string"}},
    "X-Sote-Prompt-Tokens": {"description": "Of the prompt, read or not", "schema": {"type": "integer"}},
    "X-Sote-Seconds": {"description": "What it took", "schema": {"type": "number"}},
    "X-Sote-Warning": {
        "description": "What the model could not take as it was asked, if anything",
        "schema": {"type": "string"},
    },
}
ANSWERS = documented("native", *PAINTING) | {
    200: {
        "content": PICTURE,
        "headers": PICTURE_HEADERS,
        "description": "JSON, or the picture itself where `Accept` asks for one first",
    }
}
Accept = Annotated[str, Header(description="image/png, image/jpeg, image/webp or image/*: answer with the picture")]


def routes(context: Context) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["pictures"])
    how: dict[str, Any] = {
        "response_model": GenerateResponse,
        "response_model_exclude_none": True,
        "responses": ANSWERS,
    }

    @router.post("/v1/generate", summary="Make pictures", **how)
    async def generate(asked: GenerateRequest, request: Request, accept: Accept = "*/*") -> Response:
        visitor, wanted = visitor_of(request), picture_wanted(accept)
        settings = await context.desk.settings(_in_format(asked, wanted), visitor)
        _check_one(settings, wanted)
        painting = await context.desk.paint(settings, visitor)
        if wanted:
            return _picture(painting)
        return await _json(painting, settings, asked, request=request, context=context)

    @router.post("/v1/decode", summary="Paint latents that are there already", **how)
    async def decode(asked: DecodeRequest, request: Request, accept: Accept = "*/*") -> Response:
        visitor, wanted = visitor_of(request), picture_wanted(accept)
        latents = await asyncio.to_thread(latentfile.unpacked, asked.latents)
        count, channels, height, width = latents.shape
        whole = for_latents(
            asked, (count, channels, height, width), default_compression=context.recipe.defaults.compression
        )
        settings = await context.desk.settings(_in_format(whole, wanted), visitor)
        _check_one(settings, wanted)
        painting = await context.desk.decode(latents, settings, visitor)
        if wanted:
            return _picture(painting)
        return await _json(painting, settings, whole, request=request, context=context)

    return router


def picture_wanted(accept: str) -> Wanted | None:
    """The format that the first entry of an Accept header asks for, "any" for image/*, None for JSON."""
    first = accept.split(",")[0].split(";")[0].strip().lower()
    if first == "image/*":
        return "any"
    by_type = {content_type: name for name, content_type in CONTENT_TYPES.items()}
    return by_type.get(first)


def _in_format(asked: GenerateRequest, wanted: Wanted | None) -> GenerateRequest:
    """With the format that `Accept` names, which goes before that of the body."""
    return asked if wanted in (None, "any") else asked.model_copy(update={"output_format": wanted})


def _check_one(settings: Settings, wanted: Wanted | None) -> None:
    if wanted and settings.images > 1:
        raise RequestError(
            f"num_images: {settings.images} pictures do not go into one image answer; ask for 1, or accept JSON"
        )


def _picture(painting: Painting) -> Response:
    painted = painting.images[0]
    headers = {
        "X-Sote-Seed": str(painted.seed),
        "X-Sote-Size": f"{painted.width}x{painted.height}",
        "X-Sote-Prompt-Tokens": str(painting.prompt_tokens),
        "X-Sote-Seconds": f"{painting.seconds:.3f}",
        "Vary": "Accept",
    }
    if painting.warnings:
        told = " ".join("; ".join(painting.warnings).split())
        headers["X-Sote-Warning"] = told.encode("ascii", "replace").decode("ascii")
    return Response(painted.data, media_type=painted.content_type, headers=headers)


async def _json(
    painting: Painting, settings: Settings, asked: GenerateRequest, *, request: Request, context: Context
) -> Response:
    if asked.sync_mode:
        urls = [painted.data_uri for painted in painting.images]
    else:
        urls = await addresses.kept(painting.images, request, context.results)
    told = response_of(painting, settings, asked, urls=urls)
    return JSONResponse(told.model_dump(exclude_none=True), headers={"Vary": "Accept"})
