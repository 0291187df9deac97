"""A request outlives its ingress: what Serve's HTTP proxy asks again where the ingress died before it answered.

Serve's proxy answers such a request with an empty 500 of its own. Here, in the proxy's process, the request's body is
kept until an answer begins, and the request is put to the next replica: the same request, so the same picture. Answers
of the ingress pass as they come, marked by MARK, which goes no further. An answer that had begun cannot be taken back:
its connection is closed.

The proxy reads ENVIRONMENT when its process starts. `sote serve` sets it for its own local Ray and hands it to the
proxies of a cluster that it connects to, where this package must be installed on the head node.

Kind: pure.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from starlette.middleware import Middleware

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ENVIRONMENT: Final = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "sote.serve.retrying:middlewares"}
MARK: Final = (b"x-sote-answer", b"1")  # of an answer of the ingress: no answer of Serve's own has it
AGAIN: Final = (b"x-sote-again", b"1")  # of a request that an ingress had taken in before it was lost
REQUEST_ID: Final = b"x-request-id"  # Serve's proxy puts its own beside the ingress'; they are the same
KEPT_BYTES: Final = 32 * 2**20  # of a body; a larger one is not asked again
WAITED_SECONDS: Final = 60.0  # for an ingress that answers, from the first that did not
PAUSE_SECONDS: Final = 0.25
OWN: Final = "/-/"  # paths that Serve's proxy answers by itself
LOST: Final = (500, 503)  # what Serve answers by itself where the ingress died or is not up
MESSAGE: Final = "the server's front was lost while it worked on this; ask again"


def middlewares() -> list[Middleware]:
    """What Serve's proxy puts around itself."""
    return [Middleware(Retrying)]


class Retrying:
    """ASGI middleware around Serve's proxy."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(OWN):
            await self.app(scope, receive, send)
            return
        body, deadline = Body(receive), time.monotonic() + WAITED_SECONDS
        headers = [each for each in scope["headers"] if each[0] != AGAIN[0]]
        while True:
            answer = Answer(send)
            # Serve appends to the scope's headers, so each try gets its own
            await self.app({**scope, "headers": list(headers)}, body.replayed(), answer)
            if answer.is_begun or body.is_gone:
                return
            if not body.is_kept or time.monotonic() > deadline:
                await _give_up(send)
                return
            if AGAIN not in headers:
                headers.append(AGAIN)
            await asyncio.sleep(PAUSE_SECONDS)


class Body:
    """The messages of a request as they came, for every try from the first one on."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.messages: list[Message] = []
        self.size = 0
        self.is_gone = False  # the client is

    @property
    def is_kept(self) -> bool:
        return self.size <= KEPT_BYTES

    def replayed(self) -> Receive:
        """What one try receives: what came before, then what comes."""
        place = 0

        async def receive() -> Message:
            nonlocal place
            if place < len(self.messages):
                place += 1
                return self.messages[place - 1]
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.is_gone = True
                return message
            self.size += len(message.get("body", b""))
            if self.is_kept:
                self.messages.append(message)
                place += 1
            else:
                self.messages.clear()
                place = 0
            return message

        return receive


class Answer:
    """Sends what the ingress answers, and holds back what Serve answers for an ingress that is lost."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.is_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if MARK not in headers and message["status"] in LOST:
                return
            self.is_begun = True
            message["headers"] = _cleaned(headers)
        if self.is_begun:
            await self.send(message)


def _cleaned(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without the mark, and with one request id."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        is_second = name.lower() == REQUEST_ID and any(each.lower() == REQUEST_ID for each, _ in kept)
        if (name, value) != MARK and not is_second:
            kept.append((name, value))
    return kept


async def _give_up(send: Send) -> None:
    body = json.dumps({"message": MESSAGE, "detail": []}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
