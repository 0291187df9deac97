"""`/docs`: the OpenAPI document as a page to read and to try, whose script and looks come from this server too.

Kind: wiring.
"""

from importlib import resources
from typing import Final

from fastapi import APIRouter, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException

from sote.serve.context import Context

# Swagger UI (Apache-2.0), as the package fastapi-offline carries it
FILES: Final = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon.png": "image/png",
}
KEPT: Final = {"Cache-Control": "max-age=86400"}


def routes(_: Context) -> APIRouter:
    """The page and its files; none of them is in the document."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Sote",
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon.png",
        )

    @router.get("/docs/{name}")
    def file(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, f"no file {name!r} here")
        data = (resources.files("fastapi_offline") / "static" / name).read_bytes()
        return Response(data, media_type=FILES[name], headers=KEPT)

    return router
