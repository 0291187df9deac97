"""The page at `/`: HTML, CSS and JavaScript modules as they lie beside this file, under a strict content policy.

The page knows nothing of its own: its form is built from `GET /v1/about`, and it paints through `/v1/jobs`. Nothing of
it is made by a build step or comes from another server.

Kind: wiring.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from typing import Final

from fastapi import APIRouter, Request, Response

from sote.serve.context import Context

FILES: Final = (
    "page.html",
    "page.css",
    "page.js",
    "page_facts.js",
    "page_fields.js",
    "page_form.js",
    "page_gallery.js",
    "page_jobs.js",
    "page_parameters.js",
    "page_server.js",
)
CONTENT_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
# img-src: results are shown from memory (blob:), previews come inside of events (data:)
POLICY: Final = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the fragment holds prompts; no browser sends it, but nor the rest
    "Cache-Control": "no-cache",  # kept, but asked after each time: a new version is seen at once
}


@dataclass(frozen=True)
class File:
    """One file of the page. `tag` is its ETag: the same bytes, the same tag."""

    path: str
    data: bytes
    content_type: str
    tag: str


def files() -> tuple[File, ...]:
    """The page's files, read from the package; the page itself has the path `/`."""
    return tuple(_read(name) for name in FILES)


def routes(_: Context) -> APIRouter:
    """Routes of the page and its files; none of them needs a key, none stands in the API's document."""
    router = APIRouter(include_in_schema=False)
    for file in files():
        router.add_api_route(file.path, _answering(file), methods=["GET", "HEAD"])
    return router


def _read(name: str) -> File:
    data = resources.files("sote.serve").joinpath(name).read_bytes()
    return File(
        path="/" if name == "page.html" else f"/{name}",
        data=data,
        content_type=CONTENT_TYPES[name.rpartition(".")[2]],
        tag=f'"{hashlib.sha256(data).hexdigest()[:32]}"',
    )


def _answering(file: File) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        headers = {**HEADERS, "ETag": file.tag}
        known = request.headers.get("if-none-match", "")
        if file.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(file.data, media_type=file.content_type, headers=headers)

    return answer
