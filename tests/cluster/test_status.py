"""Status of a run folder, read from markers, records and metrics."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from sote.cluster import status as states
from sote.cluster import storage
from sote.cluster.errors import RunFolderError
from sote.cluster.logs import Metrics
from sote.cluster.recipe import Part, Recipe
from sote.cluster.storage import RunFolder


class Length(Part):
    max_steps: int


class Training(Recipe):
    length: Length


def run_with_shards(root: Path) -> RunFolder:
    with storage.open_run(Recipe(run=str(root)), verb="curate", command="sote curate x.toml") as folder:
        for shard, rows in enumerate((10, 10, 4)):
            commit(folder, "index", shard, rows=rows, seconds=0.5)
        commit(folder, "decode", 0, rows=10, failed=2, seconds=4.0, errors={"decode: truncated": 2})
        commit(folder, "decode", 1, rows=10, seconds=1.0, skips={"decode: fewer than 768000 pixels": 3})
    return folder


def commit(
    folder: RunFolder, stage: str, shard: int, *, rows: int, seconds: float, failed: int = 0, **facts: object
) -> None:
    path = folder.rows(stage, shard)
    storage.write_table(path, pa.table({"row": list(range(rows))}))
    storage.commit(path, rows=rows, failed=failed, seconds=seconds, **facts)


def shown(state: states.Status) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(states.render(state))
    return captured.get()


def test_rows_of_each_stage_are_those_of_its_committed_shards(tmp_path: Path) -> None:
    folder = run_with_shards(tmp_path / "run")
    storage.marker(folder.rows("score", 0)).parent.mkdir()
    storage.marker(folder.rows("score", 0)).write_text('{"rows": 10, "failed": 0, "seconds": 1}')  # no file beside it
    state = states.status(folder.root, stages=("index", "decode", "score"))
    assert [(each.stage, each.rows, each.total, each.failed) for each in state.stages] == [
        ("index", 24, 24, 0), ("decode", 20, 24, 2), ("score", 0, 24, 0),
    ]  # fmt: skip
    assert state.stages[1].rows_per_second == pytest.approx(4.0)
    assert (state.stages[1].errors, state.stages[1].skips) == (
        (("decode: truncated", 2),), (("decode: fewer than 768000 pixels", 3),),
    )  # fmt: skip
    assert state.stages[1].seconds_left == pytest.approx(1.0)
    assert state.stages[0].seconds_left is None
    assert state.stages[2].seconds_left is None
    assert state.picked is None
    assert state.training is None
    text = shown(state)
    assert "83\u202f%" in text
    assert re.search(r"decode +failed +2 +truncated", text)
    assert re.search(r"decode +skipped +3 +fewer than 768000 pixels", text)
    assert re.search(r"decode +20 +24 .* 4\.0 +1\.0 s", text)


def test_the_rate_of_a_stage_at_work_is_that_of_its_last_shards_by_the_clock(tmp_path: Path) -> None:
    folder = run_with_shards(tmp_path / "run")
    times = (100.0, 102.0, 104.0, 9000.0, 9002.0, 9004.0)  # two workers, and a night between two runs
    lines = [{"time": time, "kind": "stage", "stage": "decode", "shard": at, "rows": 10, "failed": 0, "seconds": 4.0}
             for at, time in enumerate(times)]  # fmt: skip
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    decode = states.status(folder.root, stages=("index", "decode")).stages[1]
    assert decode.rows_per_second == pytest.approx(5.0)
    assert decode.seconds_left == pytest.approx(4 / 5)
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    decode = states.status(folder.root, stages=("index", "decode")).stages[1]
    assert decode.rows_per_second == pytest.approx(4.0)  # too few: from the markers


def test_with_a_catalogue_each_row_counts_once(tmp_path: Path) -> None:
    folder = run_with_shards(tmp_path / "run")
    storage.write_table(folder.catalogue, pa.table({
        "pick": [True, False, False, False, None],
        "skip_reason": pa.array([None, "select: x", None, "select: x", None], pa.string()),
        "error": pa.array([None, None, "tag: y", "tag: y", None], pa.string()),
    }))  # fmt: skip
    state = states.status(folder.root)
    assert state.picked == 1
    assert dict(state.ends) == {"tag: y": 2, "select: x": 1, "catalogue: no reason": 1}
    assert "1 of 5 files picked" in shown(state)


def test_the_time_left_is_the_median_step_times_the_steps_left(tmp_path: Path) -> None:
    recipe = Training(run=str(tmp_path / "run"), length=Length(max_steps=10))
    with storage.open_run(recipe, verb="train", command="sote train x.toml") as folder:
        lines = [(1, 100.0), (2, 102.0), (3, 104.0), (4, 9000.0), (5, 9002.0)]  # a night between steps 3 and 4
        folder.metrics.write_text("".join(
            json.dumps({"time": time, "kind": "step", "step": step, "images_seen": step * 8, "loss": 0.5,
                        "images_per_second": 4.0}) + "\n"
            for step, time in lines
        ))  # fmt: skip
        Metrics(folder.metrics).write(kind="image", file="images/0.png")
    state = states.status(folder.root)
    assert state.training == states.TrainStatus(5, 10, 40, 4.0, 10.0, 0.5)
    assert state.images == 1
    assert "step 5 of 10, 40 images seen, 4 images/s, 10 s left, loss 0.5" in shown(state)


def test_what_is_no_run_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("[]")
    wrong = {
        ".": "no run.json",
        "nowhere": "no such folder",
        "file": "is a file",
        "broken": "cannot be read",
        "other": "no table",
    }
    for name, words in wrong.items():
        with pytest.raises(RunFolderError) as raised:
            states.status(tmp_path / name)
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)
