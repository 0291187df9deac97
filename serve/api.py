"""The application: all groups of routes over one context, behind the gate, with one answer to each kind of error.

Kind: wiring.
"""

import contextlib
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.exceptions import HTTPException

from sote.cluster.errors import SoteError
from sote.serve import answers, api_a1111, api_about, api_docs, api_jobs, api_native, api_openai, page
from sote.serve.context import Context

GROUPS: Final = (api_native, api_jobs, api_openai, api_a1111, api_about, api_docs, page)
ERRORS: Final = (RequestValidationError, HTTPException, SoteError, RayError, RayServeException, Exception)
TAGS: Final = [
    {"name": "pictures", "description": "Ask and wait: the native API, with fal's field names"},
    {"name": "jobs", "description": "Ask now, fetch later; progress by server-sent events"},
    {"name": "openai", "description": "For OpenAI's clients: `base_url` is this server's address and `/v1`"},
    {"name": "webui", "description": "For AUTOMATIC1111's clients: `/sdapi/v1`"},
    {"name": "about", "description": "What this server is and how it does"},
]
DESCRIPTION: Final = """One POST to `/v1/generate` makes pictures. Whatever it leaves out is the server's default.

With `Accept: image/png` (or `image/jpeg`, `image/webp`, `image/*`) the answer is the picture itself, its parameters
inside. Otherwise it is JSON in fal's form: each `url` is an address on this server, which keeps the picture for a
while, or with `sync_mode` a data URI with the whole file.

Servers with keys take them as `Authorization: Bearer KEY`, `Authorization: Key KEY` or `X-API-Key: KEY`."""


def build(context: Context) -> FastAPI:
    """The application. Its lifespan starts and stops the jobs."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await context.jobs.start()
        try:
            yield
        finally:
            await context.jobs.stop()

    app = FastAPI(
        title="Sote",
        version=metadata.version("sote"),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    for group in GROUPS:
        app.include_router(group.routes(context))
    for kind in ERRORS:
        app.add_exception_handler(kind, _answer)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    context.gate.install(app, context.figures, context.about)
    return app


async def _answer(request: Request, error: Exception) -> Response:
    return answers.answer(error, request.scope["path"])


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with what the gate and the server itself may answer to any request."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        for path, item in document["paths"].items():
            form = answers.form_of(path)
            for method, operation in item.items():
                _complete(operation["responses"], form, is_sent=method != "get")
        _add_schemas(document)
        document["components"]["securitySchemes"] = SECURITY
        document["security"] = [{}, *({name: []} for name in SECURITY)]
        app.openapi_schema = document
    return app.openapi_schema


SECURITY: Final[dict[str, Any]] = {
    "key": {"type": "http", "scheme": "bearer", "description": "Where this server has keys"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def _complete(told: dict[str, Any], form: answers.Form, *, is_sent: bool) -> None:
    """Add what is answered outside of the route, and take FastAPI's 422 from where it is answered as 400."""
    if form == "openai":
        told.pop("422", None)
    elif "HTTPValidationError" in str(told.get("422")):
        told["422"] = _error(422, form)
    for status in (401, 403, 500, *((413,) if is_sent else ())):
        told.setdefault(str(status), _error(status, form))
    for answer in told.values():
        answer.setdefault("headers", {}).update(HEADERS)


def _error(status: int, form: answers.Form) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{answers.MODELS[form].__name__}"}
    return {"description": answers.WORDS[status], "content": {"application/json": {"schema": schema}}}


HEADERS: Final[dict[str, Any]] = {
    "X-Request-ID": {"description": "Of this request, or as it was sent", "schema": {"type": "string"}},
    "Link": {"description": "The licence, and where the model's source is", "schema": {"type": "string"}},
}


def _add_schemas(document: dict[str, Any]) -> None:
    """The forms of errors, also where no route names them, in place of FastAPI's own."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in answers.MODELS.values():
        own = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= own.pop("$defs", {})
        schemas[model.__name__] = own
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
