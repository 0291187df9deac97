"""The gate before a small application: keys, pages of elsewhere, sizes of bodies, headers, figures, log."""

import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.testclient import TestClient

from sote.cluster.errors import AccessError
from sote.serve import keys
from sote.serve.about import About
from sote.serve.access import Gate, Visitor, visitor_of
from sote.serve.figures import Figures
from sote.serve.keys import Limits
from sote.serve.recipe import AboutPart, AccessPart, LimitsPart, ServeRecipe
from sote.serve.weightfiles import Hashes

HERE = "http://127.0.0.1:8000"
LOCAL = {"name": "local", "limits": None}


def application(recipe: ServeRecipe, figures: Figures | None = None) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/about")
    @app.get("/v1/jobs/{name}")
    @app.get("/v1/jobs/{name}/events")
    @app.get("/v1/results/{name}")
    @app.get("/metrics")
    @app.get("/page.css")
    @app.get("/")
    async def who(request: Request) -> dict[str, Any]:
        return said(visitor_of(request))

    @app.post("/v1/generate")
    async def generate(request: Request) -> dict[str, Any]:
        visitor = visitor_of(request)
        visitor.tally.images += len((await request.json())["prompts"])
        return said(visitor)

    @app.get("/broken")
    async def broken() -> None:
        raise ValueError("a bug")

    @app.exception_handler(AccessError)
    async def refused(request: Request, error: AccessError) -> JSONResponse:
        return JSONResponse({"path": request.url.path, "message": str(error)}, error.status)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> PlainTextResponse:
        return PlainTextResponse("failed", 500)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            await anyio.sleep_forever()

        return StreamingResponse(parts())

    about = About(recipe, (), Hashes([], kept=Path(recipe.run) / "hashes.json"))
    Gate.of(recipe).install(app, figures or Figures(), about)
    return app


def said(visitor: Visitor) -> dict[str, Any]:
    return {"name": visitor.name, "limits": visitor.limits and visitor.limits.model_dump(exclude_none=True)}


Opening = Callable[..., TestClient]


@pytest.fixture
def opened() -> Iterator[Opening]:
    """Opens clients of applications, which are ended after the test."""
    with contextlib.ExitStack() as stack:

        def open_one(recipe: ServeRecipe, figures: Figures | None = None) -> TestClient:
            app = application(recipe, figures)
            return stack.enter_context(TestClient(app, base_url=HERE, raise_server_exceptions=False))

        yield open_one


@pytest.fixture
def open_recipe(tmp_path: Path) -> ServeRecipe:
    return ServeRecipe(run=str(tmp_path / "run"))


@pytest.fixture
def key(tmp_path: Path) -> str:
    return keys.add(tmp_path / "keys.toml", "ada", Limits(max_images=2))


@pytest.fixture
def keyed(tmp_path: Path, key: str, opened: Opening) -> TestClient:
    access = AccessPart(keys=str(tmp_path / "keys.toml"))
    return opened(ServeRecipe(run=str(tmp_path / "run"), access=access))


def end(app: FastAPI) -> None:
    """End an application that no client has opened."""
    with TestClient(app):
        pass


def log_lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run" / "access.jsonl").read_text().splitlines()]


def test_without_keys_everybody_is_local(open_recipe: ServeRecipe, opened: Opening) -> None:
    answer = opened(open_recipe).post("/v1/generate", json={"prompts": []}, headers={"Authorization": "Bearer x"})
    assert answer.json() == LOCAL


