"""Jobs: their turn, their end, who sees them, and what becomes of them when a server dies."""

import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sote.cluster.errors import Busy, NoMemory, RequestError, RunFailed
from sote.serve import jobkeeper
from sote.serve.access import Visitor
from sote.serve.jobline import Sight
from sote.serve.jobs import Jobs
from sote.serve.recipe import DefaultsPart, JobsPart, ModelPart, ServeRecipe
from tests.serve.brush import Brush, Clock, House, asked, until, visitor

ADA = visitor()
TOP = Path(__file__).resolve().parents[2]
BASE = "http://127.0.0.1:8000"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def house(tmp_path: Path, clock: Clock) -> House:
    return House(tmp_path, clock)


def opened() -> Brush:
    brush = Brush()
    brush.gate.set()
    return brush


async def state_of(jobs: Jobs, id: str) -> str:
    seen = await jobs.sight(id, ADA)
    return seen.record.state if seen else "none"


async def ended(jobs: Jobs, id: str) -> Sight:
    """The job when it is over."""
    found: list[Sight] = []

    async def is_ended() -> bool:
        seen = await jobs.sight(id, ADA)
        assert seen is not None
        found[:] = [seen]
        return seen.record.is_ended

    await until(is_ended)
    return found[0]


async def pictures_of(jobs: Jobs, id: str) -> list[bytes]:
    answer = json.loads(await jobs.answer(id) or b"{}")
    found = [jobs.results.read(image["url"].rpartition("/")[2]) for image in answer["images"]]
    return [each for each in found if each is not None]


async def made(jobs: Jobs, seed: int | None = 7, **fields: Any) -> str:
    return (await jobs.create(asked(seed, **fields), ADA, base_url=BASE)).record.id


def test_a_job_is_painted_and_its_pictures_can_be_fetched(house: House) -> None:
    async def main() -> None:
        async with house.open(opened()) as jobs:
            id = await made(jobs, num_images=2)
            seen = await ended(jobs, id)
            assert seen.record.state == "COMPLETED"
            assert seen.share == 1
            assert seen.record.expires == pytest.approx(house.clock() + 100, abs=0.1)
            answer = json.loads(await jobs.answer(id) or b"{}")
            assert [image["seed"] for image in answer["images"]] == [7, 8]
            assert all(image["url"].startswith(f"{BASE}/v1/results/") for image in answer["images"])
            assert len(set(await pictures_of(jobs, id))) == 2

    asyncio.run(main())


def test_jobs_wait_in_the_order_of_their_arrival_and_know_their_position(house: House) -> None:
    async def main() -> None:
        brush = Brush()
        async with house.open(brush) as jobs:
            ids = [await made(jobs, seed) for seed in (1, 2, 3)]
            await until(lambda: brush.begun == [1])
            seen = [await jobs.sight(id, ADA) for id in ids]
            assert [each and each.position for each in seen] == [None, 0, 1]
            brush.gate.set()
            await ended(jobs, ids[2])
            assert brush.done == [1, 2, 3]
            assert brush.most == 1

    asyncio.run(main())


def test_at_most_so_many_wait_and_the_next_is_told_when_to_come_again(house: House) -> None:
    house.part = JobsPart(running=1, max_waiting=2)

    async def main() -> None:
        brush = Brush()
        async with house.open(brush) as jobs:
            for seed in (1, 2, 3):
                await made(jobs, seed)
                await until(lambda: brush.begun == [1])
            with pytest.raises(Busy, match="2 jobs wait already") as busy:
                await made(jobs, 4)
            assert busy.value.retry_after_seconds >= 1
            brush.gate.set()

    asyncio.run(main())


def test_many_that_come_at_once_do_not_slip_past_the_most_that_may_wait(house: House) -> None:
    house.part = JobsPart(running=1, max_waiting=3)

    async def main() -> None:
        async with house.open(Brush()) as jobs:
            tries = await asyncio.gather(*(made(jobs, seed) for seed in range(10)), return_exceptions=True)
            assert sum(isinstance(each, Busy) for each in tries) >= 6

    asyncio.run(main())


