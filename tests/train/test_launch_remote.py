"""A training on the nodes of a cluster that share no files: what they share lies at a URI."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from sote.cluster import logs, reaching, remote
from sote.cluster import recipe as recipes
from sote.cluster.storage import RunFolder
from sote.train import checkpoint, worker
from sote.train.checkpoint import Origin
from sote.train.engine import Plain
from sote.train.recipe import TrainRecipe
from tests.stores import Store
from tests.train.test_loop_remote import bring

Make = Callable[..., TrainRecipe]
STORE_BYTES = 80 << 20
CACHES = "XDG_CACHE_HOME"


@pytest.fixture
def two_nodes(s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster whose head is too small for a worker and whose two nodes have a mirror each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster: Any = Cluster()
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number, cores in enumerate((1, 2, 2)):
            monkeypatch.setenv(CACHES, str(tmp_path / f"node-{number}"))
            with reaching.loopback():
                cluster.add_node(
                    num_cpus=cores,
                    object_store_memory=STORE_BYTES,
                    include_dashboard=False,
                    node_ip_address="127.0.0.1",
                )
        monkeypatch.setenv(CACHES, str(tmp_path / "driver"))
        yield str(cluster.address)
    finally:
        cluster.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


def training_workers() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"RayTrainWorker" in path.read_bytes() and f"{os.getpid()}" in _above(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _above(pid: int) -> list[str]:
    """The processes that a process descends from."""
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(str(pid))
    return found


def kill_when(path: Path, killed: list[int]) -> threading.Thread:
    """Kill a worker as soon as a file is at its URI."""

    def watch() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not killed:
            if remote.exists(path) and (found := training_workers()):
                os.kill(max(found), signal.SIGKILL)
                killed.append(max(found))
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_on_nodes_without_a_common_file_go_on_after_a_kill_and_learn_what_one_process_learns(
    recipe: Make, tiny: Path, curated: Path, s3: Store, two_nodes: str, tmp_path: Path
) -> None:
    tables: dict[str, Any] = {"length": {"max_steps": 8}, "checkpoint": {"every_steps": 2, "keep": 2}}
    alone = RunFolder(tmp_path / "alone")
    assert worker.train(
        recipe(**tables), folder=alone, origin=Origin("", 32.0, ""), found=None, make_engine=Plain, wish=lambda _: None
    )
    tables |= {
        "data": {"curated": bring(curated, f"{s3.uri}/curated")},
        "model": {"prior": bring(tiny / "prior", f"{s3.uri}/prior")},
        "export": {"decoder": bring(tiny / "decoder", f"{s3.uri}/decoder")},
        "workers": {"count": 2, "cpus_per_worker": 2, "max_failures": 2},
    }
    there = recipe(**tables).model_copy(update={"run": f"{s3.uri}/runs/t"})
    (tmp_path / "train.toml").write_text(recipes.dumps(there))
    folder, killed = RunFolder(remote.place(there.run)), list[int]()
    thread = kill_when(folder.checkpoints / "step-2/state.json", killed)
    command = [sys.executable, "-m", "sote.cluster.cli", "--address", two_nodes, "train", str(tmp_path / "train.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    thread.join()
    assert killed
    assert f"checkpoints: {s3.uri}/runs/t/checkpoints" in done.stdout
    lines = [line for line in logs.read_metrics(folder.metrics) if line["kind"] == "step"]
    wanted = {line["step"]: line["loss"] for line in logs.read_metrics(alone.metrics) if line["kind"] == "step"}
    assert {line["step"] for line in lines} == set(range(1, 9))
    assert all(line["loss"] == pytest.approx(wanted[line["step"]], rel=2e-2) for line in lines)
    starts = [line for line in logs.read_metrics(folder.metrics) if line["kind"] == "start"]
    assert [line["workers"] for line in starts] == [2, 2]
    assert starts[1]["resumed_from"] >= 2
    found = checkpoint.newest(folder.checkpoints)
    assert found is not None
    assert found.state.step == 8
    mirrors = [tmp_path / name / "sote/remote/s3" / s3.bucket for name in ("node-1", "node-2", "driver")]
    assert [(mirror / "curated/catalogue.parquet").exists() for mirror in mirrors] == [True] * 3
    assert sum((mirror / "runs/t/checkpoints/step-8").exists() for mirror in mirrors[:2]) == 1
    assert not [name for name in s3.files() if "/.ray/" in name or ".tmp" in name]
    record = json.loads(s3.files()["runs/t/run.json"])
    assert record["exit_code"] == 0
