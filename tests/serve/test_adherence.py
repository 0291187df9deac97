"""Prompt adherence: painted by real models of the small world, read by rules, counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sote.cluster.storage import RunFolder
from sote.data import world_prompts
from sote.serve import adherence, adherence_file, demo_world
from sote.serve.adherence import Judged
from sote.serve.adherence_file import NAMES, Adherence
from sote.train import world_files

CHANCE = 1 / 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that holds the committed models."""
    root = tmp_path_factory.mktemp("adherence")
    world_files.unpack(root / "weights")
    return root


@pytest.fixture(scope="module")
def measured(run: Path) -> Adherence:
    """Two large shapes, a character and the concept, by three models that are one."""
    asked = world_prompts.prompts()
    few = (asked[2], asked[7], asked[40], asked[-1])
    judged = {name: Judged(name, demo_world.model(run, run / "weights" / "prior")) for name in NAMES}
    return adherence.measure(run, judged, defaults=demo_world.defaults(), chance=CHANCE, asked=few)


def test_what_is_written_is_what_the_report_reads(run: Path, measured: Adherence) -> None:
    assert adherence_file.read(RunFolder(run)) == measured
    files = [image for model in measured.models.values() for image in model.images]
    assert all((run / file).is_file() for file in (*files, *measured.concept.truth))


def test_equal_models_paint_and_score_alike(run: Path, measured: Adherence) -> None:
    base, control = measured.models["base"], measured.models["control"]
    for one, other in zip(base.images, control.images, strict=True):  # who steps together differs, and so the last bit
        pixels = [np.asarray(Image.open(run / file)).astype(int) for file in (one, other)]
        assert np.abs(pixels[0] - pixels[1]).mean() < 0.5
    assert base.found == control.found
    assert all(scores["base"] == scores["control"] for scores in measured.groups.values())


def test_the_committed_base_paints_two_large_shapes_and_does_not_know_the_concept(measured: Adherence) -> None:
    assert measured.groups["shape and colour"]["base"] == (2, 2)
    assert measured.concept.base == (0, 1)


def test_the_counts_are_those_of_the_paintings(measured: Adherence) -> None:
    found = measured.models["base"].found
    there = sum(tag in tags for asked, tags in zip(measured.prompts, found, strict=True) for tag in asked.wanted)
    assert there == sum(scores["base"][0] for scores in measured.groups.values())
    assert sum(len(asked.wanted) for asked in measured.prompts) == sum(s["base"][1] for s in measured.groups.values())


def test_scores_are_counted_by_group_and_looks_by_colour_and_shape() -> None:
    asked = (
        world_prompts.Asked("a", 1, ("red_star", "blue_background")),
        world_prompts.Asked("b", 2, ("blue_heart", "green_circle")),
    )
    found = (["red_heart", "blue_background"], ["blue_heart", "black_circle"])
    assert adherence.scores(asked, found) == {
        "shape and colour": (1, 3), "background": (1, 1), "colour": (2, 3), "shape": (2, 3)
    }  # fmt: skip


def test_a_goal_can_be_missed(measured: Adherence) -> None:
    missed = [goal.what for goal in measured.goals if not goal.met]
    assert missed == ["finetuned: the concept by its name"]


def test_a_gpu_takes_the_demos_finetune_alone_and_the_control_is_trained_as_it_was(tmp_path: Path) -> None:
    on_cpu, on_gpu = demo_world.train_recipe(tmp_path), demo_world.train_recipe(tmp_path, on_gpu=True)
    assert (on_cpu.workers.count, on_cpu.workers.use_gpu) == (2, False)
    assert (on_gpu.workers.count, on_gpu.workers.use_gpu) == (1, True)
    control = demo_world.control_recipe(on_gpu)
    assert control.workers == on_gpu.workers
    assert control.run == str(tmp_path / demo_world.CONTROL)
