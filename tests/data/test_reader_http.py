import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from sote.cluster.errors import RecipeError, RunFailed
from sote.data import reader_http
from sote.data.reader_http import HttpReader, check
from sote.data.reading import Unread
from sote.data.recipe import TextPart

MODEL = "some-vlm"
HELLO = 'The text says "HELLO"'
Reply = tuple[int, dict[str, str], bytes]


@pytest.fixture
def server(chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The chat server, and a client that waits a short time only."""
    monkeypatch.setattr(reader_http, "FIRST_WAIT_SECONDS", 0.001)
    return chat_server


def said(text: str | None) -> Reply:
    """What OpenAI's API answers (api-reference, chat/object), as far as readers look."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {}, json.dumps({"id": "c", "object": "chat.completion", "choices": [choice]}).encode()


def refused(status: int, **headers: str) -> Reply:
    return status, headers, json.dumps({"error": {"message": "no\nway"}}).encode()


Open = Callable[..., HttpReader]


@pytest.fixture
def reader_of() -> Iterator[Open]:
    """Opens a reader that is closed at the end."""
    opened: list[HttpReader] = []

    def open_one(server: Any, *, timeout_seconds: float = 10.0, requests_at_once: int = 2) -> HttpReader:
        opened.append(
            HttpReader(
                server.url,
                MODEL,
                api_key="the key",
                timeout_seconds=timeout_seconds,
                max_new_tokens=48,
                requests_at_once=requests_at_once,
            )
        )
        return opened[-1]

    yield open_one
    for reader in opened:
        reader.close()


def of_width(width: int) -> Image.Image:
    return Image.new("RGB", (width, 40), "white")


def test_a_picture_is_asked_about_with_the_authors_question(server: Any, reader_of: Open) -> None:
    assert reader_of(server).read([Image.new("RGBA", (3000, 1500), "red"), of_width(90)]) == [HELLO, HELLO]
    assert sorted(picture.size for picture in server.pictures) == [(90, 40), (1024, 512)]
    assert {picture.format for picture in server.pictures} == {"JPEG"}
    for body in server.bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == (MODEL, 0, 48)
        assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
        assert body["messages"][0]["content"][1]["text"].startswith("what does the text say?")
    assert server.keys == {"Bearer the key"}


def test_answers_come_in_the_order_of_the_pictures(server: Any, reader_of: Open) -> None:
    def answer(picture: Image.Image) -> Reply:
        time.sleep(0.02 if picture.width == 30 else 0)  # the first is the last to be ready
        return said(f"{picture.width}")

    server.answer = answer
    asked: list[str | Unread] = [reader_of(server).prepare(of_width(30 + at)) for at in range(9)]
    asked.insert(4, Unread("file vanished"))
    expected: list[str | Unread] = [str(30 + at) for at in range(9)]
    expected.insert(4, Unread("file vanished"))
    assert list(reader_of(server, requests_at_once=4).answers(asked)) == expected


def test_as_many_requests_as_asked_for_are_under_way_at_once_and_no_more(server: Any, reader_of: Open) -> None:
    together, now, most = threading.Barrier(3), [0], [0]
    lock = threading.Lock()

    def answer(picture: Image.Image) -> Reply:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(timeout=10)  # breaks, if there are never three
        with lock:
            now[0] -= 1
        return said(HELLO)

    server.answer = answer
    assert reader_of(server, requests_at_once=3).read([of_width(50)] * 9) == [HELLO] * 9
    assert most == [3]


@pytest.mark.parametrize(
    "replies",
    [
        [refused(429, Retry_After="0")],
        [refused(500), refused(503), refused(502)],
        [refused(429), (200, {}, b"<html>busy</html>"), refused(408)],
    ],
)
def test_what_passes_is_tried_again(server: Any, reader_of: Open, replies: list[Reply]) -> None:
    script = iter([*replies, said(HELLO)])
    server.answer = lambda _: next(script)
    assert reader_of(server).read([of_width(50)]) == [HELLO]
    assert len(server.bodies) == len(replies) + 1


def test_the_time_that_a_server_asks_for_is_waited(
    server: Any, reader_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(reader_http.time, "sleep", waits.append)
    script = iter([refused(429, Retry_After="7"), refused(503), refused(503, Retry_After="9999"), said(HELLO)])
    server.answer = lambda _: next(script)
    assert reader_of(server).read([of_width(50)]) == [HELLO]
    assert waits == [7.0, 0.002, 300.0]


def test_the_time_may_be_a_date() -> None:
    def wait(value: str) -> float | None:
        return reader_http._retry_after(httpx.Response(429, headers={"retry-after": value}))

    in_a_minute = wait(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60
    assert wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0  # RFC 9110's form
    assert wait("soon") is None
    assert wait("") is None


@pytest.mark.parametrize(
    ("reply", "reason", "tries"),
    [
        (refused(400), "the reader refused it (HTTP 400)", 1),
        (refused(403), "the reader refused it (HTTP 403)", 1),
        (refused(413), "the reader refused it (HTTP 413)", 1),
        (refused(500), "the reader failed on it (HTTP 500)", 8),
        ((200, {}, b"{"), "the reader's answer is no chat completion", 8),
        ((200, {}, b'{"choices": []}'), "the reader's answer is no chat completion", 8),
        ((200, {}, b'{"choices": [{"message": {"content": [1]}}]}'), "the reader's answer is no chat completion", 8),
    ],
)
def test_a_picture_that_alone_is_not_answered_is_the_rows_error(
    server: Any, reader_of: Open, reply: Reply, reason: str, tries: int
) -> None:
    server.answer = lambda picture: reply if picture.width == 51 else said(HELLO)
    assert reader_of(server).read([of_width(50), of_width(51), of_width(52)]) == [HELLO, Unread(reason), HELLO]
    assert sum(picture.width == 51 for picture in server.pictures) == tries


def test_a_picture_that_takes_too_long_is_the_rows_error(
    server: Any, reader_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_http, "TRIES", 2)
    over = threading.Event()

    def answer(picture: Image.Image) -> Reply:
        if picture.width == 51:
            over.wait(timeout=10)
        return said(HELLO)

    server.answer = answer
    reader = reader_of(server, timeout_seconds=0.3, requests_at_once=1)
    assert reader.read([of_width(51), of_width(50)]) == [Unread("the reader took more than 0.3 s"), HELLO]
    over.set()


def test_a_model_that_says_nothing_gives_an_empty_answer(server: Any, reader_of: Open) -> None:
    server.answer = lambda _: said(None)
    assert reader_of(server).read([of_width(50)]) == [""]


@pytest.mark.parametrize("reply", [refused(401), refused(404), refused(429), refused(500), (200, {}, b"<html>")])
def test_a_server_that_answers_no_picture_ends_the_run_in_one_line(server: Any, reader_of: Open, reply: Reply) -> None:
    server.answer = lambda _: reply
    with pytest.raises(RunFailed, match=r"^text\.url: http://127\.0\.0\.1:\d+/v1 answers no more") as error:
        reader_of(server).read([of_width(50)] * 3)
    assert "\n" not in str(error.value)
    assert "the same command continues" in str(error.value)


def test_a_server_that_is_gone_ends_the_run(server: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}/v1"
    gone = HttpReader(url, MODEL, api_key="k", timeout_seconds=1, max_new_tokens=4, requests_at_once=1)
    with (
        contextlib.closing(gone),
        pytest.raises(RunFailed, match=r"text\.url: http://127\.0\.0\.1:\d+/v1 answers no more .*refused") as error,
    ):
        gone.read([of_width(50)])
    assert "secret" not in str(error.value)


def part_of(server: Any, **values: Any) -> TextPart:
    return TextPart(**{"reader": MODEL, "url": server.url, "timeout_seconds": 5.0} | values)


def test_a_server_that_works_is_passed_with_a_list_of_models_and_without(server: Any, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abc\n")
    check(part_of(server, api_key_file=str(tmp_path / "key")))
    assert server.keys == {"Bearer abc"}
    assert len(server.pictures) == 1
    server.models = refused(404)
    check(part_of(server))
    assert server.keys == {"Bearer abc", None}
    check(TextPart())


@pytest.mark.parametrize(
    ("models", "reply", "message"),
    [
        ((200, {}, b'{"data": [{"id": "a"}, {"id": "b"}]}'), said(HELLO), r"text\.reader: .* no 'some-vlm'; .* a, b$"),
        ((200, {}, b"<html>hello</html>"), said(HELLO), r"text\.url: .* is not OpenAI's: <html>hello"),
        (refused(401), said(HELLO), r"text\.url: .* wants a key: name a file with it in api_key_file \(.*401"),
        (refused(404), refused(404), r"text\.url: .* no chat/completions .*404.*should end in /v1"),
        (refused(404), refused(400), r"text\.url: .* does not answer as it should .*400.*no.*way"),
        (refused(503), said(HELLO), r"text\.url: .* does not answer .*503"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_before_the_run(
    server: Any, models: Reply, reply: Reply, message: str
) -> None:
    server.models, server.answer = models, lambda _: reply
    with pytest.raises(RecipeError, match=message) as error:
        check(part_of(server))
    assert "\n" not in str(error.value)


def test_an_address_without_a_server_is_refused(server: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(RecipeError, match=r"text\.url: .* cannot be asked \(.*refused.*start the server"):
        check(part_of(server, url=url))
    with pytest.raises(RecipeError, match=r"text\.url: 'http://\[::' is no URL"):
        check(part_of(server, url="http://[::"))


def test_a_key_that_is_refused_or_cannot_be_read_is_named_and_never_said(server: Any, tmp_path: Path) -> None:
    key = tmp_path / "key"
    with pytest.raises(RecipeError, match=r"text\.api_key_file: .*key: cannot be read \(No such file"):
        check(part_of(server, api_key_file=str(key)))
    for content in (b"", b" \n", b"one\ntwo\n", b"\xff\xfe", "schlüssel".encode()):
        key.write_bytes(content)
        with pytest.raises(RecipeError, match=r"text\.api_key_file: "):
            check(part_of(server, api_key_file=str(key)))
    key.write_text("confidential")
    server.models = refused(403)
    with pytest.raises(RecipeError, match=r"refuses the key in text\.api_key_file") as error:
        check(part_of(server, api_key_file=str(key)))
    assert "confidential" not in str(error.value)