def test_a_full_line_of_the_models_makes_a_job_wait_and_never_fail(house: House) -> None:
    async def main() -> None:
        brush = opened()
        brush.errors = [Busy("the line is full", retry_after_seconds=1) for _ in range(2)]
        async with house.open(brush) as jobs:
            seen = await ended(jobs, await made(jobs))
            assert seen.record.state == "COMPLETED"
            assert seen.record.attempts == 1
            assert brush.begun == [7, 7, 7]

    asyncio.run(main())


def test_a_visitor_at_their_own_limit_does_not_hold_up_the_others(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobkeeper, "LONGEST_HOLD", 0.05)  # they ask again and again
    house.part = JobsPart(running=2, max_waiting=8)
    slow, fast = visitor("slow", requests_per_minute=1), visitor("fast")

    async def main() -> None:
        brush = opened()
        async with house.open(brush) as jobs:

            async def create(seed: int, asker: Visitor) -> str:
                return (await jobs.create(asked(seed), asker, base_url=BASE)).record.id

            await create(1, slow)
            await until(lambda: brush.done == [1])  # two of theirs that begin at once may overtake each other
            own = [await create(seed, slow) for seed in (2, 3)]
            await until(lambda: all(jobs.keeper.live[id].is_refused for id in own))
            await create(4, fast)
            await until(lambda: brush.done == [1, 4])
            for _ in range(600):  # over two ticks: what asks again is not to be seen as a start
                states = [seen.record.state if (seen := await jobs.sight(id, slow)) else None for id in own]
                assert states == ["IN_QUEUE", "IN_QUEUE"]
                await asyncio.sleep(0.002)
            assert brush.done == [1, 4]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RunFailed("decoder: step 3 of 10: values are not finite"), 500, "decoder: step 3"),
        (NoMemory("no memory"), 503, "no memory"),
        (RequestError("images: picture 1 was withheld"), 422, "picture 1 was withheld"),
        (ZeroDivisionError("a mistake of ours"), 500, "the server failed"),
    ],
)
def test_a_job_that_fails_says_why_with_the_status_of_its_error(
    house: House, error: Exception, status: int, message: str
) -> None:
    async def main() -> None:
        brush = opened()
        brush.errors = [error]
        async with house.open(brush) as jobs:
            seen = await ended(jobs, await made(jobs))
            assert seen.record.state == "FAILED"
            assert seen.record.failure is not None
            assert seen.record.failure.status == status
            assert message in seen.record.failure.message
            assert (await ended(jobs, await made(jobs))).record.state == "COMPLETED"

    asyncio.run(main())


def test_what_cannot_be_made_is_refused_at_once_and_leaves_nothing(house: House) -> None:
    async def main() -> None:
        async with house.open(opened()) as jobs:
            with pytest.raises(RequestError, match="image_size"):
                await made(jobs, image_size={"width": 1000, "height": 1024})
            assert jobs.files.ids() == []

    asyncio.run(main())


def test_a_job_can_be_cancelled_in_line_and_while_it_is_painted(house: House) -> None:
    async def main() -> None:
        brush = Brush()
        async with house.open(brush) as jobs:
            first, second, third = [await made(jobs, seed) for seed in (1, 2, 3)]
            await until(lambda: brush.begun == [1])
            waiting = await jobs.cancel(second, ADA)
            painting = await jobs.cancel(first, ADA)
            assert waiting is not None
            assert painting is not None
            assert (waiting.record.state, painting.record.state) == ("CANCELLED", "CANCELLED")
            assert brush.cancelled == [1]
            brush.gate.set()
            assert (await ended(jobs, third)).record.state == "COMPLETED"
            assert brush.begun == [1, 3]
            again = await jobs.cancel(third, ADA)
            assert again is not None
            assert again.record.state == "COMPLETED"

    asyncio.run(main())


def test_a_visitor_sees_their_own_jobs_alone(house: House) -> None:
    async def main() -> None:
        async with house.open(opened()) as jobs:
            ids = []
            for seed in (1, 2):
                ids.append(await made(jobs, seed))
                house.clock.time += 1  # type: ignore[attr-defined]
            eve = visitor("eve")
            assert await jobs.sight(ids[0], eve) is None
            assert await jobs.cancel(ids[0], eve) is None
            assert await jobs.listed(eve) == []
            assert [each async for each in jobs.follow(ids[0], eve)] == []
            assert [each.record.id for each in await jobs.listed(ADA)] == ids[::-1]

    asyncio.run(main())


