"""The server as it is run: `sote serve` as a process of its own, asked over HTTP, updated and ended by signals.

One process serves all tests here, in the order in which they stand: the last one ends it.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
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

pytestmark = pytest.mark.timeout(900)  # the first test waits for the server's start, on a busy machine for minutes

PNG = {"Accept": "image/png"}
LONG = {"prompt": "a", "image_size": {"width": 512, "height": 512}, "first_stage_steps": 50, "second_stage_steps": 24}
SLOTS, QUEUE = 4, 1
WAIT_SECONDS = 150.0  # on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def recipe(part: ModelPart, small: DefaultsPart, **fields: object) -> ServeRecipe:
    return ServeRecipe.model_validate({"run": "r", "port": free_port(), "model": part, "defaults": small, **fields})


@dataclass(frozen=True)
class Server:
    """A running `sote serve`: its process, a client of its URL, its recipe file and run folder."""

    process: "subprocess.Popen[str]"
    client: httpx.Client
    recipe: Path
    run: Path

    def paint(self, **asked: object) -> httpx.Response:
        return self.client.post("/v1/generate", json=asked, headers=PNG)

    def replica(self, name: str) -> int:
        """The process of the replica of a deployment."""
        title = f"ray::ServeReplica:sote:{name}"
        [pid] = [pid for pid in descendants(self.process.pid) if cmdline(pid).startswith(title)]
        return pid


def descendants(pid: int) -> list[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture(scope="module")
def server(part: ModelPart, small: DefaultsPart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    line = {"slots": SLOTS, "max_queued_requests": QUEUE}
    written = recipe(part, small, run=str(folder / "run"), prior_replicas=line)
    path = folder / "serve.toml"
    path.write_text(recipes.dumps(written))
    command = [sys.executable, "-m", "sote.cluster.cli", "serve", str(path)]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        url = process.stdout.readline().strip()  # type: ignore[union-attr]
        assert url == f"http://127.0.0.1:{written.port}", (folder / "errors").read_text()
        with httpx.Client(base_url=url, timeout=WAIT_SECONDS, trust_env=False) as client:
            yield Server(process, client, path, folder / "run")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def pixels(answer: httpx.Response) -> np.ndarray[Any, Any]:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)), dtype=np.int16)


def words_said(server: Server) -> list[str]:
    return (server.recipe.parent / "errors").read_text().splitlines()


def test_the_plan_of_memory_is_said_before_the_url(server: Server) -> None:
    assert words_said(server)[0].startswith("memory, about: prior ")


def test_one_post_returns_the_png_that_the_cascade_paints(server: Server, part: ModelPart, small: DefaultsPart) -> None:
    asked = {"prompt": "a red circle", "seed": 3}
    one, other = (server.paint(**asked) for _ in range(2))
    assert one.status_code == 200
    assert one.headers["content-type"] == "image/png"
    assert one.headers["x-sote-seed"] == "3"
    assert len(one.headers.get_list("x-request-id")) == 1
    assert "x-sote-answer" not in one.headers
    image = Image.open(io.BytesIO(one.content))
    assert image.size == (256, 384)
    assert image.info["parameters"].startswith("a red circle\n")
    assert one.content == other.content
    here = Cascade.load(part, defaults=small).generate(GenerateRequest.model_validate(asked))[0]
    assert here.parameters == image.info["parameters"]


def test_health_readiness_and_the_document_are_there(server: Server) -> None:
    assert server.client.get("/healthz").json() == {"status": "ok"}
    ready = server.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["deployments"] == {"Prior": "HEALTHY", "Decoder": "HEALTHY", "Ingress": "HEALTHY"}
    assert server.client.get("/openapi.json").json()["info"]["title"] == "Sote"


def test_a_job_tells_of_its_steps_and_keeps_its_picture(server: Server) -> None:
    client = server.client
    made = client.post("/v1/jobs", json={"prompt": "a", "seed": 1})
    assert made.status_code < 300, made.text
    [job] = [value for name, value in made.json().items() if name in ("id", "request_id")][:1]
    with client.stream("GET", f"/v1/jobs/{job}/events") as events:
        lines = [line for line in events.iter_lines() if line.startswith("data:")]
    assert len(lines) >= 2
    assert "COMPLETED" in lines[-1]
    assert any("decoder" in line for line in lines)


def test_a_full_line_is_answered_429_and_says_when_to_come_again(server: Server) -> None:
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: server.paint(**LONG), range(24)))
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 429}
    full = next(answer for answer in answers if answer.status_code == 429)
    assert int(full.headers["retry-after"]) >= 1
    assert "the line is full" in full.json()["message"]


@pytest.mark.parametrize("name", ["Prior", "Ingress"])
def test_no_request_is_lost_with_a_replica_that_dies_under_it(server: Server, name: str) -> None:
    alone = [pixels(server.paint(**LONG, seed=seed)) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        asked: list[Future[httpx.Response]] = [pool.submit(server.paint, **LONG, seed=seed) for seed in range(2)]
        time.sleep(0.5)
        os.kill(server.replica(name), signal.SIGKILL)
        again = [pixels(each.result()) for each in asked]
    for one, other in zip(alone, again, strict=True):
        # Pictures that step side by side are equal to 1e-5 before they are rounded
        assert np.abs(one - other).max() <= 1


def test_a_changed_recipe_is_taken_over_without_a_failed_request(server: Server) -> None:
    text = server.recipe.read_text()
    server.recipe.write_text(text.replace("width = 256", "width = 384"))
    codes: list[int] = []
    server.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + WAIT_SECONDS
    while "serve update" not in (server.run / "metrics.jsonl").read_text():
        codes.append(server.paint(prompt="a").status_code)
        assert time.monotonic() < deadline
    assert set(codes) == {200}
    assert pixels(server.paint(prompt="a")).shape == (384, 384, 3)
    assert "width = 384" in (server.run / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("127.0.0.1", "localhost"), "host: localhost instead of 127.0.0.1: stays while the server runs"),
        (("width = ", "widht = "), "widht: unknown key"),
        (("decoder_steps = 4", "decoder_steps = 400"), "defaults.decoder_steps: input should be less than"),
    ],
)
def test_a_recipe_that_cannot_be_served_is_said_in_a_line_and_the_one_before_goes_on(
    server: Server, change: tuple[str, str], words: str
) -> None:
    text, before = server.recipe.read_text(), len(words_said(server))
    server.recipe.write_text(text.replace(*change))
    server.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + WAIT_SECONDS
    while len(words_said(server)) == before and time.monotonic() < deadline:
        time.sleep(0.1)
    server.recipe.write_text(text)
    [said] = words_said(server)[before:]
    assert words in said
    assert said.endswith("the server goes on with the recipe before")
    assert server.paint(prompt="a").status_code == 200


def test_a_second_server_on_the_same_port_is_refused_before_anything_starts(
    server: Server, part: ModelPart, small: DefaultsPart, tmp_path: Path
) -> None:
    port = server.client.base_url.port
    with pytest.raises(UserError, match=rf"port: {port} on 127\.0\.0\.1 cannot be used"):
        app.run(recipe(part, small, port=port), folder=RunFolder(tmp_path / "run"), address=None)
    assert not (tmp_path / "run").exists()
    assert server.client.get("/healthz").status_code == 200


def test_the_command_finishes_what_it_works_on_and_ends_with_0_when_it_is_told_to(server: Server) -> None:
    said = len(words_said(server))
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.paint, **LONG, seed=seed) for seed in range(2)]
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        late = server.paint(prompt="a")
        assert [each.result().status_code for each in asked] == [200, 200]
    assert late.status_code == 503
    assert "the server is ending" in late.json()["message"]
    words, _ = server.process.communicate(timeout=WAIT_SECONDS)
    assert (server.process.returncode, words, words_said(server)[said:]) == (0, "", [])
    with pytest.raises(httpx.ConnectError):
        server.client.get("/healthz")
    [line] = [line for line in logs.read_metrics(server.run / "metrics.jsonl") if line["kind"] == "serve"]
    assert line["url"] == str(server.client.base_url)
    assert json.loads((server.run / "run.json").read_text())["exit_code"] == 0


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
