"""Jobs, pictures and weights of a server whose run folder is at a URI, and what the next server finds of them."""

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from sote.cluster import remote
from sote.cluster.errors import WeightsError
from sote.serve import accesslog, jobfiles_far
from sote.serve.accesslog import AccessLog, Entry
from sote.serve.desk import Desk
from sote.serve.figures import Figures
from sote.serve.jobs import Jobs
from sote.serve.recipe import DefaultsPart, JobsPart, ModelPart, ServeRecipe
from sote.serve.results_far import results_of
from tests.serve.brush import Brush, asked, until, visitor
from tests.stores import Store

ADA = visitor()
BASE = "http://127.0.0.1:8000"
PART = JobsPart(keep_seconds=100, running=1, max_waiting=8)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BEAT_SECONDS", "CANCEL_SECONDS", "ORPHAN_SECONDS"):
        monkeypatch.setattr(jobfiles_far, name, 0.2)
    monkeypatch.setattr(jobfiles_far, "DEAD_SECONDS", 2.0)


def jobs_of(uri: str, brush: Any) -> Jobs:
    run = remote.place(uri)
    desk = Desk(ServeRecipe(run=uri, jobs=PART), brush, Figures())
    return Jobs(run / "jobs", PART, desk, results_of(run / "results", PART.keep_seconds))


def another_node() -> None:
    shutil.rmtree(remote.place("s3://any/thing").parents[1])


def opened() -> Brush:
    brush = Brush()
    brush.gate.set()
    return brush


async def is_ended(jobs: Jobs, id: str) -> bool:
    seen = await jobs.sight(id, ADA)
    assert seen is not None
    return seen.record.is_ended


def test_the_next_server_on_another_node_takes_over_the_jobs_of_one_that_died_and_has_its_results(s3: Store) -> None:
    async def main() -> None:
        first = jobs_of(f"{s3.uri}/serve", brush := Brush())
        await first.start()
        brush.gate.set()
        done = (await first.create(asked(1), ADA, base_url=BASE)).record.id
        await until(lambda: is_ended(first, done))
        brush.gate.clear()
        left = (await first.create(asked(2), ADA, base_url=BASE)).record.id
        waiting = (await first.create(asked(3), ADA, base_url=BASE)).record.id
        await until(lambda: brush.begun == [1, 2])
        for task in list(first.keeper._tasks):  # as a process that is killed: nothing is given back
            task.cancel()
        await asyncio.sleep(2.1)  # without a beat
        another_node()
        second = jobs_of(f"{s3.uri}/serve", other := opened())
        await second.start()
        try:
            await until(lambda: is_ended(second, waiting))
            assert other.done == [2, 3]
            answers = [json.loads(await second.answer(id) or b"{}") for id in (done, left)]
            names = [answer["images"][0]["url"].rpartition("/")[2] for answer in answers]
            assert all(second.results.read(name) for name in names)
            assert 90 < second.results.seconds_left(names[0]) <= 100
            assert [each.record.id for each in await second.listed(ADA)] == [waiting, left, done]
            seen = await second.sight(done, ADA)
            await second.remove(seen.record)  # type: ignore[union-attr]
            assert second.results.read(names[0]) is None
            assert not [name for name in s3.files() if done in name or names[0] in name]
        finally:
            await second.stop()
        assert not [
            name for name in s3.files() if "/claim" in name or ("/owners/" in name and second.keeper.owner in name)
        ]

    asyncio.run(main())


def test_a_job_is_taken_over_by_one_alone_and_cancelled_from_another_node(s3: Store) -> None:
    async def main() -> None:
        first, second = (jobs_of(f"{s3.uri}/serve", brush) for brush in (Brush(), Brush()))
        await first.start()
        await second.start()
        try:
            id = (await first.create(asked(4), ADA, base_url=BASE)).record.id
            assert second.files.orphans(owner=second.keeper.owner) == []
            assert second.files.adopt(id, owner=second.keeper.owner) is None  # its owner lives
            first.files.leave(first.keeper.owner)
            owners = [f"{number:016x}" for number in range(4)]
            taken = await asyncio.gather(*(asyncio.to_thread(second.files.adopt, id, owner=each) for each in owners))
            assert sum(each is not None for each in taken) >= 1
            assert (second.files.record(id) or taken[0]).owner in owners  # type: ignore[union-attr]
            other = (await second.create(asked(5), ADA, base_url=BASE)).record.id
            first.files.ask_to_cancel(other)
            await until(lambda: is_ended(second, other))
            assert (await second.sight(other, ADA)).record.state == "CANCELLED"  # type: ignore[union-attr]
        finally:
            await first.stop()
            await second.stop()

    asyncio.run(main())


def test_lines_of_the_access_log_come_to_the_uri_in_files_of_each_process(s3: Store) -> None:
    path = accesslog.path_in(remote.place(f"{s3.uri}/serve"))
    log = AccessLog(path, lost=lambda: None, max_bytes=200)
    for number in range(3):
        log.write(Entry(str(number), "POST", "/v1/generate", 200, 0.1, "ada", 9, 1))
    log.close()
    until_there = time.monotonic() + 20
    while len(files := {name: data for name, data in s3.files().items() if "serve/access/" in name}) < 3:
        assert time.monotonic() < until_there, files
        time.sleep(0.05)
    lines = [json.loads(line) for data in files.values() for line in data.splitlines()]
    assert sorted(line["request_id"] for line in lines) == ["0", "1", "2"]


def test_weights_at_a_uri_are_served_as_those_here(
    s3: Store, weights: Path, small: DefaultsPart, tmp_path: Path
) -> None:
    from sote.serve import plan, weightfiles
    from sote.serve.cascade import Cascade
    from sote.serve.schema import GenerateRequest

    for path in sorted(weights.rglob("*")):
        if path.is_file():
            remote.put(remote.place(f"{s3.uri}/models/{path.relative_to(weights)}"), path.read_bytes())
    there = ModelPart(prior=f"{s3.uri}/models/prior", decoder=f"{s3.uri}/models/decoder", name="stand-in")
    here = ModelPart(prior=str(weights / "prior"), decoder=str(weights / "decoder"), name="stand-in")
    plan.check(ServeRecipe(run=f"{s3.uri}/serve", model=there, defaults=small))
    assert [each.name for each in weightfiles.named(there)] == ["prior", "decoder"]
    asked_for = GenerateRequest(prompt="a red circle", seed=3)
    one, two = (Cascade.load(part, defaults=small).generate(asked_for)[0].data for part in (here, there))
    assert one == two
    with pytest.raises(WeightsError, match=f"model.prior: nothing lies at {s3.uri}/none"):
        plan.weights(ServeRecipe(run=str(tmp_path), model=there.model_copy(update={"prior": f"{s3.uri}/none"})))
