"""The application as a whole: its document, errors in each API's form, and input that is garbage."""

import asyncio
import base64
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from sote.cluster.errors import AccessError, Busy, NoMemory, RequestError, RunFailed
from sote.serve import answers, api, keys
from sote.serve.access import Gate
from sote.serve.context import Context
from sote.serve.recipe import AccessPart
from sote.serve.service import Painting, Watch
from sote.serve.settings import Numbers, Settings

PATHS = ("/v1/generate", "/v1/images/generations", "/sdapi/v1/txt2img")


def test_the_routes_need_no_torch() -> None:
    code = "import sys, sote.serve.api; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_every_api_of_the_contract_is_there(document: dict[str, Any]) -> None:
    assert {
        *("/healthz", "/readyz", "/metrics", "/v1/generate", "/v1/decode", "/v1/jobs", "/v1/about"),
        *("/v1/images/generations", "/v1/models", "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/progress"),
        *("/sdapi/v1/interrupt", "/sdapi/v1/samplers", "/sdapi/v1/sd-models", "/sdapi/v1/options"),
    } <= set(document["paths"])


def test_every_route_says_what_it_does_and_every_failure_that_it_may_answer(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        told = operation["responses"]
        assert {"401", "403", "500"} <= set(told), where
        if "requestBody" in operation:
            assert {"413", "400" if answers.form_of(path) == "openai" else "422"} <= set(told), where
        for status, answer in told.items():
            assert answer["description"], where
            assert "Link" in answer["headers"], where
            if status in ("429", "503") and path != "/readyz":
                assert "Retry-After" in answer["headers"], where


def test_every_body_has_an_example_that_is_taken_and_every_field_a_description(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    seen = 0
    for path, method, operation in operations(document):
        if "requestBody" not in operation:
            continue
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert schemas[name]["examples"], f"{method} {path}"
        for field, schema in schemas[name]["properties"].items():
            if field not in ("negative_prompt",):
                assert schema.get("description") or "$ref" in schema, f"{name}.{field}"
        seen += 1
    assert seen >= 8


def test_the_document_has_no_forms_of_others(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in json.dumps(document)


def test_the_page_of_the_document_works(client: TestClient) -> None:
    assert "swagger" in client.get("/docs").text


def message_of(body: dict[str, Any]) -> str:
    """Of any of the three forms."""
    if "error" in body and isinstance(body["error"], dict):
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return str(body["error"]["message"])
    if "error" in body:
        assert set(body) == {"error", "detail", "body", "errors"}
        return str(body["detail"])
    assert set(body) == {"message", "detail"}
    return str(body["message"])


GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "a lone half of a letter": b'{"prompt": "\\ud800"}',
    "a field that is a half of a letter": b'{"prompt": "a", "\\udfff": 1}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "NaN": b'{"prompt": "a", "guidance_scale": NaN, "cfg_scale": NaN}',
    "Infinity": b'{"prompt": "a", "guidance_scale": -Infinity, "cfg_scale": Infinity, "seed": 1e999}',
    "huge": b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
    "big": b'{"prompt": "a", "seed": 18446744073709551616, "steps": 1e308}',
    "a list": b"[]",
    "a word": b'"prompt"',
    "null": b"null",
    "a number": b"1",
    "wrong types": b'{"prompt": {"a": []}, "seed": "x", "size": 3, "width": "a", "n": [], "override_settings": 5}',
    "many fields": json.dumps({"prompt": "a", "seed": "?"} | {f"f{n}": n for n in range(20_000)}).encode(),
    "a long name": json.dumps({"prompt": 1, "sampler": "x" * 100_000, "sampler_name": "y" * 100_000}).encode(),
    "a zero": b'{"prompt": "\\u0000", "seed": -2}',
}


@pytest.mark.parametrize("path", [*PATHS, "/v1/decode", "/sdapi/v1/img2img", "/sdapi/v1/png-info", "/v1/jobs"])
@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused_in_the_form_of_the_api(client: TestClient, path: str, name: str) -> None:
    answer = client.post(path, content=GARBAGE[name], headers={"Content-Type": "application/json"})
    assert answer.status_code == (400 if answers.form_of(path) == "openai" else 422)
    message = message_of(answer.json())
    assert message
    assert len(answer.content) < 50_000
    if name in ("nothing", "a list", "a word", "null", "a number"):
        assert "a JSON object is wanted" in message


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
def test_another_content_type_is_told_which_one_is_wanted(client: TestClient, path: str, kind: str) -> None:
    answer = client.post(path, content=b'{"prompt": "a"}', headers={"Content-Type": kind})
    assert answer.status_code in (400, 422)
    assert "application/json" in message_of(answer.json())


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/images", "/sdapi/v1/nothing", "/nothing"])
def test_a_path_that_is_none_is_404_in_the_form_of_the_api(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert message_of(answer.json()) == "Not Found"


def test_another_method_is_405_and_says_which(client: TestClient) -> None:
    answer = client.put("/v1/generate", json={})
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"


def test_a_body_that_is_too_large_is_413_in_the_form_of_the_api(client: TestClient, context: Context) -> None:
    body = b" " * (context.recipe.limits.max_body_bytes + 1)
    for path in PATHS:
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert "limits.max_body_bytes" in message_of(answer.json())


@pytest.mark.parametrize("host", ["127.0.0.1:x", "[", "[::1", "exa mple", "\x7f", "127.0.0.1:99999999", ""])
def test_a_host_that_is_none_is_no_failure_of_the_server(client: TestClient, host: str) -> None:
    answer = client.post("/v1/generate", json={"prompt": "a"}, headers={"Host": host})
    assert answer.status_code < 500


class Broken:
    """A service that raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def paint(self, settings: Settings, *, watch: Watch | None = None) -> Painting:
        raise self.error

    async def decode(self, latents: Numbers, settings: Settings, *, watch: Watch | None = None) -> Painting:
        raise self.error

    async def deployments(self) -> dict[str, str]:
        return {}


def raised(cause: Exception) -> RayTaskError:
    """As a handle of Ray's raises what a replica did."""
    error: RayTaskError = RayTaskError("paint", "trace", cause)  # type: ignore[no-untyped-call]
    return error


FAILURES: list[tuple[BaseException, int, str]] = [
    (Busy("the line is full; come again in 7 s", retry_after_seconds=7), 429, "come again in 7 s"),
    (RunFailed("prior: step 3 gave values that are not finite"), 500, "prior: step 3"),
    (NoMemory("decoder: no memory for 2048x2048"), 503, "no memory for 2048x2048"),
    (RayActorError(), 503, "was lost while it worked on this; ask again"),
    (DeploymentUnavailableError.__new__(DeploymentUnavailableError), 503, "a model is not up"),
    (raised(RunFailed("vqgan: not finite")), 500, "vqgan: not finite"),
    (raised(Busy("full", retry_after_seconds=2)).as_instanceof_cause(), 429, "full"),  # type: ignore[no-untyped-call]
    (raised(RequestError("image_url: no encoder")), 422, "no encoder"),
    (AccessError("num_images: 4 asked for", status=403), 403, "4 asked for"),
    (ZeroDivisionError("secret"), 500, "the server failed; its log says more"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("error", "status", "words"), FAILURES, ids=lambda value: str(value)[:30])
def test_each_failure_has_its_status_in_every_api(
    context: Context, path: str, error: BaseException, status: int, words: str
) -> None:
    desk = replace(context.desk, service=Broken(error))
    app = api.build(replace(context, desk=desk))
    client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)  # jobs do not start
    for fields in ({}, {"stream": True}) if "images" in path else ({},):
        answer = client.post(path, json={"prompt": "a"} | fields)
        assert answer.status_code == (400 if status == 422 and answers.form_of(path) == "openai" else status)
        assert words in message_of(answer.json())
        if status in (429, 503):
            assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["Link"]


def test_a_server_with_keys_asks_for_one_in_the_form_of_the_api_and_takes_it_in_every_way(
    context: Context, tmp_path: Path
) -> None:
    key = keys.add(tmp_path / "keys.toml", "ada", keys.Limits(max_images=1))
    recipe = context.recipe.model_copy(update={"access": AccessPart(keys=str(tmp_path / "keys.toml"))})
    app = api.build(replace(context, recipe=recipe, gate=Gate.of(recipe)))
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    for path in PATHS:
        answer = client.post(path, json={"prompt": "a"})
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"]
        assert "asks for a key" in message_of(answer.json())
        wrong = client.post(path, json={"prompt": "a"}, headers={"X-API-Key": "wrong"})
        assert (wrong.status_code, "not known" in message_of(wrong.json())) == (401, True)
        count = {"/v1/generate": "num_images", "/v1/images/generations": "n"}.get(path, "n_iter")
        more = client.post(path, json={"prompt": "a", count: 2}, headers={"X-API-Key": key})
        assert (more.status_code, "max_images" in message_of(more.json())) == (403, True)
    basic = base64.b64encode(f"user:{key}".encode()).decode()
    for header in (f"Bearer {key}", f"Key {key}", f"Basic {basic}"):
        assert client.get("/v1/models", headers={"Authorization": header}).status_code == 200


def test_the_document_is_made_without_a_warning(context: Context) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = api.build(context).openapi()
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_who_leaves_cancels_the_painting(context: Context) -> None:
    """The handler is awaited by the server itself: what cancels it reaches the models."""
    seen: list[str] = []

    class Slow(Broken):
        async def paint(self, settings: Settings, *, watch: Watch | None = None) -> Painting:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append(settings.prompt)
                raise
            raise AssertionError

    async def run() -> None:
        app = api.build(replace(context, desk=replace(context.desk, service=Slow(RunFailed("")))))
        for path in PATHS:
            body = json.dumps({"prompt": path}).encode()
            task = asyncio.create_task(app(scope_of(path), receiver(body), sender()))
            await asyncio.sleep(0.2)
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(run())
    assert seen == list(PATHS)


def scope_of(path: str) -> dict[str, Any]:
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


def receiver(body: bytes) -> Any:
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await asyncio.sleep(60)
        raise AssertionError

    return receive


def sender() -> Any:
    async def send(message: dict[str, Any]) -> None:
        return None

    return send
