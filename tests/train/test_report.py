"""The training's part of the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from sote.cluster import logs, storage
from sote.cluster.recipe import Part, Recipe
from sote.cluster.storage import RunFolder
from sote.train import report


class Optimizer(Part):
    learning_rate: float
    scale: bool


class Training(Recipe):
    optimizer: Optimizer
    folders: tuple[str, ...]


def write_steps(folder: RunFolder, steps: list[dict[str, Any]]) -> None:
    whole = {
        "kind": "step",
        "grad_norm": 1.0,
        "lr": 1e-5,
        "images_per_second": 4.0,
        "data_wait_share": 0.02,
        "epoch": 0,
    }
    folder.metrics.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"time": 100.0 + at, **whole, "images_seen": step["step"] * 8, **step} for at, step in enumerate(steps)]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_without_a_step_there_is_no_chapter(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert report.chapter(folder) is None
    folder.metrics.write_text('{"time": 1, "kind": "stage", "stage": "decode", "rows": 1, "failed": 0, "seconds": 1}\n')
    assert report.chapter(folder) is None


def test_a_step_made_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    losses = [(1, 0.9), (2, 0.8), (3, 0.7), (2, 0.6), (3, 0.5)]
    write_steps(folder, [{"step": step, "loss": loss} for step, loss in losses])
    assert [(line["step"], line["loss"]) for line in report.read_steps(folder)] == [(1, 0.9), (2, 0.6), (3, 0.5)]


def test_the_chapter_tells_steps_images_and_the_parameters(tmp_path: Path) -> None:
    recipe = Training(
        run=str(tmp_path / "run"), optimizer=Optimizer(learning_rate=1e-5, scale=False), folders=("a <b>", "c")
    )
    with storage.open_run(recipe, verb="train", command="sote train x.toml") as folder:
        write_steps(folder, [{"step": step, "loss": 0.5} for step in range(1, 21)])
    chapter = report.chapter(folder)
    assert chapter is not None
    assert chapter.story == "Stage C was trained for 20 steps on 160 images."
    assert dict(chapter.numbers) == {"training steps": "20", "loss at the end": "0.5"}
    curves, parameters = chapter.sections
    assert curves.body.count("<polyline") == 9  # raw and smoothed: loss, speed, gradient norm, waiting; learning rate
    assert "<code>learning_rate</code></td><td>1e-05</td>" in parameters.body
    assert "<code>scale</code></td><td>false</td>" in parameters.body
    assert "a &lt;b&gt;, c" in parameters.body


@pytest.mark.parametrize("broken", [float("nan"), None])
def test_steps_without_a_finite_loss_are_said_and_do_not_break_the_curve(tmp_path: Path, broken: float | None) -> None:
    folder = RunFolder(tmp_path)
    write_steps(folder, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": broken}, {"step": 3, "loss": 0.5}])
    chapter = report.chapter(folder)
    assert chapter is not None
    assert "1 step without a finite loss." in chapter.sections[0].body
    assert "nan" not in chapter.sections[0].body


def whole_line(step: int, **more: Any) -> dict[str, Any]:
    bands = {f"loss_time_{at}": 0.4 - at / 10 for at in range(4)}
    figures = {"plain_loss": 0.6, "lr_text_encoder": 4e-6, "mfu": 0.47, "memory_gb": 71.2, "workers": 2}
    return {"step": step, "loss": 0.5, "skipped": None, **bands, **figures, **more}


def test_bands_of_time_rates_use_and_memory_are_drawn_where_they_were_measured(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_steps(folder, [whole_line(1), whole_line(2, loss_time_0=None), whole_line(3)])
    chapter = report.chapter(folder)
    assert chapter is not None
    training = chapter.sections[0].body
    for words in ("time 0 to 0.25", "time 0.75 to 1", "text encoder", "Use of the devices", "Memory", "71.2 GB"):
        assert words in training
    assert [section.key for section in chapter.sections] == ["training", "parameters"]


def test_skipped_steps_starts_and_checkpoints_are_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    ids = [f"{at:x}" * 64 for at in range(6)]
    write_steps(folder, [whole_line(1), whole_line(2, skipped="loss: spike", skipped_ids=ids), whole_line(3)])
    metrics = logs.Metrics(folder.metrics)
    for resumed, workers in ((None, 8), (2, 6)):
        metrics.write(kind="start", workers=workers, zero_stage=1, device="NVIDIA A100", resumed_from=resumed)
    metrics.write(kind="checkpoint", step=2, seconds=41.0, bytes=17_200_000_000)
    chapter = report.chapter(folder)
    assert chapter is not None
    course = next(section for section in chapter.sections if section.key == "course")
    assert course.lead == "1 step skipped, continued 1×."
    assert "loss: spike" in course.body
    assert "<code>1111111111</code>" in course.body
    assert "and 2 more" in course.body
    assert ">3</td><td" in course.body  # the second start is from step 3
    assert "17.2 GB" in course.body


def test_the_story_names_the_stage_that_was_trained(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_steps(folder, [whole_line(1)])
    (tmp_path / "run.json").write_text('{"verbs": {"train": {}}}')
    for text, said in (
        ('[model]\nstage = "decoder"\n', "Stage B was"),
        ("[lora]\nrank = 4\n", "Adapters of Stage C were"),
    ):
        (tmp_path / "recipe.toml").write_text(text)
        chapter = report.chapter(folder)
        assert chapter is not None
        assert chapter.story.startswith(f"{said} trained for 1 step on 8 images.")
