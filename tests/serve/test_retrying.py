"""The proxy's middleware, around applications that answer, or are lost, as Serve's proxy is with its ingress."""

import asyncio
from typing import Any

import pytest

from sote.serve import retrying
from sote.serve.retrying import AGAIN, MARK, App, Message, Receive, Retrying, Send

SCOPE = {"type": "http", "method": "POST", "path": "/v1/generate", "headers": [(b"accept", b"image/png")]}


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(retrying, "WAITED_SECONDS", 0.2)


def ask(app: App, *, body: tuple[bytes, ...] = (b"ab", b"cd"), leaves: bool = False) -> list[Message]:
    """What a client is sent that posts `body` in pieces; it `leaves` when it has sent it, or waits."""
    sent: list[Message] = []
    pieces = [
        {"type": "http.request", "body": piece, "more_body": piece is not body[-1]} for piece in body if piece or body
    ]

    async def receive() -> Message:
        if pieces:
            return pieces.pop(0)
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Retrying(app)(dict(SCOPE), receive, send))
    return sent


async def read(receive: Receive) -> bytes:
    """The whole body."""
    found = b""
    while True:
        message = await receive()
        found += message["body"]
        if not message["more_body"]:
            return found


def server(*tries: str) -> tuple[App, list[tuple[bytes, list[Any]]]]:
    """An application that goes through `tries`, and then on as in the last; and the bodies and headers that it saw."""
    seen: list[tuple[bytes, list[Any]]] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        what = tries[min(len(seen), len(tries) - 1)]
        seen.append((await read(receive), list(scope["headers"])))
        scope["headers"].append((b"x-request-id", b"7"))
        if what == "dies":
            return
        headers = [] if what == "is away" else [(b"x-request-id", b"ours"), MARK]
        status = 503 if what in ("is away", "refuses") else 200
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"x-request-id", b"7")]})
        await send({"type": "http.response.body", "body": what.encode(), "more_body": False})

    return app, seen


@pytest.mark.parametrize("trouble", ["dies", "is away"])
def test_a_request_whose_ingress_is_lost_is_put_to_the_next_with_its_whole_body(trouble: str) -> None:
    app, seen = server(trouble, trouble, "answers")
    start, body = ask(app)
    assert (start["status"], body["body"]) == (200, b"answers")
    assert [each for each, _ in seen] == [b"abcd"] * 3
    assert [AGAIN in headers for _, headers in seen] == [False, True, True]
    assert all(headers[0] == (b"accept", b"image/png") for _, headers in seen)


def test_an_answer_of_the_ingress_passes_without_its_mark_and_with_one_request_id() -> None:
    start, body = ask(server("refuses")[0])
    assert start["status"] == 503
    assert start["headers"] == [(b"x-request-id", b"ours")]
    assert body["body"] == b"refuses"


def test_a_client_cannot_say_that_it_was_taken_in_before() -> None:
    app, seen = server("answers")
    asyncio.run(
        Retrying(app)({**SCOPE, "headers": [AGAIN]}, _receiving(b"x"), _nowhere)  # type: ignore[dict-item]
    )
    assert seen == [(b"x", [])]


def test_a_request_without_an_ingress_for_too_long_is_answered_503_in_words() -> None:
    start, body = ask(server("dies")[0])
    assert start["status"] == 503
    assert b"ask again" in body["body"]


def test_what_serve_says_of_itself_passes() -> None:
    app, seen = server("is away")
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Retrying(app)({**SCOPE, "path": "/-/healthz", "headers": []}, _receiving(b""), send))
    assert sent[0]["status"] == 503
    assert len(seen) == 1


def test_nobody_is_asked_again_for_a_client_that_went_away() -> None:
    seen = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.append(await read(receive))
        assert (await receive())["type"] == "http.disconnect"

    assert ask(app, leaves=True) == []
    assert len(seen) == 1


def test_a_body_that_is_too_large_to_keep_passes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "KEPT_BYTES", 3)
    app, seen = server("dies")
    start, _ = ask(app, body=(b"ab", b"cd", b"ef"))
    assert start["status"] == 503
    assert [each for each, _ in seen] == [b"abcdef"]


def test_a_stream_passes_as_it_comes_and_is_not_begun_again() -> None:
    tries = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        tries.append(1)
        await send({"type": "http.response.start", "status": 200, "headers": [MARK]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})  # and then it dies

    sent = ask(app)
    assert [message.get("body") for message in sent] == [None, b"one"]
    assert len(tries) == 1


def _receiving(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _nowhere(_: Message) -> None:
    pass
