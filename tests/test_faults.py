"""What clusters do to a run, on three nodes that are simulated here: ten minutes, `make test-slow`.

tests/bench/faults.py has all, with figures; tests/data/test_pipeline_faults.py a lost node, for the quick tests.
"""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sote.cluster import logs
from sote.cluster import recipe as recipes
from sote.cluster.storage import RunFolder
from sote.train import worker
from sote.train.checkpoint import Origin
from sote.train.engine import Plain
from sote.train.recipe import TrainRecipe
from tests.cluster import small
from tests.cluster.simulated import LOCAL, Driver, Simulated, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    small.make(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(made: Path) -> Path:
    """The run folder of the small curation, run on this machine without a cluster."""
    with Driver(LOCAL, made / "local.log") as driver:
        assert "error" not in driver.do("curate", recipe=str(small.curation(made, made / "local")))
    return made / "local"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Simulated]:
    """A head and two nodes."""
    with Simulated() as started:
        yield started


@pytest.fixture(scope="module")
def driver(cluster: Simulated, made: Path) -> Iterator[Driver]:
    with Driver(cluster.address, made / "driver.log") as started:
        yield started


def catalogue(run: Path) -> bytes:
    return (run / "catalogue.parquet").read_bytes()


def committed(run: Path, stage: str) -> dict[str, int]:
    """The markers of a stage, with the time that each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (run / "rows" / stage).glob("*.done")}


def sleep(driver: Driver, folder: Path, **given: Any) -> dict[str, Any]:
    """Let a pool of sleepers work, in place of models."""
    return driver.do("sleep", **{"notes": str(folder / "notes"), "once": str(folder / "once.txt")} | given)


def test_a_slow_node_holds_the_end_back_by_no_more_than_a_piece(
    cluster: Simulated, driver: Driver, tmp_path: Path
) -> None:
    """The mechanism is one piece at a time for each actor (`shards.pooled`): with Ray Data's own two in flight, the
    slow node would still have a piece to begin when the fast one has nothing left."""
    done = sleep(driver, tmp_path, pieces=24, seconds={"n0": 1.2, "": 0.1})["gave"]
    slow, fast = ([each for each in done if (each[1] == "n0") is wanted] for wanted in (True, False))
    assert len(fast) + len(slow) == 24
    assert len(fast) > 2 * len(slow) > 0
    assert sum(start > max(end for *_, end in fast) for _, _, start, _ in slow) <= 1


def test_a_model_that_hangs_or_stops_is_ended_and_its_piece_comes_all_the_same(
    cluster: Simulated, driver: Driver, tmp_path: Path
) -> None:
    """The mechanism is the watchdog: without it (limit 0) Ray waits for such an actor for ever."""
    done = sleep(driver, tmp_path, pieces=8, seconds={"": 0.05}, limit=2.0, stuck=3, how="stop")
    assert sorted(piece for piece, *_ in done["gave"]) == list(range(8))
    assert [path.name.split(".")[0] for path in (tmp_path / "notes").iterdir()] == ["00003-0"]


def test_a_piece_that_hangs_every_time_ends_the_run_and_names_its_rows(
    cluster: Simulated, driver: Driver, tmp_path: Path
) -> None:
    """The mechanism is the count of notes: without it the piece would be tried for ever."""
    done = sleep(driver, tmp_path, pieces=4, seconds={"": 0.05}, limit=1.5, stuck=2, how="wait", once="never")
    assert done["error"] == "RunFailed"
    assert "hung 3 times" in done["says"]
    assert "shard 2, rows 0 to 3" in done["says"]


def test_a_lost_node_and_full_object_stores_change_no_byte_of_the_catalogue(
    cluster: Simulated, driver: Driver, made: Path, undisturbed: Path
) -> None:
    """The mechanisms: slices hold the same rows wherever they are computed, actors and lost slices are made again
    (max_restarts and lineage, Ray's), and objects that find no place are spilled. The catalogue of three nodes is that
    of one machine, byte for byte; a run whose slices depended on the node or the number of tries would differ."""
    driver.do("fill", size=60 << 20)
    run = made / "lost"
    is_done = driver.begin("curate", recipe=str(small.curation(made, run)))
    assert wait(lambda: committed(run, "tag") or is_done())
    assert not is_done()
    victim = next(node for node in cluster.nodes if cluster.of(node, "Look"))
    cluster.lose(victim)
    cluster.nodes.remove(victim)
    assert "error" not in driver.answer()
    assert catalogue(run) == catalogue(undisturbed)
    assert list(cluster.folder.rglob("ray_spilled_objects_*/*"))
    driver.do("empty")


def test_a_node_that_joins_late_gets_work(cluster: Simulated, driver: Driver, tmp_path: Path) -> None:
    """The mechanism is a pool that grows (`session.model_pool` has no bound where there are accelerators)."""
    given = {"notes": str(tmp_path / "notes"), "once": str(tmp_path / "once")}
    driver.begin("sleep", pieces=60, seconds={"": 0.4}, **given)
    cluster.nodes.append(cluster.add("late"))
    assert "late" in {node for _, node, *_ in driver.answer()["gave"]}


def test_a_driver_that_is_killed_leaves_what_is_committed_and_the_same_command_ends_the_same(
    cluster: Simulated, made: Path, undisturbed: Path
) -> None:
    """The mechanism is the marker of each shard: without it all shards would be made again."""
    run = made / "killed"
    recipe = str(small.curation(made, run))
    with Driver(cluster.address, made / "killed.log") as first:
        is_done = first.begin("curate", recipe=recipe)
        assert wait(lambda: committed(run, "tag") or is_done())
        assert not is_done()
        first.kill()
    before = committed(run, "tag")
    with Driver(cluster.address, made / "again.log") as second:
        assert "error" not in second.do("curate", recipe=recipe)
    assert catalogue(run) == catalogue(undisturbed)
    assert before.items() <= committed(run, "tag").items()
    facts = [line for line in logs.read_metrics(run / "metrics.jsonl") if line["kind"] == "stage"]
    assert sum(line["stage"] == "tag" for line in facts) == len(committed(run, "tag"))


def test_a_node_that_goes_with_notice_costs_a_training_no_more_than_the_steps_since_its_save(
    cluster: Simulated, driver: Driver, made: Path
) -> None:
    """The mechanisms: the workers save when Ray announces that a node will go (train/stopping.py), and start again from
    there. The recipe saves at no other step: without the notice the run would begin anew."""
    run, steps = made / "trained", 48
    recipe = small.training(made, run, steps=steps, every_steps=1000)
    is_done = driver.begin("train", recipe=str(recipe))
    assert wait(lambda: small.losses(run) or is_done(), 240)
    victim = next(node for node in cluster.nodes if cluster.of(node, "RayTrainWorker"))
    cluster.announce(victim, seconds=120)
    assert wait(lambda: small.saved(run) != {0} or is_done())
    assert not is_done()
    cluster.lose(victim)
    cluster.nodes.remove(victim)
    assert "error" not in driver.answer(400)
    starts = [line["resumed_from"] for line in logs.read_metrics(run / "metrics.jsonl") if line["kind"] == "start"]
    assert len(starts) >= 2
    assert 0 < starts[1] < steps
    wanted = alone(made, steps)
    assert small.losses(run).keys() == wanted.keys()
    for step, loss in small.losses(run).items():
        # sums over workers are rounded in another order; the batches are the same
        assert loss == pytest.approx(wanted[step], rel=1e-3)


def alone(made: Path, steps: int) -> dict[int, float]:
    """The losses of the same training in this process, to which nothing happens."""
    recipe = recipes.load(small.training(made, made / "alone", steps=steps, every_steps=1000), TrainRecipe)
    folder, origin = RunFolder(made / "alone"), Origin("", 32.0, "")
    worker.train(recipe, folder=folder, origin=origin, found=None, make_engine=Plain, wish=lambda _: None)
    return small.losses(folder.root)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
def test_a_head_that_is_restarted_from_its_redis_goes_on_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mechanism is Ray's store in Redis, as the manifests set it up: without it the new head knows no node, no
    actor and no job, and the run ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    redis = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("RAY_REDIS_ADDRESS", f"127.0.0.1:{port}")
        with Simulated(nodes=1) as cluster, Driver(cluster.address, tmp_path / "log") as driver:
            given = {"notes": str(tmp_path / "notes"), "once": str(tmp_path / "once")}
            is_done = driver.begin("sleep", pieces=40, seconds={"": 0.3}, **given)
            assert wait(lambda: cluster.actors("Sleeper"))
            cluster.restart_gcs()
            assert not is_done()
            assert len(driver.answer()["gave"]) == 40
    finally:
        redis.terminate()
        redis.wait()
