"""A cluster of several nodes on this machine, a driver in a process of its own, and what can be done to both.

Nodes are Ray's own (`ray.cluster_utils`), children of this process. Nodes are added in the main thread, for Ray takes a
signal there; so the work runs in the driver's process, and whoever disturbs it is free meanwhile.

    python -m tests.cluster.simulated ADDRESS       a driver: one JSON line in, {"verb", ...}, one line out
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray import _raylet
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

STORE_BYTES = 80 << 20  # Ray takes no less than 75 MiB
PREEMPTION = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
Node = Any  # ray._private.node.Node
ANSWER = "answer: "
LOCAL = "local"
LOOPBACK = "127.0.0.1"


class Simulated:
    """A head that computes nothing and nodes with a pretended accelerator each. To be used as a context."""

    def __init__(self, *, nodes: int = 2, store_bytes: int = STORE_BYTES, head_cpus: int = 1) -> None:
        self._folder = tempfile.mkdtemp(prefix="sote-")
        self._before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
        self._store_bytes = store_bytes
        self._raylets: set[int] = set()
        self._is_over = False
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        head: dict[str, Any] = {"num_cpus": head_cpus, "temp_dir": self._folder, "include_dashboard": False}
        self._cluster: Any = Cluster()
        self._add(head)
        self.nodes = [self.add(f"n{at}") for at in range(nodes)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def head(self) -> Node:
        return self._cluster.head_node

    @property
    def folder(self) -> Path:
        """What Ray keeps of the cluster: logs, sockets, spilled objects."""
        return Path(self._folder)

    def add(self, name: str, *, cpus: int = 1) -> Node:
        """A node with one accelerator joins, labelled by its name. Only in the main thread."""
        return self._add({"num_cpus": cpus, "num_gpus": 1, "labels": {"accel": "cpu", "name": name}})

    def name(self, node: Node) -> str:
        """What it was called when it was added."""
        return str(node._ray_params.labels["name"])

    def lose(self, node: Node) -> None:
        """The node's processes are killed, as by a power cut."""
        self._cluster.remove_node(node, allow_graceful=False)

    def announce(self, node: Node, *, seconds: float) -> None:
        """Say that the node will be taken away: what clouds do with spot machines."""
        deadline = int((time.time() + seconds) * 1000)
        client: Any = _raylet.GcsClient(  # type: ignore[attr-defined]
            address=self.address
        )
        accepted, why = client.drain_node(str(node.node_id), PREEMPTION, "a test", deadline)
        if not accepted:
            raise RuntimeError(why)

    def actors(self, name: str) -> dict[int, int]:
        """Processes whose title holds `name`, with the raylet that each belongs to."""
        found = {}
        for pid, raylet in _workers():
            if raylet in self._raylets and name in _title(pid):
                found[pid] = raylet
        return found

    def of(self, node: Node, name: str) -> list[int]:
        """The processes of one node whose title holds `name`."""
        return [pid for pid, raylet in self.actors(name).items() if raylet == _pid_of(node)]

    def restart_gcs(self) -> None:
        """The head's process that knows everything is killed, and started again."""
        self.head.kill_gcs_server()
        self.head.start_gcs_server()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        try:
            self._cluster.shutdown()
        finally:
            for pid, raylet in _workers():
                if raylet in self._raylets:  # one that is stopped does not hear that its node ends
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _add(self, given: dict[str, Any]) -> Node:
        node = self._cluster.add_node(object_store_memory=self._store_bytes, node_ip_address=LOOPBACK, **given)
        self._raylets.add(_pid_of(node))
        return node