def test_each_way_of_sending_the_key_is_known(keyed: TestClient, key: str) -> None:
    basic = base64.b64encode(f"anybody:{key}".encode()).decode()
    alone = base64.b64encode(f"{key}:".encode()).decode()
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"KEY  {key}"},
        {"Authorization": f"Basic {basic}"},
        {"Authorization": f"Basic {alone}"},
        {"X-API-Key": key},
        {"Authorization": "Digest x", "X-API-Key": key},
    ):
        answer = keyed.post("/v1/generate", json={"prompts": []}, headers=headers)
        assert answer.json() == {"name": "ada", "limits": {"max_images": 2}}, headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer sote_wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic %%%"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:").decode()},
        {"X-API-Key": ""},
        {"X-API-Key": "ä".encode()},
    ],
)
def test_without_a_known_key_the_answer_is_401_and_asks_for_bearer_alone(
    keyed: TestClient, headers: dict[str, Any]
) -> None:
    answer = keyed.post("/v1/generate", json={"prompts": []}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="sote"'
    assert answer.json()["path"] == "/v1/generate"  # in the application's own form of errors


def test_a_key_in_the_address_counts_for_streams_of_events_alone(keyed: TestClient, key: str) -> None:
    assert keyed.get(f"/v1/jobs/7/events?key={key}").json()["name"] == "ada"
    assert keyed.get(f"/v1/jobs/7?key={key}").status_code == 401
    assert keyed.get(f"/v1/jobs/7/events/?key={key}").status_code == 401
    assert keyed.post(f"/v1/generate?key={key}", json={"prompts": []}).status_code == 401
    assert keyed.get("/v1/jobs/7/events?key=wrong").status_code == 401
    assert keyed.get("/v1/jobs/7/events").status_code == 401


@pytest.mark.parametrize("path", ["/", "/v1/about", "/v1/results/0a1b.png", "/page.css", "/docs", "/openapi.json"])
def test_what_anybody_may_read_is_open_and_only_for_reading(keyed: TestClient, path: str) -> None:
    assert keyed.get(path).status_code == 200
    assert keyed.post(path).status_code == 401
    assert keyed.get(path, headers={"X-API-Key": "wrong"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/generate", "/v1/jobs/7", "/v1/results/a/b", "/v1/results/", "/page.css/x", "/nothing"]
)
def test_everything_else_needs_a_key_even_what_is_not_there(keyed: TestClient, path: str) -> None:
    assert keyed.get(path).status_code == 401


def test_figures_are_open_on_loopback_and_need_a_key_in_public(
    keyed: TestClient, key: str, tmp_path: Path, opened: Opening
) -> None:
    assert keyed.get("/metrics").status_code == 200
    public = ServeRecipe(run=str(tmp_path / "run"), host="0.0.0.0", access=AccessPart(keys=str(tmp_path / "keys.toml")))
    answers = opened(public)
    assert answers.get("/metrics").status_code == 401
    assert answers.get("/metrics", headers={"X-API-Key": key}).json()["name"] == "ada"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.8.0.1"])
def test_a_server_without_keys_answers_to_the_names_of_loopback(
    open_recipe: ServeRecipe, host: str, opened: Opening
) -> None:
    assert opened(open_recipe).get("/", headers={"Host": host}).json() == LOCAL


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "::1", "127.0.0.1:80:80"]
)
def test_a_name_that_was_pointed_at_loopback_is_refused_also_for_reading(
    open_recipe: ServeRecipe, host: str, opened: Opening
) -> None:
    answer = opened(open_recipe).get("/", headers={"Host": host})
    assert answer.status_code == 403
    assert "answers to 127.0.0.1, localhost and [::1] only" in answer.json()["message"]


def test_a_page_of_elsewhere_may_not_drive_a_server_without_keys(open_recipe: ServeRecipe, opened: Opening) -> None:
    answers = opened(open_recipe)
    body = {"prompts": []}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:3000", "http://127.0.0.1:8000@evil.example"):
        refused = answers.post("/v1/generate", json=body, headers={"Origin": origin})
        assert (refused.status_code, "access.origins" in refused.json()["message"]) == (403, True)
    assert answers.post("/v1/generate", json=body, headers={"Origin": HERE}).json() == LOCAL
    assert answers.post("/v1/generate", json=body).json() == LOCAL
    assert answers.get("/", headers={"Origin": "https://evil.example"}).status_code == 200  # CORS keeps it unread


