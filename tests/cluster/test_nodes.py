"""A cluster of unlike nodes on this machine, asked what it has: a head, a CPU node, and two that were started as if
they had an accelerator, NVIDIA's of 8 GB and Intel's of 16 GB. A third one joins while a pool works."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster

ON_LOOPBACK = {"node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
pytestmark = pytest.mark.slow
LOCKLESS = {"RAY_AUTH_MODE": "disabled"}  # as the cluster is, whatever token lies on this machine

DRIVER = """
import contextlib, json, sys, threading, time
import ray
from rich.console import Console
from sote.cluster import capacity, fleet, nodes, session
from sote.cluster.capacity import Bundle
from sote.cluster.errors import UserError
from sote.data import shards
from sote.serve import demands

TEXT = 15_300_000_000
seen = {}

class Node:
    def __init__(self):
        self.name = ray.get_runtime_context().get_node_labels()["name"]

    def __call__(self, batch):
        time.sleep(0.3)
        return shards.batch_of({"shard": int(batch["shard"][0]), "node": self.name})

def refused(*wanted, patience=0.1):
    start = time.monotonic()
    try:
        capacity.require(wanted, what="text", patience_seconds=patience, mend="leave it out")
    except UserError as error:
        return [str(error), time.monotonic() - start]

def status():
    return capacity._status()

def say_hopeless(stop):
    # what an autoscaler of Ray's second make reports when none of its node types fits
    from ray._private.worker import global_worker
    while not stop.is_set():
        state = status()
        answer = state.autoscaling_state
        answer.autoscaler_state_version += 1
        answer.ClearField("infeasible_gang_resource_requests")
        answer.infeasible_gang_resource_requests.extend(state.cluster_resource_state.pending_gang_resource_requests)
        global_worker.gcs_client.report_autoscaling_state(answer.SerializeToString())
        time.sleep(0.2)

with session.connect(sys.argv[1]):
    found = nodes.ask()
    seen["nodes"] = [[node.kind, node.is_head, node.slots, node.device_gb, node.silence] for node in found]
    seen["python"] = [node.answer and node.answer.python for node in found]
    seen["ray"] = [node.answer and node.answer.ray for node in found]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(fleet.render(found, demands.demands()))
    seen["table"] = captured.get()
    seen["there"] = capacity.require([Bundle(cpus=1, gpus=1, device_bytes=TEXT)], what="text", patience_seconds=0)
    seen["too small"] = refused(Bundle(gpus=1, device_bytes=20_000_000_000))
    seen["too few"] = refused(Bundle(gpus=1, count=8))
    seen["autoscales"] = [capacity.autoscales()]
    pool = session.model_pool(cpus=1.0, device_bytes=TEXT)
    seen["pool"] = [pool.actors, pool.gpus, pool.selector]
    pieces = shards.stream(shards.pooled(shards.each(range(80)), Node, (), cpus=1.0, device_bytes=TEXT))
    start = time.monotonic()
    seen["pieces"] = []
    for piece in shards.stream(shards.pooled(shards.each(range(80)), Node, (), cpus=1.0, device_bytes=TEXT)):
        if not seen["pieces"]:
            print("started", flush=True)
        seen["pieces"].append([int(piece["shard"]), str(piece["node"]), time.monotonic() - start])
    sys.stdin.readline()
    stop = threading.Event()
    says = threading.Thread(target=say_hopeless, args=(stop,))
    says.start()
    time.sleep(0.5)
    seen["autoscales"] += [capacity.autoscales()]
    seen["hopeless"] = refused(Bundle(gpus=1, device_bytes=90_000_000_000), patience=60.0)
    seen["obtained"] = capacity.obtain([Bundle(gpus=1, device_bytes=90_000_000_000)], what="text")
    stop.set()
    says.join()
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Any]]:
    """What a driver saw of the cluster; the late node joins when the pool has its first piece."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **ON_LOOPBACK})
    try:
        made.add_node(num_cpus=1, labels={"accel": "cpu", "name": "cpu"}, **ON_LOOPBACK)
        for kind, memory in (("cuda", "8"), ("xpu", "16")):
            labels = {"accel": kind, "device-memory-gb": memory, "name": kind}
            made.add_node(num_cpus=1, num_gpus=1, labels=labels, **ON_LOOPBACK)
        command = [sys.executable, "-c", DRIVER, made.address]
        pipe, environment = subprocess.PIPE, os.environ | LOCKLESS
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as driver:
            assert driver.stdin is not None
            assert driver.stdout is not None
            assert driver.stdout.readline() == "started\n"
            labels = {"accel": "cuda", "device-memory-gb": "24", "name": "late"}
            late = {"RAY_NODE_TYPE_NAME": "caption"}  # as an autoscaler names what it starts
            made.add_node(num_cpus=1, num_gpus=1, labels=labels, env_vars=late, **ON_LOOPBACK)
            out, _ = driver.communicate("joined\n", timeout=100)
        yield json.loads(out)
    finally:
        made.shutdown()


def test_every_node_answers_with_its_labels_and_what_runs_there(seen: dict[str, Any]) -> None:
    assert seen["nodes"] == [
        ["cpu", True, 0, None, None],
        ["cpu", False, 0, None, None],
        ["cuda", False, 1, 8, None],
        ["xpu", False, 1, 16, None],
    ]
    assert len(set(seen["python"])) == len(set(seen["ray"])) == 1


def test_the_table_says_what_runs_where_and_what_cannot_with_the_reason(seen: dict[str, Any]) -> None:
    lines = {line.split("  ")[0]: line for line in seen["table"].splitlines()}
    assert "1 xpu node" in lines["text"]
    assert "cuda" not in lines["text"].partition("or why not")[0]
    assert "8 x 1 GPU with 80.0 GB of its own memory; here are 2 GPUs" in " ".join(seen["table"].split())
    assert "started as cuda, shows none" in seen["table"]


def test_what_is_there_is_had_at_once_and_what_is_not_is_refused_in_one_line_after_some_patience(
    seen: dict[str, Any],
) -> None:
    assert seen["there"] is None
    message, seconds = seen["too small"]
    assert message == (
        "text asks for 1 GPU with 20.0 GB of its own memory; here are 2 GPUs and 4 CPUs on 4 nodes, and the largest "
        "device has 16 GB; leave it out"
    )
    assert seconds >= 0.1
    assert "text asks for 8 x 1 GPU; here are 2 GPUs and 4 CPUs on 4 nodes, and 2 of 8 fit" in seen["too few"][0]


def test_a_pool_lies_only_on_nodes_with_enough_memory_and_grows_to_one_that_joins_meanwhile(
    seen: dict[str, Any],
) -> None:
    assert seen["pool"] == [1, 1.0, {"device-memory-gb": "!in(2,4,6,8,10,12)"}]
    assert {node for _, node, _ in seen["pieces"]} == {"xpu", "late"}
    assert sorted(shard for shard, _, _ in seen["pieces"]) == list(range(80))


def test_an_autoscaler_is_known_by_the_names_of_its_nodes_and_believed_when_it_has_none_that_fits(
    seen: dict[str, Any],
) -> None:
    assert seen["autoscales"] == [False, True]
    message, seconds = seen["hopeless"]
    assert "the autoscaler has no kind of node that would do; leave it out" in message
    assert seconds < 60
    assert seen["obtained"] is False
