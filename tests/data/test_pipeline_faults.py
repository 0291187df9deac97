"""Mixed machines and dying ones: a cluster of three nodes on this machine, two of them with a pretended accelerator."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from sote.cluster import recipe as recipes
from sote.cluster import storage
from sote.data.recipe import CurateRecipe
from tests.conftest import Demo


@pytest.fixture(scope="module")
def cluster(demo: Demo) -> Iterator[Cluster]:
    """A head and two nodes without an accelerator that join the pool of them, one called slow and one fast.

    It starts when the demo is done, for both would want the machine's cores.
    """
    store = {"object_store_memory": 300_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **store})
    for speed in ("slow", "fast"):
        made.add_node(num_cpus=1, num_gpus=1, labels={"accel": "cpu", "speed": speed}, object_store_memory=300_000_000)
    yield made
    made.shutdown()


SPEEDS = """
import json, sys, time
import ray
from sote.cluster import session
from sote.data import shards

class Sleeps:
    def __init__(self, seconds):
        self.node = ray.get_runtime_context().get_node_labels()["speed"]
        self.seconds = seconds[self.node]

    def __call__(self, batch):
        start = time.time()
        time.sleep(self.seconds)
        return shards.batch_of({"node": self.node, "start": start, "end": time.time()})

with session.connect(sys.argv[1]):
    pieces = shards.pooled(shards.each(range(24)), Sleeps, ({"slow": 1.2, "fast": 0.1},), cpus=1.0)
    found = [(str(piece["node"]), float(piece["start"]), float(piece["end"])) for piece in shards.stream(pieces)]
print(json.dumps(found))
"""


def test_work_flows_to_the_faster_device_and_a_slow_one_holds_the_end_back_by_one_piece(cluster: Cluster) -> None:
    done = subprocess.run([sys.executable, "-c", SPEEDS, cluster.address], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pieces = json.loads(done.stdout)
    fast, slow = ([(start, end) for node, start, end in pieces if node == name] for name in ("fast", "slow"))
    assert len(fast) + len(slow) == 24
    assert len(fast) > 2 * len(slow) > 0
    assert sum(start > max(end for _, end in fast) for start, _ in slow) <= 1


@pytest.mark.timeout(600)
def test_a_killed_model_worker_and_a_lost_node_change_nothing_in_the_catalogue(
    cluster: Cluster, demo: Demo, tmp_path: Path
) -> None:
    whole = recipes.load(demo.run / "recipes" / "curate.toml", CurateRecipe)
    recipe = whole.model_copy(update={"run": str(tmp_path / "run"), "text": None, "latents": None})
    path = tmp_path / "curate.toml"
    path.write_text(recipes.dumps(recipe))
    command = [sys.executable, "-m", "sote.cluster.cli", "--address", cluster.address, "curate", str(path)]
    with (tmp_path / "err").open("w") as err:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err)
    rows = storage.RunFolder(tmp_path / "run").root / "rows"
    _wait(lambda: bool(list(rows.glob("tag/*.done"))) or running.poll() is not None)
    workers = _workers(cluster, "Look")
    assert workers, (tmp_path / "err").read_text()
    os.kill(workers[0], signal.SIGKILL)
    _wait(lambda: len(list(rows.glob("tag/*.done"))) > 1 or running.poll() is not None)
    cluster.remove_node(next(node for node in cluster.worker_nodes if "slow" in str(node._ray_params.labels)))
    assert running.wait(timeout=500) == 0, (tmp_path / "err").read_text()
    names = ("id", "aesthetic_score", "quality_score", "rating", "tags", "duplicate_group", "keeper", "error")
    one, other = (pq.read_table(run / "catalogue.parquet", columns=list(names)) for run in (demo.run, tmp_path / "run"))
    assert one.equals(other)


def _wait(until: object, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.05)


def _workers(cluster: Cluster, name: str) -> list[int]:
    """The process ids of the cluster's workers whose title holds `name`: those that run an actor of that class."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_text() if folder.name.isdigit() else ""
            if title.startswith("ray::") and name in title:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if cluster.address in Path("/proc", parent, "cmdline").read_text():
                    found.append(int(folder.name))
        except OSError:  # it has ended in the meantime
            continue
    return found