def test_an_origin_that_the_recipe_names_may_and_can_read_refusals_too(
    tmp_path: Path, key: str, opened: Opening
) -> None:
    origin = "https://studio.example"
    parts = AccessPart(origins=(origin,))
    run = str(tmp_path / "run")
    answers = opened(ServeRecipe(run=run, access=parts))
    answer = answers.post("/v1/generate", json={"prompts": []}, headers={"Origin": origin})
    assert (answer.json(), answer.headers["Access-Control-Allow-Origin"]) == (LOCAL, origin)
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-API-Key"}
    with_keys = opened(ServeRecipe(run=run, access=AccessPart(keys=str(tmp_path / "keys.toml"), origins=(origin,))))
    assert with_keys.options("/v1/generate", headers=asked).status_code == 200  # a preflight has no key
    refused = with_keys.post("/v1/generate", headers={"Origin": origin})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, origin)
    stranger = with_keys.post("/v1/generate", headers={"Origin": "https://evil.example", "X-API-Key": key}, json={})
    assert "Access-Control-Allow-Origin" not in stranger.headers


def test_a_server_with_keys_may_stand_behind_another_name(keyed: TestClient, key: str) -> None:
    headers = {"Host": "pictures.example", "Origin": "https://pictures.example", "X-API-Key": key}
    assert keyed.post("/v1/generate", json={"prompts": []}, headers=headers).json()["name"] == "ada"


@pytest.fixture
def tight(tmp_path: Path, opened: Opening) -> TestClient:
    return opened(ServeRecipe(run=str(tmp_path / "run"), limits=LimitsPart(max_body_bytes=2**16)))


def test_a_body_that_says_that_it_is_too_large_is_refused_in_words(tight: TestClient) -> None:
    for length in (2**16 + 1, 10**17, 10**40):
        answer = tight.post("/v1/generate", content=b"{}", headers={"Content-Length": str(length)})
        assert answer.status_code == 413
        assert "larger than 65536 bytes (limits.max_body_bytes)" in answer.text


def test_a_body_without_a_length_is_refused_where_it_becomes_too_large(tight: TestClient) -> None:
    read = 0

    def parts() -> Iterator[bytes]:
        nonlocal read
        yield b'{"prompts": ["'
        for _ in range(100):
            read += 2**14
            yield b"x" * 2**14
        yield b'"]}'

    answer = tight.post("/v1/generate", content=parts())
    assert answer.status_code == 413
    assert "larger than 65536 bytes" in answer.text


def test_a_body_of_just_the_size_is_read(tight: TestClient) -> None:
    body = b'{"prompts": []}'.ljust(2**16)
    assert tight.post("/v1/generate", content=body).json() == LOCAL
    assert tight.post("/v1/generate", content=iter([body[:100], body[100:]])).json() == LOCAL
    assert tight.post("/v1/generate", content=iter([body, b" "])).status_code == 413


def test_every_answer_has_a_request_id_and_says_licence_and_source(tmp_path: Path, opened: Opening) -> None:
    about = AboutPart(source_url="https://example.org/weights?a=<b>")
    answers = opened(ServeRecipe(run=str(tmp_path / "run"), about=about))
    asked = [
        answers.get("/"),
        answers.get("/nothing"),
        answers.put("/v1/generate"),
        answers.post("/v1/generate", json={}),
        answers.get("/broken"),
        answers.get("/", headers={"Host": "evil.example"}),
    ]
    assert [answer.status_code for answer in asked] == [200, 404, 405, 500, 500, 403]
    for answer in asked:
        links = '</v1/about>; rel="license", <https://example.org/weights?a=%3Cb%3E>; rel="source"'
        assert answer.headers["Link"] == links
        assert len(answer.headers["X-Request-ID"]) == 32
    assert len({answer.headers["X-Request-ID"] for answer in asked}) == len(asked)


@pytest.mark.parametrize(("sent", "is_taken"), [("a-1.b_2:c", True), ("", False), ("a b", False), ("x" * 65, False)])
def test_a_request_id_is_taken_if_it_is_sane(
    open_recipe: ServeRecipe, sent: str, is_taken: bool, opened: Opening
) -> None:
    found = opened(open_recipe).get("/", headers={"X-Request-ID": sent}).headers["X-Request-ID"]
    assert (found == sent) is is_taken
    assert found


