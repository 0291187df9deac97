"""OpenAI's API over the stand-ins: its forms, its stream, and its official client where that is installed."""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from sote.cluster.errors import RunFailed
from sote.serve import api
from sote.serve.api_openai import EventStream, Partial, Watched, _events
from sote.serve.context import Context
from sote.serve.schema_openai import ImagesRequest
from sote.serve.service import Painting, Watch
from sote.serve.settings import Progress, Settings

URL = "/v1/images/generations"


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def made(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"prompt": "a red circle", "seed": 5, "response_format": "b64_json"} | fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"prompt": "a"} | fields)
    assert answer.status_code == 400
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def events(client: TestClient, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = client.post(URL, json={"prompt": "a red circle", "seed": 5, "stream": True} | fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_pictures_come_as_openai_answers_them(client: TestClient) -> None:
    found = made(client, n=2, size="384x256", output_format="webp", output_compression=40)
    assert [opened(image["b64_json"]).size for image in found["data"]] == [(384, 256)] * 2
    assert [image["seed"] for image in found["data"]] == [5, 6]
    assert (found["size"], found["output_format"], found["background"]) == ("384x256", "webp", "opaque")
    assert found["usage"] == {
        "input_tokens": 3,
        "output_tokens": 2 * 9 * 6,
        "total_tokens": 3 + 2 * 9 * 6,
        "input_tokens_details": {"text_tokens": 3, "image_tokens": 0},
    }
    assert abs(found["created"] - time.time()) < 60


def test_it_is_the_picture_of_the_native_api(client: TestClient) -> None:
    native = client.post("/v1/generate", json={"prompt": "a red circle", "seed": 5, "sync_mode": True}).json()
    assert made(client)["data"][0]["b64_json"] == native["images"][0]["url"].partition(",")[2]


def test_without_a_format_of_the_answer_it_is_an_address(client: TestClient) -> None:
    url = made(client, response_format="url")["data"][0]["url"]
    assert client.get(url).headers["content-type"] == "image/png"


def test_what_has_no_effect_is_taken(client: TestClient) -> None:
    fields = {"quality": "hd", "style": "vivid", "background": "auto", "moderation": "low", "user": "u"}
    assert made(client, **fields)["data"] == made(client, size="auto")["data"]


def test_whole_prompts_are_shown_where_tags_were_put_before(client: TestClient) -> None:
    assert "revised_prompt" not in made(client)["data"][0]
    assert made(client, use_default_tags=True)["data"][0]["revised_prompt"].endswith("best quality, a red circle")


def test_refusals_name_openais_fields(client: TestClient) -> None:
    wrong = refused(client, size="300x256")
    assert wrong["param"] == "size"
    assert wrong["message"] == "size: 300 is not a multiple of 128 pixels; nearest: 256 and 384"
    assert "wanted is `auto`, or WIDTHxHEIGHT" in refused(client, size="large")["message"]
    assert refused(client, n=4)["message"] == "n: 4 asked for, this server makes at most 3"
    assert refused(client, n=11)["param"] == "n"
    assert "prompt" in refused(client, prompt=None)["message"]
    assert refused(client, partial_images=4)["param"] == "partial_images"
    assert "known: ddpm, euler" in refused(client, sampler="heun")["message"]
    assert "leave one out" in refused(client, n=1, num_images=2)["message"]
    assert refused(client, size_policy="round", size="0x100")["param"] == "size"


def test_a_size_is_rounded_where_that_is_asked_for(client: TestClient) -> None:
    assert made(client, size="300x250", size_policy="round")["size"] == "256x256"


def test_short_names_and_native_ones_are_taken() -> None:
    asked = ImagesRequest.model_validate(
        {"prompt": "a", "steps": 5, "guidance_scale": 3, "second_stage_steps": 6, "output_compression": 7}
    ).native()
    assert (asked.first_stage_steps, asked.second_stage_steps, asked.output_quality) == (5, 6, 7)
    assert (asked.guidance_scale, asked.num_images) == (3, 1)


def test_the_model_is_listed_and_others_are_not_found(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert listed["data"][0] == client.get("/v1/models/stand-in").json()
    assert listed["data"][0]["id"] == "stand-in"
    assert made(client, model="stand-in")
    other = client.get("/v1/models/dall-e-3")
    error = other.json()["error"]
    assert other.status_code == 404
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"] == "model: 'dall-e-3' is not here; this server has 'stand-in'"


def test_a_client_that_names_another_model_is_told_which_one_painted(client: TestClient) -> None:
    answer = client.post(URL, json={"prompt": "a", "model": "dall-e-3"})
    assert answer.status_code == 200
    assert "model: 'dall-e-3' is not here; this server has 'stand-in'" in answer.json()["warnings"]


def test_a_stream_has_previews_and_then_the_picture(client: TestClient) -> None:
    found = events(client, partial_images=2)
    *partial, (name, last) = found
    assert name == last["type"] == "image_generation.completed"
    assert last["b64_json"] == made(client)["data"][0]["b64_json"]
    assert last["usage"]["input_tokens"] == 3
    assert 1 <= len(partial) <= 2
    for index, (name, data) in enumerate(partial):
        assert name == data["type"] == "image_generation.partial_image"
        assert (data["partial_image_index"], data["output_format"]) == (index, "jpeg")
        assert opened(data["b64_json"]).format == "JPEG"
        assert {"created_at", "size", "quality", "background"} <= set(data)


def test_a_stream_without_previews_has_one_event_for_each_picture(client: TestClient) -> None:
    assert [data["seed"] for _, data in events(client, n=2)] == [5, 6]


def test_a_stream_that_is_refused_is_an_error_with_its_own_status(client: TestClient) -> None:
    assert refused(client, stream=True, size="1x1")["param"] == "size"


def test_a_painting_that_fails_on_the_way_ends_the_stream_with_an_error(context: Context) -> None:
    class Failing:
        async def paint(self, settings: Settings, *, watch: Watch | None = None) -> Painting:
            assert watch is not None
            watch(Progress("prior", 1, 4))
            await asyncio.sleep(0.05)
            raise RunFailed("prior: step 2 gave values that are not finite")

    desk = replace(context.desk, service=Failing())  # type: ignore[arg-type]
    client = TestClient(api.build(replace(context, desk=desk)), base_url="http://127.0.0.1:8000")
    [(name, data)] = events(client)
    assert name == data["type"] == "error"
    assert data["error"]["type"] == "server_error"
    assert data["error"]["message"].startswith("prior: step 2")


def test_previews_are_spread_over_both_stages() -> None:
    partial = Partial(3, prior_steps=30, decoder_steps=10)
    all_steps = [Progress("prior", step, 30, b"") for step in range(1, 31)]
    all_steps += [Progress("decoder", step, 10, b"") for step in range(1, 11)]
    sent = [(each.stage, each.step) for each in all_steps if partial.due(each) is not None]
    assert sent == [("prior", 10), ("prior", 20), ("prior", 30)]
    assert Partial(0, 30, 10).due(all_steps[0]) is None
    assert Partial(1, 30, 10).due(Progress("decoder", 9, 10)) is None


def test_who_leaves_a_stream_ends_its_painting(context: Context) -> None:
    async def run() -> bool:
        async def paint(watch: Watch) -> Painting:
            watch(Progress("prior", 1, 4, b"x"))
            await asyncio.sleep(60)
            raise AssertionError

        watched = Watched.start(paint)
        first = await watched.seen.get()
        stream = EventStream(_events(watched, first, Partial(3, 1, 1), size="1x1"), watched)
        sent = asyncio.Event()

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.body":
                sent.set()

        async def receive() -> dict[str, Any]:
            await sent.wait()
            return {"type": "http.disconnect"}

        await asyncio.wait_for(stream({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send), 10)
        await asyncio.wait({watched.task}, timeout=5)
        return watched.task.cancelled()

    assert asyncio.run(run())


@pytest.fixture(scope="module")
def address(context: Context, client: TestClient) -> Iterator[str]:
    """A real server on loopback. The jobs of the context are run by `client`."""
    import uvicorn

    config = uvicorn.Config(api.build(context), host="127.0.0.1", port=0, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def test_the_official_client_drives_it(address: str) -> None:
    openai = pytest.importorskip("openai")
    asked = {"prompt": "a red circle", "size": "256x384"}
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as here:
        found = here.images.generate(
            **asked, n=2, response_format="b64_json", extra_body={"seed": 5, "negative_prompt": "blue", "steps": 4}
        )
        assert [opened(image.b64_json).size for image in found.data] == [(256, 384)] * 2
        assert found.usage.input_tokens == 3
        assert here.images.generate(**asked, model="stand-in").data[0].url.startswith(address)
        kinds = []
        for event in here.images.generate(**asked, stream=True, partial_images=2):
            kinds.append(type(event).__name__)
            assert opened(event.b64_json)
            assert isinstance(event.created_at, int)
        assert kinds[-1] == "ImageGenCompletedEvent"
        assert kinds[0] == "ImageGenPartialImageEvent"
        assert [model.id for model in here.models.list()] == ["stand-in"]
        assert here.models.retrieve("stand-in").owned_by == "sote"
        with pytest.raises(openai.BadRequestError) as bad:
            here.images.generate(prompt="a", size="300x256")
        assert (bad.value.param, bad.value.type) == ("size", "invalid_request_error")
        with pytest.raises(openai.NotFoundError):
            here.models.retrieve("dall-e-3")
