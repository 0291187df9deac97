"""What a failure answers: one reading of every error, in the form of the API that was asked.

Native (and fal's clients): {"message", "detail": [{loc, msg, type}]}. OpenAI's under /v1/images and /v1/models:
{"error": {message, type, param, code}}, an invalid request is 400. AUTOMATIC1111's under /sdapi:
{"error", "detail", "body", "errors"}.

Source: openai-python 3.54 _exceptions.py for its fields; AUTOMATIC1111 modules/api/api.py (facts only) for its.

Kind: wiring.
"""

import json
import logging
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.exceptions import HTTPException

from sote.cluster.errors import AccessError, Busy, DiskFull, NoMemory, RequestError, RunFailed

log = logging.getLogger(__name__)

Form = Literal["native", "openai", "webui"]
PREFIXES: Final[dict[str, Form]] = {"/v1/images": "openai", "/v1/models": "openai", "/sdapi": "webui"}
MOST_DETAILS = 20  # errors of one request that are told
MOST_CHARACTERS = 500  # of what is told about one: a message may quote the request
AGAIN_SECONDS = 2  # a lost replica is replaced or its work retried in about that time
NO_JSON = "no JSON that can be read"
OPENAI_KINDS: Final[dict[int, tuple[str, str | None]]] = {  # status -> type and code of an error
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", None),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class Detail(BaseModel):
    """One thing that is wrong. `loc` leads to the field: ["body", "image_size", "width"]."""

    loc: list[str | int]
    msg: str
    type: str


class NativeError(BaseModel):
    """`message` says in one line what is wrong and what would be right."""

    message: str
    detail: list[Detail] = []


class OpenAIDetail(BaseModel):
    """`param` names the field."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(BaseModel):
    """OpenAI's form."""

    error: OpenAIDetail


class WebUIError(BaseModel):
    """AUTOMATIC1111's form. `detail` says what is wrong, `error` of what kind it is."""

    error: str
    detail: str
    body: str = ""
    errors: str = Field(default="", description="The same as `detail`")


@dataclass(frozen=True)
class Failure:
    """An error as an answer, before it has a form. `detail` names the fields, where fields are wrong."""

    status: int
    kind: str
    message: str
    detail: tuple[Detail, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None


class NoSuchModel(RequestError):
    """A model was asked for by a name that this server does not have. OpenAI's API says 404 to that."""


def form_of(path: str) -> Form:
    """The form of the errors under a path."""
    return next((form for prefix, form in PREFIXES.items() if _is_under(path, prefix)), "native")


def answer(error: Exception, path: str) -> Response:
    """The answer to a request to `path` that ended with `error`."""
    failure, form = failure_of(error), form_of(path)
    status = 400 if form == "openai" and failure.status == 422 else failure.status
    # All ASCII: what a message quotes may be no text that UTF-8 has
    return Response(json.dumps(body_of(failure, form)), status, failure.headers, "application/json")


def body_of(failure: Failure, form: Form) -> dict[str, Any]:
    """The JSON of a failure in a form."""
    match form:
        case "native":
            return NativeError(message=failure.message, detail=list(failure.detail)).model_dump()
        case "openai":
            usual = ("server_error" if failure.status >= 500 else "invalid_request_error", None)
            kind, code = OPENAI_KINDS.get(failure.status, usual)
            place = failure.detail[0].loc[1:] if failure.detail else []
            param = ".".join(map(str, place)) or None
            told = OpenAIDetail(message=failure.message, type=kind, param=param, code=failure.code or code)
            return OpenAIError(error=told).model_dump()
        case "webui":
            return WebUIError(error=failure.kind, detail=failure.message, errors=failure.message).model_dump()


def failure_of(error: BaseException) -> Failure:
    """What an error means to who asked. What nobody foresaw is logged and told in general words."""
    kind = type(error).__name__
    match error:
        case RayTaskError(cause=Exception() as cause):  # what a replica raised
            return failure_of(cause)
        case RequestValidationError():
            return _invalid([_detail(item) for item in error.errors()[:MOST_DETAILS]])
        case NoSuchModel():
            return Failure(404, kind, _cut(str(error)), (_named(error),), code="model_not_found")
        case RequestError():
            return _invalid([_named(error)])
        case AccessError():
            return Failure(error.status, kind, _cut(str(error)))
        case HTTPException(status_code=400):  # FastAPI: a body that is no JSON at all, or that Python cannot hold
            return _invalid([Detail(loc=["body"], msg=NO_JSON, type="json_invalid")])
        case HTTPException():
            return Failure(error.status_code, kind, _cut(str(error.detail)), headers=dict(error.headers or {}))
        case Busy():
            return Failure(429, kind, str(error), headers={"Retry-After": str(error.retry_after_seconds)})
        case BackPressureError():
            return Failure(429, "Busy", "the line is full; come again in 1 s", headers={"Retry-After": "1"})
    return _own(error, kind)


WORDS: Final[dict[int, str]] = {
    400: "The request cannot be met; the message names the field and what would be right",
    401: "No key, or one that is not known here (servers that have keys)",
    403: "The key may not ask for this, or the page that asks is a stranger's",
    404: "There is none of that name",
    409: "It was ended before it was done",
    413: "The body is larger than this server takes",
    422: "The request cannot be met; the message names the field and what would be right",
    429: "The line is full, or the key's limit is reached",
    500: "No picture was made; the message names stage and step where it is known",
    503: "A model is not up, was lost, or has no memory for one picture of this size",
}
PAINTING: Final = (422, 429, 503)  # what routes that paint may answer beside what all may
MODELS: Final[dict[Form, type[BaseModel]]] = {"native": NativeError, "openai": OpenAIError, "webui": WebUIError}


def documented(form: Form, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route for the OpenAPI document. What the gate may answer to any request is added by `api`."""
    told: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        told[status] = {"model": MODELS[form], "description": WORDS[status]}
        if status in (429, 503):
            told[status]["headers"] = RETRY_AFTER
    return told


RETRY_AFTER: Final[dict[str, Any]] = {
    "Retry-After": {"description": "Seconds until it is worth asking again", "schema": {"type": "integer"}}
}


def _own(error: BaseException, kind: str) -> Failure:
    """Failures of the server."""
    match error:
        case NoMemory() | DiskFull():
            log.error("request failed error=%s", error)
            return Failure(503, kind, str(error), headers={"Retry-After": str(AGAIN_SECONDS)})
        case RunFailed():
            log.error("request failed error=%s", error)
            return Failure(500, kind, str(error))
        case RayError() | RayServeException():
            log.error("request lost error=%r", error)
            message = "a model is not up, or was lost while it worked on this; ask again"
            return Failure(503, kind, message, headers={"Retry-After": str(AGAIN_SECONDS)})
    log.error("request failed unforeseen", exc_info=error)
    return Failure(500, "InternalError", "the server failed; its log says more")


def _invalid(detail: list[Detail]) -> Failure:
    lines = [f"{'.'.join(map(str, each.loc[1:])) or 'body'}: {each.msg}" for each in detail]
    return Failure(422, "InvalidRequest", "; ".join(lines), tuple(detail))


def _detail(item: dict[str, Any]) -> Detail:
    """One error of pydantic's, in our words where its own lead nowhere."""
    place, kind = item["loc"], item["type"]
    message = item["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        place, message = ("body",), f"{NO_JSON}: {item.get('ctx', {}).get('error', message)}"
    elif len(place) == 1 and kind in ("model_attributes_type", "missing", "dict_type"):
        message = "a JSON object is wanted, sent with Content-Type: application/json"
    return Detail(
        loc=[step if isinstance(step, int) else _cut(str(step)) for step in place], msg=_cut(message), type=kind
    )


def _named(error: RequestError) -> Detail:
    """A RequestError's own words are `field: what is wrong`."""
    name, colon, message = str(error).partition(": ")
    if not colon:
        return Detail(loc=["body"], msg=_cut(name), type="value_error")
    return Detail(loc=["body", *name.split(".")], msg=_cut(message), type="value_error")


def _cut(words: str) -> str:
    return words if len(words) <= MOST_CHARACTERS else f"{words[:MOST_CHARACTERS]}..."


def _is_under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
