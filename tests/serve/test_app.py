"""The server as it is run: `sote serve` as a process of its own, asked over HTTP, ended by a signal."""

import asyncio
import base64
import io
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

from sote.cluster import logs
from sote.cluster import recipe as recipes
from sote.cluster.errors import CheckpointError, RunFailed, UserError
from sote.cluster.storage import RunFolder
from sote.serve import app
from sote.serve.cascade import Cascade
from sote.serve.recipe import DefaultsPart, ModelPart, ServeRecipe
from sote.serve.schema import GenerateRequest

PNG = {"Accept": "image/png"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def recipe(part: ModelPart, small: DefaultsPart, **fields: object) -> ServeRecipe:
    return ServeRecipe.model_validate({"run": "r", "port": free_port(), "model": part, "defaults": small, **fields})


@dataclass(frozen=True)
class Server:
    """A running `sote serve`: its process, a client of its URL, its run folder."""

    process: "subprocess.Popen[str]"
    client: httpx.Client
    run: Path


@pytest.fixture(scope="module")
def server(part: ModelPart, small: DefaultsPart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    written = recipe(part, small, run=str(folder / "run"), prior_replicas={"max_queued_requests": 1})
    (folder / "serve.toml").write_text(recipes.dumps(written))
    command = [sys.executable, "-m", "sote.cluster.cli", "serve", str(folder / "serve.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()  # type: ignore[union-attr]
        assert url == f"http://127.0.0.1:{written.port}"
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield Server(process, client, folder / "run")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


@pytest.fixture
def client(server: Server) -> httpx.Client:
    return server.client


def test_one_post_returns_the_png_that_the_cascade_paints(
    client: httpx.Client, part: ModelPart, small: DefaultsPart
) -> None:
    asked = {"prompt": "a red circle", "seed": 3}
    one, other = (client.post("/v1/generate", json=asked, headers=PNG) for _ in range(2))
    assert one.status_code == 200
    assert one.headers["content-type"] == "image/png"
    assert one.headers["x-sote-seed"] == "3"
    image = Image.open(io.BytesIO(one.content))
    assert image.size == (256, 384)
    assert image.info["parameters"].startswith("a red circle\n")
    assert one.content == other.content
    here = Cascade.load(part, defaults=small).generate(GenerateRequest.model_validate(asked))[0]
    assert here.parameters == image.info["parameters"]


def test_json_has_fals_form(client: httpx.Client) -> None:
    answer = client.post("/v1/generate", json={"prompt": "a", "seed": 8, "num_images": 2, "output_format": "webp"})
    body = answer.json()
    assert answer.status_code == 200
    assert (body["seed"], body["prompt"], len(body["images"])) == (8, "a", 2)
    assert "has_nsfw_concepts" not in body
    assert body["timings"]["inference"] >= body["timings"]["prior"] > 0
    first = body["images"][0]
    assert (first["content_type"], first["width"], first["height"]) == ("image/webp", 256, 384)
    head, _, data = first["url"].partition(",")
    assert head == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).format == "WEBP"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "prompt: Field required"),
        ({"prompt": "a", "image_size": {"width": 1000, "height": 512}}, "image_size.width: 1000 is not a multiple of"),
        ({"prompt": "a", "image_size": {"width": 2560, "height": 2560}}, "image_size: 2560x2560 is 6553600 pixels"),
        ({"prompt": "a", "sampler": "heun"}, "sampler: Input should be 'ddpm', 'euler'"),
        ({"prompt": "a", "num_images": 2}, "num_images: 2 pictures do not go into one image answer"),
    ],
)
def test_a_wrong_request_is_answered_422_in_words(client: httpx.Client, asked: dict[str, object], words: str) -> None:
    answer = client.post("/v1/generate", json=asked, headers=PNG)
    assert answer.status_code == 422
    assert words in answer.json()["message"]
    assert answer.json()["detail"][0]["loc"][0] == "body"


def test_a_full_line_is_answered_429_and_says_when_to_come_again(client: httpx.Client) -> None:
    asked = {"prompt": "a", "image_size": "square", "first_stage_steps": 50}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/generate", json=asked, headers=PNG), range(8)))
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 429}
    full = next(answer for answer in answers if answer.status_code == 429)
    assert int(full.headers["retry-after"]) >= 1
    assert "the line is full" in full.json()["message"]


def test_health_readiness_and_the_document_are_there(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["deployments"] == {"Prior": "HEALTHY", "Decoder": "HEALTHY", "Ingress": "HEALTHY"}
    assert "swagger" in client.get("/docs").text
    assert client.get("/openapi.json").json()["info"]["title"] == "Sote"


def test_a_second_server_on_the_same_port_is_refused_before_anything_starts(
    server: Server, part: ModelPart, small: DefaultsPart, tmp_path: Path
) -> None:
    port = server.client.base_url.port
    with pytest.raises(UserError, match=rf"port: {port} on 127\.0\.0\.1 cannot be used"):
        app.run(recipe(part, small, port=port), folder=RunFolder(tmp_path / "run"), address=None)
    assert not (tmp_path / "run").exists()
    assert server.client.get("/healthz").status_code == 200


def test_the_command_ends_with_0_and_without_a_word_when_it_is_told_to(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    words, errors = server.process.communicate(timeout=120)
    assert (server.process.returncode, words, errors) == (0, "", "")
    with pytest.raises(httpx.ConnectError):
        server.client.get("/healthz")
    [line] = [line for line in logs.read_metrics(server.run / "metrics.jsonl") if line["kind"] == "serve"]
    assert line["url"] == str(server.client.base_url)


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"cannot be used .Address already in use.; set `port`"):
            app.check_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="cannot be used"):
        app.check_port("192.0.2.1", 8000)  # TEST-NET-1: no machine has it


def test_what_a_replica_could_not_start_for_is_raised_as_it_was_there() -> None:
    broken = app._failure("sote.cluster.errors.CheckpointError: model.prior: of another shape")
    assert isinstance(broken, CheckpointError)
    assert str(broken) == "model.prior: of another shape"
    assert isinstance(app._failure("torch.OutOfMemoryError: CUDA out of memory"), RunFailed)


def test_work_that_nobody_waits_for_ends_at_its_next_step() -> None:
    seen: list[int] = []
    started, ended = threading.Event(), threading.Event()

    def task(each_step: Callable[[int], None]) -> None:
        try:
            for step in range(1000):
                each_step(step)
                seen.append(step)
                started.set()
                ended.wait(0.01)
        finally:
            ended.set()

    async def give_up() -> None:
        line = app.Line()
        work = asyncio.create_task(line.work(task))
        await asyncio.to_thread(started.wait)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert await line.work(lambda each_step: 7) == 7

    asyncio.run(give_up())
    assert ended.is_set()
    assert len(seen) < 1000
