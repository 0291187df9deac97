"""The demo's way end to end, as its user runs it: one command, one folder, a report, and recipes that run again."""

import html.parser
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open

from sote.cluster import logs
from sote.data import schema

SOTE = [sys.executable, "-m", "sote.cluster.cli"]


def sote(*words: str, timeout_seconds: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SOTE, *words], capture_output=True, text=True, timeout=timeout_seconds, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The run folder of one demo, and how the command ended."""
    run = tmp_path_factory.mktemp("river") / "demo"
    return run, sote("demo", "--out", str(run))


@pytest.mark.timeout(900)
def test_the_demo_ends_well_names_its_report_and_keeps_the_noise_of_ray_to_itself(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, ended = demo
    assert ended.returncode == 0, ended.stderr
    assert str(run / "report.html") in ended.stdout
    for noise in ("ray::", "core_worker", "INFO worker", "Warning", "deepspeed", "Traceback"):
        assert noise not in ended.stderr + ended.stdout
    for number in range(1, 7):
        assert f"{number}/6" in ended.stderr


def test_the_funnel_of_the_demo_adds_up(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, _ = demo
    table = pq.read_table(run / "catalogue.parquet")
    assert table.schema.equals(schema.CATALOGUE)
    rows = table.to_pylist()
    files = [
        path
        for kind in ("board", "pixiv")
        for path in (run / "pictures" / kind).rglob("*")
        if path.is_file() and path.suffix != ".json"
    ]
    picked = sum(row["pick"] for row in rows)
    skipped = sum(row["skip_reason"] is not None for row in rows)
    failed = sum(row["error"] is not None for row in rows)
    assert len(rows) == len(files) == picked + skipped + failed
    assert picked
    assert skipped
    assert failed


def test_the_drawn_truth_is_found_again_in_most_tags(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, _ = demo
    truth = {entry["file"]: set(entry["tags"]) for entry in map(json.loads, (run / "pictures" / "truth.jsonl").open())}
    found = total = 0
    for row in pq.read_table(run / "catalogue.parquet").to_pylist():
        if row["pick"]:
            real = next(tags for name, tags in truth.items() if row["uri"].endswith(name))
            names = {tag["name"] for tag in row["tags"] if tag["probability"] >= 0.35 and tag["category"] == "general"}
            found, total = found + len(real & names), total + len(real)
    assert found / total > 0.5


def test_training_went_its_steps_and_left_checkpoints(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, _ = demo
    steps = [line for line in logs.read_metrics(run / "metrics.jsonl") if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert steps[-1]["images_seen"] == 160
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-10", "step-20"}


def test_the_exports_load_in_diffusers_and_carry_the_names_that_comfyui_looks_for(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    from diffusers import StableCascadeDecoderPipeline, StableCascadePriorPipeline

    run, _ = demo
    StableCascadePriorPipeline.from_pretrained(run / "export" / "diffusers" / "prior")
    StableCascadeDecoderPipeline.from_pretrained(run / "export" / "diffusers" / "decoder")
    names = {}
    for path in (run / "export").rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names[path.stem] = set(file.keys())
            half = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            assert half <= {"F16", "I64"}
    main, decoder = names["sote-demo_main"], names["sote-demo_decoder"]
    assert {"model.diffusion_model.clf.1.weight", "model.diffusion_model.clip_txt_mapper.weight"} <= main
    assert any(name.startswith("text_encoder.clip_g.transformer.text_model.") for name in main)
    assert {"model.diffusion_model.clip_mapper.weight", "vae.vquantizer.codebook.weight"} <= decoder
    assert "clip_txt_mapper.weight" in names["sote-demo"]


def test_the_painted_picture_is_a_picture_with_its_parameters(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, _ = demo
    with Image.open(run / "images" / "demo.png") as image:
        assert image.size == (512, 512)
        assert image.convert("L").getextrema()[0] < image.convert("L").getextrema()[1]
        assert "Steps: " in image.info["parameters"]


class Loads(html.parser.HTMLParser):
    """Collects what a browser would fetch for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"src", "srcset", "poster", "data"} | ({"href"} if tag == "link" else set())
        self.found += [value or "" for name, value in attrs if name in wanted]


def test_the_report_stands_alone(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, _ = demo
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Loads()
    page.feed(text)
    assert page.found
    assert all(value.startswith("data:") for value in page.found)
    assert not re.search(r"url\((?!['\"]?data:)|@import", text)
    assert len(text) < 4_000_000


def test_the_same_demo_again_makes_nothing_again(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, _ = demo
    kept = [*(run / "rows").rglob("*.parquet"), *(run / "checkpoints").rglob("*.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    for verb in ("curate", "train"):
        ended = sote(verb, str(run / "recipes" / f"{verb}.toml"))
        assert ended.returncode == 0, ended.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == before


@pytest.mark.timeout(400)
def test_the_recipe_of_the_endpoint_serves_until_it_is_told_to_stop(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, _ = demo
    recipe = run / "recipes" / "serve.toml"
    found = re.search(r"^port = (\d+)$", recipe.read_text(), re.MULTILINE)
    assert found
    url = f"http://127.0.0.1:{found.group(1)}"
    server = subprocess.Popen([*SOTE, "serve", str(recipe)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"{url}/readyz", server)
        asked = {"prompt": "red circle", "seed": 1, "first_stage_steps": 4, "second_stage_steps": 4}
        answers = [
            httpx.post(f"{url}/v1/generate", json=asked, headers={"Accept": "image/png"}, timeout=120) for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].content == answers[1].content
        wrong = httpx.post(
            f"{url}/v1/generate", json=asked | {"image_size": {"width": 1000, "height": 512}}, timeout=60
        )
        assert wrong.status_code == 422
        assert "896" in wrong.text
        assert "1024" in wrong.text
    finally:
        server.terminate()
        assert server.wait(timeout=120) == 0


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    pytest.fail("the server was not ready in time")


def test_status_tells_where_the_run_is(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, _ = demo
    ended = sote("status", str(run))
    assert ended.returncode == 0
    for part in ("decode", "latents", "64", "20"):
        assert part in ended.stdout


@pytest.mark.parametrize("verb", ["curate", "train", "serve"])
def test_every_recipe_of_the_demo_passes_the_check(
    demo: tuple[Path, subprocess.CompletedProcess[str]], verb: str
) -> None:
    run, _ = demo
    ended = sote("check", str(run / "recipes" / f"{verb}.toml"))
    assert ended.returncode == 0, ended.stderr
    assert f'run = "{run}"' in ended.stdout
