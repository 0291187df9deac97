"""The whole proof as `make demo` runs it: a small model learns a concept that is new to it, and a control does not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sote.data import world_prompts

MINUTES = 25  # eight to ten on two quiet cores


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one demo."""
    folder = tmp_path_factory.mktemp("proof") / "demo"
    command = [sys.executable, "-m", "sote.cluster.cli", "demo", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def adherence(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "adherence.json").read_text()))


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES)
def test_the_base_paints_most_colours_and_shapes_that_it_is_asked_for(adherence: dict[str, Any]) -> None:
    goals = {goal["what"]: goal["value"] for goal in adherence["goals"]}
    assert goals["base: colours as asked"] >= 0.8
    assert goals["base: shapes as asked"] >= 0.8
    hits, asked = adherence["groups"]["shape and colour"]["base"]  # both at once
    assert asked > 30
    assert hits >= 0.8 * asked


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES)
def test_the_finetune_learns_the_concept_and_the_control_stays_at_chance(adherence: dict[str, Any]) -> None:
    concept = adherence["concept"]
    total = sum(asked.is_concept for asked in world_prompts.prompts())
    assert concept["finetuned"][0] >= 0.7 * total
    assert concept["base"][0] <= 0.2 * total
    assert concept["control"][0] <= (concept["chance"] + 0.2) * total
    assert all(goal["met"] for goal in adherence["goals"])


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES)
def test_the_report_shows_it_and_every_picture_is_there(run: Path, adherence: dict[str, Any]) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Does it paint what it is asked?" in page
    for model in adherence["models"].values():
        assert all((run / image).is_file() for image in model["images"])
