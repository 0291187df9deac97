"""The gate before every route: who asks, how much they may send, and what every answer carries.

A key comes as `Authorization: Bearer K`, `Key K` (fal's clients) or `Basic` (AUTOMATIC1111's: the password), as
`X-API-Key: K`, or, for streams of events alone, which browsers open without headers, as `?key=K`. A 401 asks for
`Bearer` only: asked for `Basic`, a browser would put its own box before the page.

A server without keys listens on loopback, and every page that a browser on this machine has open could call it. So
its `Host` must be a name of loopback (another one that leads here is DNS rebinding: the page's own domain, pointed at
127.0.0.1), and what changes something must have no `Origin` (not a browser), its own, or one of `access.origins`. With
keys neither is needed: a page elsewhere does not know the key, and the server may stand behind a proxy's name.

It lies outside of everything else, so that its headers are on every answer, errors of the application included.

Kind: wiring.
"""

import base64
import binascii
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from fastapi import FastAPI, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sote.cluster import remote
from sote.cluster.errors import AccessError
from sote.serve import keys
from sote.serve.about import About
from sote.serve.accesslog import AccessLog, Entry, path_in
from sote.serve.figures import Figures
from sote.serve.keys import Limits
from sote.serve.recipe import ServeRecipe

LOCAL: Final = "local"  # the visitor's name where there are no keys
VISITOR: Final = "sote.visitor"  # in the scope of a request
CHALLENGE: Final = 'Bearer realm="sote"'
LOOPBACK_HOST = re.compile(r"(127(\.\d{1,3}){3}|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
SANE_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
EVENTS = re.compile(r"/v1/jobs/[^/]+/events")
# What anybody may read: that it lives, what it is, the page and its files, pictures at addresses that cannot be guessed
OPEN = re.compile(
    r"/|/healthz|/readyz|/docs(/[^/]+)?|/openapi\.json|/v1/about|/v1/results/[^/]+"
    r"|/page\w*\.(css|js)|/favicon\.\w+"
)
METRICS: Final = "/metrics"
READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
METHODS: Final = READING | {"POST", "PUT", "PATCH", "DELETE"}
MOST_DIGITS: Final = 18  # of a length that is looked at as a number
NO_ROUTE: Final = "(none)"
DOCUMENTS: Final = frozenset({"/openapi.json"})  # FastAPI's own route, which does not say its template


@dataclass
class Tally:
    """What came of a request, for the access log."""

    images: int = 0


@dataclass(frozen=True)
class Visitor:
    """Who asks: the name of the key, or "local" where there are no keys, and what the key may ask for."""

    name: str
    limits: Limits | None
    request_id: str
    tally: Tally = field(default_factory=Tally, compare=False)


def visitor_of(request: Request) -> Visitor:
    """Who makes this request. Only behind an installed Gate."""
    visitor: Visitor = request.scope[VISITOR]
    return visitor


class TooLarge(HTTPException):
    """The body is larger than the server reads."""

    def __init__(self, most: int) -> None:
        super().__init__(413, f"the body is larger than {most} bytes (limits.max_body_bytes); send less")


@dataclass(frozen=True)
class Gate:
    """What it holds to. `find` names a key; None: there are no keys."""

    find: Callable[[str], keys.Key | None] | None
    is_public: bool
    origins: tuple[str, ...]
    max_body_bytes: int
    log_path: Path

    @staticmethod
    def of(recipe: ServeRecipe) -> "Gate":
        """The gate of a recipe. Raises UserError: the file of keys is missing or broken."""
        path = recipe.access.keys
        return Gate(
            find=None if path is None else keys.Watched(Path(path).expanduser()).find,
            is_public=recipe.is_public,
            origins=recipe.access.origins,
            max_body_bytes=recipe.limits.max_body_bytes,
            log_path=path_in(remote.place(recipe.run)),
        )

    def install(self, app: FastAPI, figures: Figures, about: About) -> None:
        """Put the gate before `app`, outside of its handler for unexpected errors too: middleware that is added in
        the usual way lies inside of that one."""
        inner_stack = app.build_middleware_stack
        log = AccessLog(self.log_path, lost=figures.log_lines_lost.inc)

        def build() -> ASGIApp:
            stack: ASGIApp = Door(inner_stack(), self)
            if self.origins:
                stack = CORSMiddleware(
                    stack, allow_origins=self.origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
                )
            return Front(stack, figures=figures, log=log, headers=about.headers())

        app.build_middleware_stack = build  # type: ignore[method-assign]


@dataclass(frozen=True)
class Front:
    """Outermost: names the request, puts the headers on its answer, counts it and writes it down."""

    app: ASGIApp
    figures: Figures
    log: AccessLog
    headers: dict[str, str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._pass(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SANE_ID.fullmatch(given) else secrets.token_hex(16)
        scope[VISITOR] = Visitor("", None, request_id)  # nobody, until the door has looked at the key
        answer = _Answer(send, self.headers | {"X-Request-ID": request_id})
        start = time.monotonic()
        try:
            with self.figures.requests_in_flight.track_inprogress():
                await self.app(scope, receive, answer)
        finally:
            self._note(scope, answer, seconds=time.monotonic() - start)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            if scope["type"] == "lifespan":  # the application has ended
                self.log.close()

    def _note(self, scope: Scope, answer: "_Answer", *, seconds: float) -> None:
        """In figures and log. A request whose client went before the answer began has the status 499, as in nginx."""
        visitor: Visitor = scope[VISITOR]
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        entry = Entry(
            request_id=visitor.request_id,
            method=method,
            route=route_of(scope),
            status=answer.status,
            seconds=seconds,
            visitor=visitor.name,
            bytes=answer.bytes,
            images=visitor.tally.images,
        )
        self.figures.answered(method=method, route=entry.route, status=entry.status, seconds=seconds)
        self.log.write(entry)


class _Answer:
    """`send` that adds headers to an answer and notes its status and size."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self.send, self.headers = send, headers
        self.status, self.bytes = 499, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self.headers.items():
                headers.append(name, value)
            if self.status == 401:
                headers["WWW-Authenticate"] = CHALLENGE
        elif message["type"] == "http.response.body":
            self.bytes += len(message.get("body", b""))
        await self.send(message)


@dataclass(frozen=True)
class Door:
    """Lets in who may: key, `Host` and `Origin`, size of the body. What it refuses has the form of the API asked."""

    app: ASGIApp
    gate: Gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are none here, and none is to come in unseen
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_page(scope, headers)
            scope[VISITOR] = self._visitor(scope, headers)
            self._check_length(headers)
        except (AccessError, HTTPException) as error:
            response = await answer_to(error, scope, receive)
            await response(scope, receive, send)
            return
        await self.app(scope, self._limited(receive), send)

    def _check_page(self, scope: Scope, headers: Headers) -> None:
        """Raises AccessError (403) for what a page of elsewhere may have sent to a server without keys."""
        if self.gate.find is not None:
            return
        host = headers.get("host", "")
        if not LOOPBACK_HOST.fullmatch(host):
            raise AccessError(
                f"Host: {host[:100]!r} is no name of this machine; a server without keys answers to 127.0.0.1, "
                "localhost and [::1] only",
                status=403,
            )
        origin = headers.get("origin")
        if scope["method"] in READING or origin is None or origin in self.gate.origins:
            return
        if urlsplit(origin).netloc.lower() != host.lower():
            raise AccessError(
                f"Origin: pages of {origin[:100]!r} may change nothing here; name it in access.origins", status=403
            )

    def _visitor(self, scope: Scope, headers: Headers) -> Visitor:
        """Raises AccessError (401): no key, or none that is known, where one is needed."""
        known: Visitor = scope[VISITOR]
        if self.gate.find is None:
            return Visitor(LOCAL, None, known.request_id)
        given = key_of(headers, scope)
        found = self.gate.find(given) if given is not None else None
        if found is not None:
            return Visitor(found.name, found.limits, known.request_id)
        if self._is_open(scope):
            return known
        if given is None:
            raise AccessError(
                "this server asks for a key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`", status=401
            )
        raise AccessError("the key is not known here; ask who runs this server for one", status=401)

    def _is_open(self, scope: Scope) -> bool:
        if scope["method"] not in READING:
            return False
        path = scope["path"]
        return OPEN.fullmatch(path) is not None or (path == METRICS and not self.gate.is_public)

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "")
        is_told = re.fullmatch("[0-9]+", length) is not None
        if is_told and (len(length) > MOST_DIGITS or int(length) > self.gate.max_body_bytes):
            raise TooLarge(self.gate.max_body_bytes)

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that raises TooLarge once a body without a length, or longer than it said, is too large."""
        seen = 0

        async def read() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.gate.max_body_bytes:
                raise TooLarge(self.gate.max_body_bytes)
            return message

        return read


def key_of(headers: Headers, scope: Scope) -> str | None:
    """The key that a request carries, in whatever way; None: none."""
    scheme, _, rest = headers.get("authorization", "").strip().partition(" ")
    match scheme.lower():
        case "bearer" | "key":
            return rest.strip()
        case "basic":
            return _password(rest.strip())
    if (given := headers.get("x-api-key")) is not None:
        return given.strip()
    if EVENTS.fullmatch(scope["path"]):
        given_here = parse_qs(scope["query_string"].decode("latin-1")).get("key")
        return given_here[0] if given_here else None
    return None


def _password(encoded: str) -> str:
    """Of `user:password` in base64; the user where there is no password. Empty, which no key is, if it is broken."""
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError):
        return ""
    return password or user


def route_of(scope: Scope) -> str:
    """The template of the route that answered, such as /v1/jobs/{id}; "(none)" where none did."""
    if path := getattr(scope.get("route"), "path", None):
        return str(path)
    return str(scope["path"]) if scope["path"] in DOCUMENTS else NO_ROUTE


async def answer_to(error: Exception, scope: Scope, receive: Receive) -> Response:
    """The application's own answer to an error of this kind, in the form of the API that was asked."""
    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response] | Response]] = scope[
        "app"
    ].exception_handlers
    handler = next((handlers[kind] for kind in type(error).__mro__ if kind in handlers), None)
    if handler is None:
        status = error.status if isinstance(error, AccessError) else getattr(error, "status_code", 403)
        return JSONResponse({"message": str(error), "detail": str(error)}, status)
    answer = handler(Request(scope, receive), error)
    return answer if isinstance(answer, Response) else await answer
