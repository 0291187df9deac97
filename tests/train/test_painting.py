"""Sample pictures beside a training: what is painted, what is left out, what a failure does."""

import os
import shutil
from pathlib import Path

import pytest

from sote.cluster import logs
from sote.cluster.storage import RunFolder
from sote.train import painting
from sote.train.painting import Paint, Painting, Sample, left_over
from sote.train.recipe import SamplesPart

PART = SamplesPart(prompts=("a lake", "a hill"), seed=3)


def snapshot(folder: RunFolder, step: int, *, words: str = "sound", name: str = "step") -> Path:
    path = folder.root / ".snapshots" / f"{name}-{step}"
    path.mkdir(parents=True)
    (path / "prior.safetensors").write_text(words)
    return path


def painter() -> Paint:
    """Paints the words of a snapshot; pickled with its code, for Ray's processes cannot import a test."""

    def paint(folder: Path) -> list[Sample]:
        words = (folder / "prior.safetensors").read_text()
        if words == "broken":
            raise ValueError("these are no weights\nand a second line")
        return [Sample(prompt, seed, f"{words} {os.nice(0)}".encode()) for seed, prompt in enumerate(PART.prompts)]

    return paint


def make(folder: RunFolder, *, done: int = 0) -> Painting:
    return Painting(folder, PART, painter(), done=done, has_spare_core=False)


def test_snapshots_are_painted_one_after_the_other_told_and_removed(local_ray: None, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    left = snapshot(folder, 2, name="painting")  # the command before was killed while it painted
    mine = make(folder, done=2)
    broken, sound = snapshot(folder, 4, words="broken"), snapshot(folder, 6)
    mine.add(4, broken)
    mine.add(6, sound)
    assert mine.finish(is_stopped=lambda: False)
    assert not any(path.exists() for path in (left, broken, sound))
    told = [(line["step"], line["prompt"], line["seed"]) for line in logs.read_metrics(folder.metrics)]
    assert told == [(2, "a lake", 0), (2, "a hill", 1), (6, "a lake", 0), (6, "a hill", 1)]
    # in a process of the lowest priority
    assert (folder.images / "samples" / "step-6-1.png").read_text() == f"sound {painting.NICEST}"
    assert mine.summary() == "pictures of 2 steps, 1 painting failed (ValueError: these are no weights)"


def test_what_waits_too_long_is_left_out_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painting, "MOST_WAITING_BYTES", 12)
    folder = RunFolder(tmp_path)
    mine = make(folder)
    paths = [snapshot(folder, step) for step in (1, 2, 3)]  # of 5 bytes each
    for step, path in enumerate(paths, start=1):
        mine.add(step, path)
    assert [step for step, _ in mine.waiting] == [2, 3]
    assert [path.exists() for path in paths] == [False, True, True]
    assert mine.summary() == "1 step left out"


def test_of_what_an_earlier_command_left_steps_that_come_again_and_half_written_ones_are_removed(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    kept = snapshot(folder, 2)
    later, half = snapshot(folder, 8), snapshot(folder, 4, name=".step")
    assert left_over(folder, done=6) == [(2, kept)]
    assert not later.exists()
    assert not half.exists()
    shutil.rmtree(kept)
    assert left_over(folder, done=6) == []


def test_painting_can_be_stopped_and_what_is_left_stays(local_ray: None, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    snapshot(folder, 1)
    waiting = snapshot(folder, 2)
    assert not make(folder, done=2).finish(is_stopped=lambda: True)
    assert waiting.exists()