def test_the_log_has_who_asked_for_what_and_no_key_query_or_prompt(keyed: TestClient, key: str, tmp_path: Path) -> None:
    headers = {"X-API-Key": key, "X-Request-ID": "r-1"}
    answer = keyed.post("/v1/generate?secret=query", json={"prompts": ["a secret", "b"]}, headers=headers)
    keyed.get(f"/v1/jobs/7/events?key={key}")
    keyed.get("/v1/jobs/8", headers={"X-API-Key": "sote_wrong"})
    keyed.get("/v1/about")
    first, events, refused, about = log_lines(tmp_path)
    assert first | {"time": "", "seconds": 0} == {
        "time": "",
        "request_id": "r-1",
        "method": "POST",
        "route": "/v1/generate",
        "status": 200,
        "seconds": 0,
        "visitor": "ada",
        "bytes": len(answer.content),
        "images": 2,
    }
    assert first["seconds"] > 0
    assert (events["route"], events["visitor"]) == ("/v1/jobs/{name}/events", "ada")
    assert (refused["route"], refused["status"], refused["visitor"]) == ("(none)", 401, "")
    assert (about["route"], about["visitor"]) == ("/v1/about", "")
    text = (tmp_path / "run" / "access.jsonl").read_text()
    for secret in (key, "sote_wrong", "secret"):
        assert secret not in text


def test_figures_count_by_template_and_never_by_path(open_recipe: ServeRecipe, opened: Opening) -> None:
    figures = Figures()
    answers = opened(open_recipe, figures)
    for number in range(50):
        answers.get(f"/v1/jobs/{number}")
        answers.get(f"/nothing/{number}")
        answers.request(f"ODD{number}", "/")
    answers.get("/broken")
    text = figures.text().decode()
    assert 'sote_requests_total{method="GET",route="/v1/jobs/{name}",status="200"} 50.0' in text
    assert 'sote_requests_total{method="GET",route="(none)",status="404"} 50.0' in text
    assert 'method="OTHER",route="/",status="405"} 50.0' in text
    assert 'route="/broken",status="500"} 1.0' in text
    assert "sote_requests_in_flight 0.0" in text
    assert text.count("sote_requests_total{") == 4


def test_a_stream_passes_as_it_comes_and_a_client_that_goes_is_noted(open_recipe: ServeRecipe, tmp_path: Path) -> None:
    app = application(open_recipe)
    parts: list[dict[str, Any]] = []

    async def go() -> None:
        gone = anyio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            parts.append(message)
            if message.get("body") == b"one":  # it came before the stream's end, which never comes
                gone.set()

        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": "/stream"}
        scope |= {"raw_path": b"/stream", "root_path": "", "scheme": "http", "query_string": b""}
        scope |= {"headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}
        with anyio.fail_after(20):
            await app(scope, receive, send)

    anyio.run(go)
    end(app)
    assert [part["type"] for part in parts][:2] == ["http.response.start", "http.response.body"]
    (line,) = log_lines(tmp_path)
    assert (line["route"], line["status"], line["bytes"]) == ("/stream", 200, 3)


def test_a_request_that_is_cancelled_before_its_answer_is_noted_as_499(tmp_path: Path) -> None:
    recipe = ServeRecipe(run=str(tmp_path / "run"))
    app = application(recipe)

    @app.get("/slow")
    async def slow() -> None:
        await anyio.sleep_forever()

    async def go() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=HERE) as asking:
            with anyio.move_on_after(0.2):
                await asking.get("/slow")

    anyio.run(go)
    end(app)
    (line,) = log_lines(tmp_path)
    assert (line["route"], line["status"], line["bytes"]) == ("/slow", 499, 0)


def test_a_websocket_is_closed_before_anything_looks_at_it(open_recipe: ServeRecipe) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    anyio.run(application(open_recipe), {"type": "websocket", "path": "/", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