@pytest.mark.parametrize("id", ["../jobs", "..", "", "0" * 32, "owners", "0" * 31 + "/", "\0" * 32])
def test_an_id_that_is_none_finds_nothing(house: House, id: str) -> None:
    async def main() -> None:
        async with house.open(opened()) as jobs:
            assert await jobs.sight(id, ADA) is None
            assert await jobs.cancel(id, ADA) is None

    asyncio.run(main())


def test_a_follower_sees_the_states_in_order_and_a_late_one_the_end(house: House) -> None:
    async def main() -> None:
        brush = Brush()
        async with house.open(brush) as jobs:
            first = await made(jobs, 1)
            second = await made(jobs, 2)
            seen: list[Sight] = []

            async def follow() -> None:
                async for each in jobs.follow(second, ADA):
                    assert each is not None
                    seen.append(each)

            following = asyncio.create_task(follow())
            await until(lambda: len(seen) > 0)
            brush.gate.set()
            await following
            states = [each.record.state for each in seen]
            assert states == sorted(states, key=["IN_QUEUE", "IN_PROGRESS", "COMPLETED"].index)
            assert states[0] == "IN_QUEUE"
            assert states[-1] == "COMPLETED"
            shares = [each.share for each in seen]
            assert shares == sorted(shares)
            late = [each async for each in jobs.follow(first, ADA)]
            assert [each and each.record.state for each in late] == ["COMPLETED"]

    asyncio.run(main())


def test_a_job_and_its_pictures_are_removed_when_their_time_is_over(house: House, clock: Clock) -> None:
    async def main() -> None:
        async with house.open(opened()) as jobs:
            id = await made(jobs)
            seen = await ended(jobs, id)
            (name,) = seen.record.images
            clock.time += 98
            assert await state_of(jobs, id) == "COMPLETED"
            clock.time += 2
            assert await state_of(jobs, id) == "none"
            assert await jobs.listed(ADA) == []
            await jobs.care.sweep()
            assert jobs.files.ids() == []
            assert not (house.run / "results" / name).exists()

    asyncio.run(main())


