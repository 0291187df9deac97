"""What clusters do to a run, on simulated nodes of this machine: what is done again, how long it takes, what changes.

    python tests/bench/faults.py [--only WORD] [--pictures 64]

Each fault is done to a small curation, training or server while it works. "Again" is rows that a model looked at more
than once, steps that were made again, or requests that failed; "recovered" is seconds from the fault to the next
progress: a shard committed, a step that was not there before, an answer. "Equal" is whether the catalogue has the same
bytes as that of one machine, the losses those of a run that nothing happened to. Needs PYTHONPATH=. where it is not
started by run.py.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rows import Answer, Row, add_option, write

from sote.cluster import recipe as recipes
from sote.serve.recipe import DefaultsPart, ModelPart, ServeRecipe
from sote.train import standins
from tests.cluster import small
from tests.cluster.simulated import LOCAL, Driver, Simulated, wait

HANG_SECONDS, SLOW_SECONDS = 10.0, 2.0
STEPS, EVERY_STEPS = 60, 20
REQUESTS, CLIENTS = 60, 3


@dataclass(frozen=True)
class Outcome:
    """One line of the table. `equal` None: there is nothing to compare."""

    fault: str
    again: str
    recovered_seconds: float | None
    seconds: float
    equal: bool | None
    note: str = ""

    def line(self) -> str:
        recovered = "" if self.recovered_seconds is None else f"{self.recovered_seconds:.1f}"
        equal = {True: "yes", False: "NO", None: ""}[self.equal]
        return f"{self.fault:44} {self.again:>20} {recovered:>10} {self.seconds:>8.1f} {equal:>6}  {self.note}"

    def row(self) -> Row:
        """As it is kept."""
        recovered = "" if self.recovered_seconds is None else f"recovered in {self.recovered_seconds:.1f} s"
        equal = {True: "equal", False: "NOT EQUAL", None: ""}[self.equal]
        again = f"{self.again} again" if self.again else ""
        return Row(self.fault, self.seconds, "s", "lower", note="; ".join(filter(None, [again, recovered, equal])))


class Curating:
    """Curations of the same pictures, each disturbed in its own way."""

    def __init__(self, folder: Path, *, pictures: int) -> None:
        self.folder = folder
        small.make(folder, pictures=pictures)

    def local(self) -> Outcome:
        """One machine, no cluster: what all others are compared with."""
        with Driver(LOCAL, self.folder / "local.log") as driver:
            done = driver.do("curate", recipe=str(small.curation(self.folder, self.folder / "local")))
        return Outcome("curate: one machine", "", None, done["seconds"], None)

    def run(
        self,
        name: str,
        driver: Driver,
        fault: Callable[[], Driver | None] | None = None,
        *,
        slow: str | None = None,
        hang_timeout_seconds: float = 900.0,
    ) -> Outcome:
        """Curate, and let `fault` happen when a shard is committed; the driver that it returns is given the same
        command again."""
        run, begun = self.folder / name.replace(" ", "-"), time.monotonic()
        calls, recovered = run.with_suffix(".calls"), None
        asked: dict[str, Any] = {"calls": str(calls), "seconds": {slow: SLOW_SECONDS} if slow else {}}
        asked["recipe"] = str(small.curation(self.folder, run, hang_timeout_seconds=hang_timeout_seconds))
        is_done = driver.begin("curate", **asked)
        if fault is not None:
            wait(lambda: _committed(run) or is_done())
            if is_done():
                raise RuntimeError(f"{name}: the run was over before the fault: {driver.log.read_text()[-2000:]}")
            before, at = _committed(run), time.monotonic()
            if (other := fault()) is not None:
                driver = other
                is_done = driver.begin("curate", **asked)
            wait(lambda: _committed(run) > before or is_done(), 300)
            recovered = time.monotonic() - at
        answer = driver.answer(600)
        equal = "error" not in answer and _bytes(run) == _bytes(self.folder / "local")
        note = f"{answer['error']}: {answer['says']}"[:200] if "error" in answer else _said_of(calls, slow)
        again = f"{_again(calls) * small.SLICE_ROWS} rows"
        return Outcome(f"curate: {name}", again, recovered, time.monotonic() - begun, equal, note)


def _committed(run: Path) -> set[str]:
    return {path.name for path in (run / "rows" / "tag").glob("*.done")}


def _bytes(run: Path) -> bytes:
    return (run / "catalogue.parquet").read_bytes()


def _calls(path: Path, kind: str) -> list[tuple[str, str, float]]:
    """[slice, node, time] of what began or ended."""
    words = [line.split() for line in path.read_text().splitlines()]
    return [(piece, node, float(at)) for which, piece, node, at in words if which == kind]


def _again(calls: Path) -> int:
    began = Counter(piece for piece, *_ in _calls(calls, "began"))
    return sum(began.values()) - len(began)


def _said_of(calls: Path, slow: str | None) -> str:
    ended = _calls(calls, "ended")
    nodes = Counter(node for _, node, _ in ended)
    said = "slices: " + ", ".join(f"{name} {count}" for name, count in sorted(nodes.items()))
    if slow and nodes[slow] and len(nodes) > 1:
        tail = max(at for _, node, at in ended if node == slow) - max(at for _, node, at in ended if node != slow)
        said += f"; the slow one ended {tail:+.1f} s after the others"
    return said


def curations(folder: Path, *, pictures: int) -> Iterator[Outcome]:
    """All faults of curations, on clusters of a head and two nodes."""
    made = Curating(folder, pictures=pictures)
    yield made.local()
    with Simulated() as cluster, ExitStack() as drivers:
        driver = drivers.enter_context(Driver(cluster.address, folder / "driver.log"))
        yield made.run("nothing, three nodes", driver)
        yield made.run("a node is lost", driver, lambda: _lose(cluster, "Look"))
        cluster.nodes.append(cluster.add("n2"))
        stop = signal.SIGSTOP
        yield made.run(
            f"a model hangs (limit {HANG_SECONDS:g} s)",
            driver,
            lambda: os.kill(next(iter(cluster.actors("Look"))), stop),
            hang_timeout_seconds=HANG_SECONDS,
        )
        driver.do("fill", size=60 << 20)
        yield made.run("object stores are full", driver)
        driver.do("empty")
        yield made.run("a slow node", driver, slow=cluster.name(cluster.nodes[0]))
        yield made.run("a node joins late", driver, lambda: cluster.nodes.append(cluster.add("late")))

        def killed() -> Driver:
            driver.kill()
            return drivers.enter_context(Driver(cluster.address, folder / "again.log"))

        yield made.run("the driver is killed", driver, killed)
    yield _head_lost(made, folder)
    if shutil.which("redis-server"):
        yield _head_restarted(made, folder)


def _lose(cluster: Simulated, name: str) -> None:
    victim = next(node for node in cluster.nodes if cluster.of(node, name))
    cluster.nodes.remove(victim)
    cluster.lose(victim)


def _head_lost(made: Curating, folder: Path) -> Outcome:
    """Head and driver gone; a new cluster, the same command."""
    with ExitStack() as all_of_it:
        first = all_of_it.enter_context(Simulated())
        driver = all_of_it.enter_context(Driver(first.address, folder / "head.log"))

        def gone() -> Driver:
            driver.kill()
            first.__exit__(None, None, None)
            second = all_of_it.enter_context(Simulated())
            return all_of_it.enter_context(Driver(second.address, folder / "head-again.log"))

        return made.run("the head is lost, a new cluster", driver, gone)


def _head_restarted(made: Curating, folder: Path) -> Outcome:
    with redis(folder), Simulated() as cluster, Driver(cluster.address, folder / "redis.log") as driver:
        return made.run("the head restarts from its Redis", driver, cluster.restart_gcs)


@contextmanager
def redis(folder: Path) -> Iterator[None]:
    """A Redis in which clusters that start meanwhile keep what the head knows."""
    port = free_port()
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    os.environ["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{port}"
    try:
        yield
    finally:
        del os.environ["RAY_REDIS_ADDRESS"]
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trainings(folder: Path) -> Iterator[Outcome]:
    """A node with a worker is lost, without and with notice; two workers on two nodes, a third takes over."""
    wanted: dict[int, float] = {}
    for name, notice_seconds in (
        ("nothing, two workers", None),
        ("a node is lost", 0.0),
        ("a node, with notice", 60.0),
    ):
        with Simulated(head_cpus=0) as cluster, Driver(cluster.address, folder / f"{name}.log") as driver:
            run, begun = folder / name.replace(" ", "-"), time.monotonic()
            is_done = driver.begin(
                "train", recipe=str(small.training(folder, run, steps=STEPS, every_steps=EVERY_STEPS))
            )
            recovered, again = None, ""
            if notice_seconds is not None:
                wait(lambda run=run, is_done=is_done: len(small.losses(run)) > EVERY_STEPS * 1.5 or is_done())  # type: ignore[misc]
                victim = cluster.nodes.pop(0)
                if notice_seconds:
                    cluster.announce(victim, seconds=notice_seconds)
                    wait(lambda run=run: any(step % EVERY_STEPS for step in small.saved(run)), 30)  # type: ignore[misc]
                at, last = time.monotonic(), max(small.losses(run))
                cluster.lose(victim)
                cluster.add("spare")
                wait(lambda run=run, last=last, is_done=is_done: max(small.losses(run)) > last or is_done(), 300)  # type: ignore[misc]
                recovered = time.monotonic() - at
                again = f"{last - max(step for step in small.saved(run) if step <= last)} steps"
            answer = driver.answer(600)
            losses = small.losses(run)
            wanted = wanted or losses
            note = (
                f"{answer['error']}: {answer['says']}"[:200]
                if "error" in answer
                else f"saved {sorted(small.saved(run))}"
            )
            yield Outcome(f"train: {name}", again, recovered, time.monotonic() - begun, losses == wanted, note)


def servings(folder: Path) -> Iterator[Outcome]:
    """A node with replicas of all deployments is lost while clients ask."""
    standins.make(folder / "weights")
    twice = {"min_replicas": 2, "max_replicas": 2, "cpus": 0.3}
    recipe = ServeRecipe.model_validate(
        {
            "run": str(folder / "run"),
            "port": free_port(),
            "model": ModelPart(prior=str(folder / "weights/prior"), decoder=str(folder / "weights/decoder"), name="s"),
            "defaults": DefaultsPart(width=256, height=384, prior_steps=4, decoder_steps=4),
            "prior_replicas": twice,
            "decoder_replicas": twice,
        }
    )
    path = folder / "serve.toml"
    path.write_text(recipes.dumps(recipe))
    with Simulated() as cluster:
        words = [sys.executable, "-m", "sote.cluster.cli", "--address", cluster.address, "serve", str(path)]
        with (folder / "serve.log").open("w") as log:
            server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            url = server.stdout.readline().strip() if server.stdout else ""
            yield (
                _asked(url, cluster)
                if url
                else Outcome("serve", "", None, 0.0, None, (folder / "serve.log").read_text())
            )
        finally:
            server.terminate()
            server.wait(120)


def _asked(url: str, cluster: Simulated) -> Outcome:
    answers: list[tuple[float, float, int]] = []
    numbers = iter(range(REQUESTS))

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
            for seed in numbers:
                begin = time.monotonic()
                status = client.post("/v1/generate", json={"prompt": "a", "seed": seed}).status_code
                answers.append((begin, time.monotonic(), status))

    begun = time.monotonic()
    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    wait(lambda: len(answers) > REQUESTS // 4)
    counts = {id(node): [len(cluster.of(node, f"sote:{kind}")) for kind in KINDS] for node in cluster.nodes}
    victim = max(cluster.nodes, key=lambda node: sum(counts[id(node)]))
    at = time.monotonic()
    cluster.nodes.remove(victim)
    cluster.lose(victim)
    for client in clients:
        client.join()
    failed = sum(status != 200 for *_, status in answers)
    recovered = min(end for begin, end, _ in answers if begin > at) - at
    note = (
        f"lost with it, of {'/'.join(KINDS)}: {counts[id(victim)]}; slowest {max(e - b for b, e, _ in answers):.1f} s"
    )
    fault, again = "serve: a node with replicas is lost", f"{failed} of {len(answers)} failed"
    return Outcome(fault, again, recovered, time.monotonic() - begun, None, note)


KINDS = ("Ingress", "Prior", "Decoder")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--only", default="", help="curate, train or serve")
    words.add_argument("--pictures", type=int, default=64)
    add_option(words)
    given = words.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sote-faults-"))
    parts = {
        "curate": lambda: curations(_in(folder / "curate"), pictures=given.pictures),
        "train": lambda: trainings(_in(folder / "train")),
        "serve": lambda: servings(_in(folder / "serve")),
    }
    found = list[Row]()
    print(f"{'fault':44} {'again':>20} {'recovered':>10} {'seconds':>8} {'equal':>6}")
    for name, part in parts.items():
        for outcome in part() if given.only in ("", name) else ():
            print(outcome.line(), flush=True)
            found.append(outcome.row())
            write(given.json, Answer(found))
    shutil.rmtree(folder)


def _in(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