def _pid_of(node: Node) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _workers() -> Iterator[tuple[int, int]]:
    """All processes of Ray's workers, with the raylet that started each."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            for line in (folder / "environ").read_bytes().split(b"\0"):
                if line.startswith(b"RAY_RAYLET_PID="):
                    yield int(folder.name), int(line.partition(b"=")[2])


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@dataclass
class Driver:
    """A process that is connected to a cluster and runs verbs on it, one at a time. To be used as a context."""

    address: str
    log: Path
    process: subprocess.Popen[str] = field(init=False)
    answers: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "tests.cluster.simulated", self.address]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=_top()
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def begin(self, verb: str, **given: Any) -> Callable[[], bool]:
        """Let it begin; the function says whether it is done. `answer` waits for that."""
        before = len(self.answers)
        if self.process.stdin is None:
            raise RuntimeError("no driver")
        self.process.stdin.write(json.dumps({"verb": verb} | given) + "\n")
        self.process.stdin.flush()
        self._wanted = before + 1
        return lambda: len(self.answers) > before or self.process.poll() is not None

    def answer(self, seconds: float = 300) -> dict[str, Any]:
        """What came of the verb that was begun last: {"seconds": ...} or {"error": class, "says": message}."""
        wait(lambda: len(self.answers) >= self._wanted or self.process.poll() is not None, seconds)
        if len(self.answers) < self._wanted:
            raise RuntimeError(f"no answer of the driver:\n{self.log.read_text()[-4000:]}")
        return self.answers[self._wanted - 1]

    def do(self, verb: str, **given: Any) -> dict[str, Any]:
        """Begin, and wait for the answer."""
        self.begin(verb, **given)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith(ANSWER):
                self.answers.append(json.loads(line.removeprefix(ANSWER)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(BrokenPipeError), self.process:
            if self.process.stdin is not None:
                self.process.stdin.close()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._reader.join()


def wait(until: Callable[[], object], seconds: float = 120) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _top() -> Path:
    return Path(__file__).resolve().parent.parent.parent


def _curate(recipe: str, calls: str | None = None, seconds: dict[str, float] | None = None) -> None:
    """`calls`: a file that gets a line for each slice that a model began and one for each that it ended. `seconds`:
    what a slice takes longer on the nodes named."""
    from sote.cluster import recipe as recipes
    from sote.cluster import storage
    from sote.data import pass_pixels, pipeline
    from sote.data.recipe import CurateRecipe

    if calls is not None:
        pass_pixels.Look = _counted(calls, seconds or {})  # type: ignore[misc]
    made = recipes.load(Path(recipe), CurateRecipe)
    with storage.open_run(made, verb="curate", command="a test", may_differ={"work"}) as folder:
        pipeline.run(made, folder, address=None)


def _counted(calls: str, seconds: dict[str, float]) -> Any:
    from sote.data import pass_pixels

    class Look(pass_pixels.Look):
        def __call__(self, batch: Any) -> Any:
            import ray

            name = str(ray.get_runtime_context().get_node_labels().get("name", "head"))
            piece = f"{int(batch['shard'][0])}-{int(batch['start'][0])} {name}"
            _append(calls, f"began {piece} {time.time()}\n")
            time.sleep(seconds.get(name, 0.0))
            found = super().__call__(batch)
            _append(calls, f"ended {piece} {time.time()}\n")
            return found

    return Look


def _append(path: str, line: str) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line)


def _train(recipe: str, address: str) -> None:
    from sote.cluster import recipe as recipes
    from sote.cluster import storage
    from sote.train import launch
    from sote.train.recipe import MAY_DIFFER, TrainRecipe

    made = recipes.load(Path(recipe), TrainRecipe)
    with storage.open_run(made, verb="train", command="a test", may_differ=MAY_DIFFER) as folder:
        launch.run(made, folder=folder, address=address)


class Sleeper:
    """An actor that takes the seconds of its node for each piece. At the piece `stuck` it does as `how` says: "stop" is
    a SIGSTOP to its process, "wait" a call that never returns; both only as long as the file `once` is not there."""

    def __init__(self, seconds: dict[str, float], stuck: int, how: str, once: str, patience: Any) -> None:
        import ray

        from sote.data.watchdog import Watchdog

        self.name = str(ray.get_runtime_context().get_node_labels().get("name", "head"))
        self.seconds = seconds.get(self.name, seconds[""])
        self.stuck, self.how, self.once = stuck, how, Path(once)
        self.watchdog = Watchdog(patience) if patience is not None else None

    def __call__(self, batch: Any) -> Any:
        from sote.data import shards

        piece, start = int(batch["shard"][0]), time.time()
        over = self.watchdog.over(piece, "rows 0 to 3", key=f"{piece:05d}-0") if self.watchdog else None
        with over or contextlib.nullcontext():
            time.sleep(self.seconds)
            if piece == self.stuck and not self.once.exists():
                if self.once.suffix:
                    self.once.touch()
                if self.how == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(100_000)
        return shards.batch_of({"piece": piece, "node": self.name, "start": start, "end": time.time()})


def _sleep(
    pieces: int, seconds: dict[str, float], notes: str, *, limit: float = 0.0, stuck: int = -1, how: str = "", once: str
) -> list[list[Any]]:
    """A pool of sleepers: [piece, node, start, end] of all pieces. `limit`: of one call, 0 for none."""
    from sote.data import shards
    from sote.data.watchdog import Patience

    patience = Patience("sleep", limit, Path(notes)) if limit else None
    given = (seconds, stuck, how, once, patience)
    found = shards.stream(shards.pooled(shards.each(range(pieces)), Sleeper, given, cpus=1.0))
    return [[int(each["piece"]), str(each["node"]), float(each["start"]), float(each["end"])] for each in found]


class _Kept:
    """Objects that fill the object stores of all nodes, as long as they are held."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def fill(self, size: int) -> None:
        import numpy as np
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                remote: Any = ray.remote(num_cpus=0)
                made = remote(np.ones).options(scheduling_strategy=there)
                self.objects.append(made.remote(size, np.uint8))
        ray.wait(self.objects, num_returns=len(self.objects), fetch_local=False)


def _drive(address: str) -> None:
    from ray.exceptions import RayError

    from sote.cluster import session
    from sote.cluster.errors import SoteError

    kept = _Kept()
    with session.connect(None if address == LOCAL else address):
        for line in sys.stdin:
            asked = json.loads(line)
            verb, started = asked.pop("verb"), time.monotonic()
            verbs: dict[str, Callable[..., Any]] = {
                "curate": _curate,
                "train": lambda recipe: _train(recipe, address),
                "sleep": _sleep,
                "fill": kept.fill,
                "empty": kept.objects.clear,
            }
            try:
                answer = {"gave": verbs[verb](**asked)}
            except (SoteError, RayError) as error:
                traceback.print_exc()
                answer = {"error": type(error).__name__, "says": str(error)}
            print(ANSWER + json.dumps(answer | {"seconds": time.monotonic() - started}), flush=True)


if __name__ == "__main__":
    _drive(sys.argv[1])
