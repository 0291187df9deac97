"""A training that is watched while it goes on."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sote.cluster.errors import RunFolderError
from sote.cluster.storage import RunFolder
from sote.train import watching


def run_folder(root: Path, **verb: Any) -> RunFolder:
    folder = RunFolder(root)
    root.mkdir(exist_ok=True)
    verbs = {"train": {"start": "2026-01-01T00:00:00+00:00", "end": None, "exit_code": None} | verb} if verb else {}
    folder.record.write_text(json.dumps({"verbs": verbs}))
    return folder


def add_steps(folder: RunFolder, steps: range) -> None:
    with folder.metrics.open("a") as file:
        for step in steps:
            line = {"time": 100.0 + step, "kind": "step", "step": step, "loss": 1 / step, "images_seen": 8 * step}
            file.write(json.dumps(line) + "\n")


def test_before_the_first_step_every_part_says_that_there_is_nothing(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, end=None)
    found = watching.parts(folder)
    assert list(found) == ["training", "course", "samples", "parameters"]
    assert all("nothing" in section.body for section in found.values())
    assert "The training goes on." in watching.now(folder).lead


def test_parts_are_those_of_the_report_where_it_has_them(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, end=None)
    add_steps(folder, range(1, 11))
    found = watching.parts(folder)
    assert "<polyline" in found["training"].body
    assert "No sample is painted yet" in found["samples"].body


def test_now_says_whether_the_training_goes_on(tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "No training has begun": {},
        "The training goes on": {"end": None},
        "The training has ended.": {"end": "x", "exit_code": 0},
        "ended with exit code 1": {"end": "x", "exit_code": 1},
    }
    for number, (words, verb) in enumerate(cases.items()):
        folder = run_folder(tmp_path / str(number), **verb)
        assert words in watching.now(folder).lead
        assert watching.is_going(folder) == ("goes on" in words)


def test_what_is_over_is_seen_once_however_long_one_would_wait(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, end="x", exit_code=0)
    add_steps(folder, range(1, 4))
    began = time.monotonic()
    assert len(list(watching.follow(folder, seconds=60))) == 1
    assert time.monotonic() - began < 30


def test_new_steps_are_seen_and_the_end_with_all_that_came_before_it(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, end=None)
    add_steps(folder, range(1, 3))
    may_go_on = threading.Event()

    def train() -> None:
        may_go_on.wait()
        add_steps(folder, range(3, 8))
        run_folder(tmp_path, end="x", exit_code=0)

    thread = threading.Thread(target=train)
    thread.start()
    seen = []
    for section in watching.follow(folder, seconds=60, every_seconds=0.05):
        seen.append(section)
        may_go_on.set()
    thread.join()
    assert 2 <= len(seen) <= 3
    assert "<dt>steps</dt><dd>2</dd>" in seen[0].body
    assert "<dt>steps</dt><dd>7</dd>" in seen[-1].body
    assert "has ended" in seen[-1].lead


def test_following_ends_when_its_time_is_over(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, end=None)
    add_steps(folder, range(1, 3))
    assert len(list(watching.follow(folder, seconds=0.2, every_seconds=0.05))) == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        watching.now(RunFolder(tmp_path))
