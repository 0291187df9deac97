"""A chat server that tests script."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class ChatServer:
    """An HTTP server on loopback that speaks as OpenAI's API does, as far as readers look.

    `answer` gives the reply to a picture; what was asked is kept.
    """

    url: str
    answer: Callable[[Image.Image], Reply]
    models: Reply
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    pictures: list[Image.Image] = field(default_factory=list)

    @staticmethod
    def said(text: str | None) -> Reply:
        """A chat completion (api-reference, chat/object)."""
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return 200, {}, json.dumps({"id": "c", "object": "chat.completion", "choices": [choice]}).encode()

    def reply(self, path: str, body: bytes, key: str | None) -> Reply:
        self.keys.add(key)
        if path == "/v1/models":
            return self.models
        if path != "/v1/chat/completions":
            return 404, {}, b"{}"
        asked = json.loads(body)
        url = asked["messages"][0]["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
        self.bodies.append(asked)
        self.pictures.append(picture)
        return self.answer(picture)


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """Serves the model some-vlm, which reads HELLO in every picture until a test says otherwise."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, data = known.reply(self.path, body, self.headers.get("authorization"))
            try:
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:
                self.close_connection = True  # the client waited no longer

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    known = ChatServer(
        url=f"http://127.0.0.1:{listening.server_address[1]}/v1",
        answer=lambda _: ChatServer.said('The text says "HELLO"'),
        models=(200, {}, json.dumps({"data": [{"id": "some-vlm"}, {"id": "other"}]}).encode()),
    )
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield known
    listening.shutdown()
    listening.server_close()
    thread.join()