def test_what_lies_on_disk_is_for_its_owner_alone_and_says_the_fixed_seed(house: House) -> None:
    async def main() -> str:
        async with house.open(opened()) as jobs:
            id = await made(jobs, None)
            await ended(jobs, id)
            return id

    id = asyncio.run(main())
    folder = house.run / "jobs" / id
    assert {path.name for path in folder.iterdir()} == {"job.json", "request.json", "result.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    seed = json.loads((folder / "request.json").read_text())["seed"]
    assert json.loads((folder / "result.json").read_text())["seed"] == seed


def test_a_server_that_dies_leaves_its_jobs_to_the_next_which_paints_the_same_pictures(
    house: House, clock: Clock
) -> None:
    async def undisturbed() -> list[list[bytes]]:
        async with House(house.run / "other", clock).open(opened()) as jobs:
            ids = [await made(jobs, seed) for seed in (1, 2)]
            return [await pictures_of(jobs, (await ended(jobs, id)).record.id) for id in ids]

    async def killed() -> list[str]:
        brush = Brush()
        jobs = house.jobs(brush)
        await jobs.start()
        ids = [await made(jobs, seed) for seed in (1, 2)]
        await until(lambda: brush.begun == [1])
        return ids  # without stop: the loop cancels all tasks, and nothing more is written

    async def next_one(ids: list[str]) -> list[list[bytes]]:
        brush = opened()
        async with house.open(brush) as jobs:
            assert [await state_of(jobs, id) for id in ids] == ["IN_PROGRESS", "IN_QUEUE"]
            assert brush.begun == []  # the other may still be alive
            clock.time += 11
            found = [await ended(jobs, id) for id in ids]
            assert [each.record.attempts for each in found] == [2, 1]
            return [await pictures_of(jobs, id) for id in ids]

    assert asyncio.run(next_one(asyncio.run(killed()))) == asyncio.run(undisturbed())


def test_the_cascade_itself_paints_the_same_pictures_after_a_server_died(
    house: House, clock: Clock, service: Any, part: ModelPart, small: DefaultsPart
) -> None:
    house.recipe = ServeRecipe(run=str(house.run), model=part, defaults=small)

    async def killed() -> str:
        jobs = house.jobs(service)
        await jobs.start()
        id = await made(jobs)
        async for seen in jobs.follow(id, ADA):
            if seen and seen.progress:
                return id
        raise AssertionError("it was done before a step was seen")

    async def painted(id: str | None) -> list[bytes]:
        async with house.open(service) as jobs:
            clock.time += 11
            id = id or await made(jobs)
            seen = await ended(jobs, id)
            assert seen.record.state == "COMPLETED"
            return await pictures_of(jobs, id)

    again, undisturbed = asyncio.run(painted(asyncio.run(killed()))), asyncio.run(painted(None))
    assert len(again) == 1
    assert again == undisturbed


def test_a_server_that_is_killed_loses_no_job(house: House, clock: Clock) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from tests.serve.brush import Brush, Clock, House, asked, visitor

async def main():
    jobs = House(Path({str(house.run)!r}), Clock()).jobs(Brush())
    await jobs.start()
    made = [(await jobs.create(asked(seed), visitor(), base_url="")).record.id for seed in (1, 2)]
    await asyncio.sleep(0.2)
    print(*made, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=TOP)
    try:
        assert server.stdout is not None
        ids = server.stdout.readline().split()
    finally:
        server.kill()
        server.communicate()

    async def next_one() -> None:
        async with house.open(opened()) as jobs:
            clock.time += 3600  # the two clocks do not agree
            for id in ids:
                assert len(await pictures_of(jobs, (await ended(jobs, id)).record.id)) == 1

    assert len(ids) == 2
    asyncio.run(next_one())


def test_a_server_that_stops_leaves_its_jobs_to_one_that_starts_at_once(house: House) -> None:
    async def main() -> None:
        brush, after = Brush(), opened()
        async with house.open(brush) as jobs:
            ids = [await made(jobs, seed) for seed in (1, 2)]
            await until(lambda: brush.begun == [1])
        assert brush.cancelled == [1]
        states = [jobs.files.record(id) for id in ids]
        assert [each and each.state for each in states] == ["IN_QUEUE", "IN_QUEUE"]
        async with house.open(after) as jobs:
            found = [await ended(jobs, id) for id in ids]
            assert [each.record.attempts for each in found] == [1, 1]
        assert after.done == [1, 2]

    asyncio.run(main())


def test_a_job_under_which_servers_die_is_given_up_after_three_times(house: House, clock: Clock) -> None:
    async def killed(id: str | None) -> str:
        brush = Brush()
        jobs = house.jobs(brush)
        await jobs.start()
        id = id or await made(jobs)
        await until(lambda: brush.begun == [7])
        return id

    id = None
    for _ in range(3):
        id = asyncio.run(killed(id))
        clock.time += 11

    async def last(id: str) -> None:
        brush = opened()
        async with house.open(brush) as jobs:
            seen = await ended(jobs, id)
            assert seen.record.failure is not None
            assert "the server ended 3 times" in seen.record.failure.message
            assert brush.begun == []

    asyncio.run(last(id or ""))


def test_two_servers_that_start_at_once_share_out_what_a_dead_one_left(house: House, clock: Clock) -> None:
    async def killed() -> list[str]:
        jobs = house.jobs(Brush())
        await jobs.start()
        return [await made(jobs, seed) for seed in range(8)]

    async def main(ids: list[str]) -> None:
        brushes = [opened(), opened()]
        clock.time += 11
        async with house.open(brushes[0]) as one, house.open(brushes[1]) as two:
            await asyncio.gather(one.care.adopt(), two.care.adopt())
            for id in ids:
                await ended(one, id)
        assert sorted(brushes[0].done + brushes[1].done) == list(range(8))

    asyncio.run(main(asyncio.run(killed())))


def test_a_server_that_was_only_slow_lets_go_of_what_another_has_taken_over(house: House, clock: Clock) -> None:
    async def main() -> None:
        slow, other = Brush(), opened()
        async with house.open(slow) as one:
            id = await made(one)
            await until(lambda: slow.begun == [7])
            os.utime(house.run / "jobs" / "owners" / one.keeper.owner, (0, 0))
            async with house.open(other) as two:
                seen = await ended(two, id)
                assert seen.record.owner == two.keeper.owner
                pictures = await pictures_of(two, id)
                slow.gate.set()  # if it was not stopped by now, it finishes too
                await until(lambda: not one.keeper.running)
                assert await ended(one, id) == seen
                assert await pictures_of(one, id) == pictures
                assert len(list((house.run / "results").iterdir())) == 1

    asyncio.run(main())


def test_a_job_of_another_server_is_seen_followed_and_cancelled(house: House) -> None:
    async def main() -> None:
        brush = Brush()
        async with house.open(brush) as one, house.open(Brush()) as two:
            first, second = [await made(one, seed) for seed in (1, 2)]
            await until(lambda: brush.begun == [1])
            waiting = await two.sight(second, ADA)
            assert waiting is not None
            assert waiting.position == 0
            follower = two.follow(first, ADA)
            async for seen in follower:
                if seen and seen.progress:
                    assert seen.progress.preview == b"a small jpeg"
                    break
            await follower.aclose()  # type: ignore[attr-defined]
            for id in (second, first):
                await two.cancel(id, ADA)
                assert (await ended(one, id)).record.state == "CANCELLED"
                assert await state_of(two, id) == "CANCELLED"
            assert brush.cancelled == [1]

    asyncio.run(main())


def test_a_full_disk_fails_the_job_in_words_and_the_server_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from sote.serve import disk

    write = disk.write

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    async def main() -> None:
        async with house.open(opened()) as jobs:
            monkeypatch.setattr(disk, "write", full)
            seen = await ended(jobs, await made(jobs))
            assert seen.record.failure is not None
            assert seen.record.failure.status == 503
            assert "disk is full" in seen.record.failure.message
            assert (await ended(jobs, await made(jobs, sync_mode=True))).record.state == "COMPLETED"

    asyncio.run(main())


def test_the_end_of_a_job_that_the_disk_does_not_take_is_kept_and_saved_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from sote.serve import disk

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        brush = Brush()
        async with house.open(brush) as jobs:
            id = await made(jobs)
            await until(lambda: brush.begun == [7])
            with monkeypatch.context() as patched:
                patched.setattr(disk, "write", full)
                brush.gate.set()
                seen = await ended(jobs, id)
                assert seen.record.failure is not None
                assert seen.record.failure.status == 503
            await jobs.care.sweep()
            saved = jobs.files.record(id)
            assert saved is not None
            assert saved.state == "FAILED"
            assert jobs.keeper.live == {}

    asyncio.run(main())


def test_a_removed_job_is_gone_with_its_pictures(house: House) -> None:
    async def main() -> None:
        async with house.open(opened()) as jobs:
            id = await made(jobs)
            seen = await ended(jobs, id)
            await jobs.remove(seen.record)
            assert await jobs.sight(id, ADA) is None
            assert list((house.run / "results").iterdir()) == []

    asyncio.run(main())


def test_a_lost_model_is_tried_again_and_then_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RayError

    from sote.serve import jobkeeper

    monkeypatch.setattr(jobkeeper, "LOST_HOLD", 0.0)

    async def main() -> None:
        brush = opened()
        brush.errors = [RayError("lost") for _ in range(4)]
        async with house.open(brush) as jobs:
            seen = await ended(jobs, await made(jobs))
            assert seen.record.failure is not None
            assert seen.record.failure.status == 503
            assert brush.begun == [7, 7, 7]

    asyncio.run(main())


def test_a_broken_file_of_a_job_harms_no_other(house: House) -> None:
    async def main() -> None:
        async with house.open(opened()) as jobs:
            broken, whole = await made(jobs, 1), await made(jobs, 2)
            await ended(jobs, broken)
            await ended(jobs, whole)
            (house.run / "jobs" / broken / "job.json").write_text("{")
            assert await jobs.sight(broken, ADA) is None
            assert [each.record.id for each in await jobs.listed(ADA)][:1] == [whole]

    asyncio.run(main())


def test_stopping_twice_or_starting_again_in_another_loop_is_no_trouble(house: House) -> None:
    brush = Brush()
    jobs = house.jobs(brush)

    async def first() -> str:
        await jobs.start()
        id = await made(jobs)
        await until(lambda: brush.begun == [7])
        for _ in range(2):
            await jobs.stop()
        with pytest.raises(Busy, match="ending"):
            await made(jobs)
        return id

    async def second(id: str) -> None:
        brush.gate = asyncio.Event()
        brush.gate.set()
        await jobs.start()
        assert (await ended(jobs, id)).record.state == "COMPLETED"
        await jobs.stop()

    asyncio.run(second(asyncio.run(first())))
