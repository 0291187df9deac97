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
from sote.cluster.errors import RunFailed
from sote.cluster.storage import RunFolder
from sote.train import batches, checkpoint, engine_deepspeed, launch, worker
from sote.train.batches import Order
from sote.train.checkpoint import Origin
from sote.train.engine import Plain
from sote.train.recipe import TrainRecipe

Make = Callable[..., TrainRecipe]
LOOK_SECONDS = 0.02
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


def _kill_one_when(path: Path, killed: list[int], stopped: threading.Event) -> None:
    """Kill one training worker as soon as `path` exists."""
    while not stopped.is_set():
        if path.exists() and (workers := sorted(_training_workers())):
            os.kill(workers[-1], signal.SIGKILL)
            killed.append(workers[-1])
            return
        time.sleep(LOOK_SECONDS)


def _spoil(curated: Path, folder: Path, *, row: int) -> Path:
    """A copy of a curate run in which the latents of one row are no numbers."""
    shutil.copytree(curated, folder)
    rows = batches.read_rows(curated)
    path = folder / "latents" / rows.shard[row].as_py()
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    latents = load_file(path)["latents"]
    latents[int(rows.offset[row])] = torch.nan
    save_file({"latents": latents}, path, metadata=facts)
    return folder


def _first_seen(curated: Path, *, step: int, seed: int) -> int:
    """A row that a run with this seed sees at `step` for the first time."""
    order = Order(batches.read_rows(curated), effective_batch=4, seed=seed)
    before = {int(row) for earlier in range(1, step) for row in order.batch(earlier).rows}
    return min({int(row) for row in order.batch(step).rows} - before)


@pytest.mark.timeout(600)
def test_two_workers_survive_a_kill_learn_what_one_process_learns_and_pass_on_an_error_of_ours(
    local_ray: None, recipe: Make, curated: Path, tmp_path: Path
) -> None:
    row = _first_seen(curated, step=8, seed=SEED)
    spoilt = _spoil(curated, tmp_path / "curated", row=row)
    tables = {"length": {"max_steps": 9}, "checkpoint": {"every_steps": 2}, "data": {"curated": str(spoilt)}}
    tables |= {"batch": {"effective_batch": 4, "micro_batch": 2, "seed": SEED}}
    alone = RunFolder(tmp_path / "alone")
    with pytest.raises(RunFailed, match="step 8"):
        worker.train(recipe(**tables), folder=alone, origin=Origin("", 32.0, ""), found=None, make_engine=Plain)
    wanted = {line["step"]: line["loss"] for line in logs.read_metrics(alone.metrics)}

    two = recipe(**tables, workers={"count": 2, "max_failures": 1})
    killed: list[int] = []
    stopped = threading.Event()
    with storage.open_run(two, verb="train", command="sote train") as folder:
        watch = (folder.checkpoints / "step-2" / "state.json", killed, stopped)
        killer = threading.Thread(target=_kill_one_when, args=watch)
        killer.start()
        with pytest.raises(
            RunFailed, match=rf"step 8: loss is not finite for 1 of 4 images of bucket \d+x\d+: {row:064x}"
        ):
            launch.run(two, folder=folder, address=None)
        stopped.set()
        killer.join()
    assert killed
    lines = [line for line in logs.read_metrics(folder.metrics) if line["kind"] == "step"]
    assert {line["step"] for line in lines} == set(range(1, 8))
    for line in lines:
        # sums over workers are rounded in another order; the batches are the same
        assert line["loss"] == pytest.approx(wanted[line["step"]], rel=1e-3)
    found = checkpoint.newest(folder.checkpoints)
    assert found is not None
    assert (found.state.step, found.state.images_seen, found.state.text_mask) == (6, 24, "masked")


def test_a_complete_run_is_left_as_it_is(recipe: Make) -> None:
    made = recipe(length={"max_steps": 1})
    with storage.open_run(made, verb="train", command="sote train") as folder:
        worker.train(made, folder=folder, origin=Origin("", 32.0, ""), found=None, make_engine=Plain)
        before = folder.metrics.read_bytes()
        launch.run(made, folder=folder, address=None)
        assert folder.metrics.read_bytes() == before


def test_deepspeed_is_configured_from_the_recipe(recipe: Make) -> None:
    made = recipe(batch={"effective_batch": 24, "micro_batch": 2}, workers={"count": 3})
    found = engine_deepspeed.settings(made.batch, made.workers, workers=3)
    assert found["gradient_accumulation_steps"] == 4
    assert found["train_batch_size"] == 24
    assert found["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert "bf16" not in found  # that would keep the weights in bfloat16
    assert found["zero_optimization"] == {"stage": 0}
