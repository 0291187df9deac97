import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sote.cluster import logs, storage
from sote.cluster.errors import RecipeError, RunFailed, Stopped
from sote.cluster.storage import RunFolder
from sote.train import checkpoint, launch, rows, worker
from sote.train.checkpoint import Origin
from sote.train.engine import Plain
from sote.train.order import Order
from sote.train.recipe import MAY_DIFFER, TrainRecipe

Make = Callable[..., TrainRecipe]
LOOK_SECONDS = 0.02
ORIGIN = Origin("", 32.0, "")
SEED = 0  # with it, step 8 sees a row for the first time


def _parents() -> dict[int, int]:
    """The parent of each process of this machine."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        found[int(path.parent.name)] = int(after_name[1])
    return found


def _training_workers() -> Iterator[int]:
    """Processes of Ray Train's workers that descend from this one."""
    parents = _parents()
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above != os.getpid():
            continue
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in command:
            yield pid


def _when(path: Path, act: Callable[[], object], done: list[Path], given_up: threading.Event) -> threading.Thread:
    """A thread that acts as soon as `path` exists, and notes that it has."""

    def watch() -> None:
        while not given_up.is_set():
            if path.exists():
                act()
                done.append(path)
                return
            time.sleep(LOOK_SECONDS)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def _kill_a_worker() -> None:
    os.kill(max(_training_workers()), signal.SIGKILL)


def _spoil(curated: Path, folder: Path, *, row: int) -> Path:
    """A copy of a curate run in which the latents of one row are no numbers."""
    shutil.copytree(curated, folder)
    places = rows.read_rows(curated).latents
    assert places is not None
    path = folder / "latents" / places.shards[places.which[row]]
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    latents = load_file(path)["latents"]
    latents[int(places.offset[row])] = torch.nan
    save_file({"latents": latents}, path, metadata=facts)
    return folder


def _first_seen(curated: Path, *, step: int, seed: int) -> int:
    """A row that a run with this seed sees at `step` for the first time."""
    order = Order(rows.read_rows(curated), effective_batch=4, seed=seed)
    before = {int(row) for earlier in range(1, step) for row in order.batch(earlier).rows}
    return min({int(row) for row in order.batch(step).rows} - before)


def _state(folder: RunFolder, step: int) -> Path:
    return folder.checkpoints / f"step-{step}" / "state.json"


def _losses(folder: RunFolder) -> list[tuple[int, float]]:
    lines = logs.read_metrics(folder.metrics)
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "step" and not line["skipped"]]


@pytest.mark.timeout(600)
def test_workers_that_are_killed_stopped_and_fewer_learn_what_one_process_learns_and_pass_on_an_error_of_ours(
    local_ray: None, recipe: Make, curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = _first_seen(curated, step=8, seed=SEED)
    spoilt = _spoil(curated, tmp_path / "curated", row=row)
    tables = {"length": {"max_steps": 9}, "checkpoint": {"every_steps": 2}, "data": {"curated": str(spoilt)}}
    tables |= {"batch": {"effective_batch": 4, "micro_batch": 2, "seed": SEED}, "guard": {"max_bad_steps": 1}}
    alone = RunFolder(tmp_path / "alone")
    with pytest.raises(RunFailed, match="step 8"):
        worker.train(recipe(**tables), folder=alone, origin=ORIGIN, found=None, make_engine=Plain, wish=lambda _: None)
    wanted = dict(_losses(alone))

    two = recipe(**tables, workers={"count": 2, "max_failures": 1})
    acted: list[Path] = []
    given_up = threading.Event()
    with storage.open_run(two, verb="train", command="sote train") as folder:
        threads = [
            _when(_state(folder, 2), _kill_a_worker, acted, given_up),
            _when(_state(folder, 4), lambda: os.kill(os.getpid(), signal.SIGTERM), acted, given_up),
        ]
        with pytest.raises(Stopped, match=r"stopped at step \d, saved; the same command continues"):
            launch.run(two, folder=folder, address=None)
        given_up.set()
        for thread in threads:
            thread.join()
    assert acted == [_state(folder, 2), _state(folder, 4)]
    assert "workers started again: 2 workers, from step " in capsys.readouterr().err
    stopped = checkpoint.newest(folder.checkpoints)
    assert stopped is not None
    assert _losses(folder)[-1][0] == stopped.state.step < 8

    elastic = recipe(**tables, workers={"count": 2, "min_count": 1, "max_failures": 1})
    with (
        storage.open_run(elastic, verb="train", command="sote train", may_differ=MAY_DIFFER) as folder,
        pytest.raises(RunFailed, match=f"step 8.*{row:064x}"),
    ):
        launch.run(elastic, folder=folder, address=None)
    assert {step for step, _ in _losses(folder)} == set(range(1, 8))
    for step, loss in _losses(folder):
        # sums over workers are rounded in another order; the batches are the same
        assert loss == pytest.approx(wanted[step], rel=1e-3)


def test_a_complete_run_is_left_as_it_is(recipe: Make) -> None:
    made = recipe(length={"max_steps": 1})
    with storage.open_run(made, verb="train", command="sote train") as folder:
        worker.train(made, folder=folder, origin=ORIGIN, found=None, make_engine=Plain, wish=lambda _: None)
        before = folder.metrics.read_bytes()
        launch.run(made, folder=folder, address=None)
        assert folder.metrics.read_bytes() == before


def test_more_workers_than_there_are_cores_are_refused_before_anything_starts(local_ray: None, recipe: Make) -> None:
    made = recipe(workers={"count": 999}, batch={"effective_batch": 1998, "micro_batch": 2})
    with (
        storage.open_run(made, verb="train", command="sote train") as folder,
        pytest.raises(RecipeError, match="workers: 999 workers need 999 CPUs, here are"),
    ):
        launch.run(made, folder=folder, address=None)
