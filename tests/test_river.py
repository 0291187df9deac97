"""The demo's way end to end, as its user runs it: one command, one folder, a report, and recipes that run again."""

import html.parser
import json
import re

import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open

from sote.cluster import logs
from sote.data import schema
from tests.conftest import Command, Demo


@pytest.mark.timeout(900)
def test_the_demo_ends_well_names_its_report_and_keeps_the_noise_of_ray_to_itself(demo: Demo) -> None:
    assert demo.exit_code == 0, demo.err
    assert str(demo.run / "report.html") in demo.out
    for noise in ("ray::", "core_worker", "INFO worker", "Warning", "deepspeed", "accelerator", "Traceback"):
        assert noise not in demo.err + demo.out
    for number in range(1, 7):
        assert f"{number}/6" in demo.err


def test_the_funnel_of_the_demo_adds_up(demo: Demo) -> None:
    run = demo.run
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


def test_the_drawn_truth_is_found_again_in_most_tags(demo: Demo) -> None:
    run = demo.run
    truth = {entry["file"]: set(entry["tags"]) for entry in map(json.loads, (run / "pictures" / "truth.jsonl").open())}
    found = total = 0
    for row in pq.read_table(run / "catalogue.parquet").to_pylist():
        if row["pick"]:
            real = next(tags for name, tags in truth.items() if row["uri"].endswith(name))
            names = {tag["name"] for tag in row["tags"] if tag["probability"] >= 0.35 and tag["category"] == "general"}
            found, total = found + len(real & names), total + len(real)
    assert found / total > 0.5


def test_training_went_its_steps_and_left_checkpoints(demo: Demo) -> None:
    run = demo.run
    steps = [line for line in logs.read_metrics(run / "metrics.jsonl") if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert steps[-1]["images_seen"] == 160
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-10", "step-20"}


def test_the_exports_load_in_diffusers_and_carry_the_names_that_comfyui_looks_for(demo: Demo) -> None:
    from diffusers import StableCascadeDecoderPipeline, StableCascadePriorPipeline

    run = demo.run
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


def test_the_painted_picture_is_a_picture_with_its_parameters(demo: Demo) -> None:
    run = demo.run
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


def test_the_report_stands_alone(demo: Demo) -> None:
    run = demo.run
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Loads()
    page.feed(text)
    assert page.found
    assert all(value.startswith("data:") for value in page.found)
    assert not re.search(r"url\((?!['\"]?data:)|@import", text)
    assert len(text) < 4_000_000


def test_the_recipes_run_again_and_make_nothing_again(demo: Demo, local_ray: None, sote: Command) -> None:
    kept = [*(demo.run / "rows").rglob("*.parquet"), *(demo.run / "checkpoints").rglob("*.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    for verb in ("curate", "train"):
        assert sote(verb, str(demo.run / "recipes" / f"{verb}.toml"))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_status_tells_where_the_run_is(demo: Demo, sote: Command) -> None:
    code, out, _ = sote("status", str(demo.run))
    assert code == 0
    for part in ("decode", "latents", "64", "20"):
        assert part in out


@pytest.mark.parametrize("verb", ["curate", "train", "serve"])
def test_every_recipe_of_the_demo_passes_the_check(demo: Demo, sote: Command, verb: str) -> None:
    code, out, _ = sote("check", str(demo.run / "recipes" / f"{verb}.toml"))
    assert code == 0
    assert f'run = "{demo.run}"' in out
