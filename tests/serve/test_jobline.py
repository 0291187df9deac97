"""The line of jobs in memory, and how much of the work is done."""

import pytest

from sote.serve.jobfiles import Record
from sote.serve.jobline import Line, Live, Sight, seconds_left, share_of
from sote.serve.settings import Progress


def live(number: int, visitor: str = "ada") -> Live:
    return Live(Record(id=f"{number:032x}", visitor=visitor, created=float(number), base_url=""))


def test_one_that_comes_back_has_its_old_place() -> None:
    line, jobs = Line(), [live(number) for number in range(3)]
    for job in jobs:
        line.add(job)
    assert line.take(0) is jobs[0]
    assert [line.position(job) for job in jobs] == [None, 0, 1]
    line.add(jobs[0])
    assert [line.position(job) for job in jobs] == [0, 1, 2]


def test_a_visitor_who_was_told_to_wait_is_passed_over_until_then() -> None:
    line, first, second = Line(), live(1, "ada"), live(2, "eve")
    line.add(first)
    line.add(second)
    line.hold("ada", until=10)
    assert line.take(9) is second
    assert line.take(9) is None
    assert line.take(10) is first
    line.add(first)
    line.release("ada")
    assert line.take(9) is first


@pytest.mark.parametrize(
    ("progress", "share"),
    [
        (None, 0.0),
        (Progress("prior", 15, 30), 0.4),
        (Progress("prior", 30, 30), 0.8),
        (Progress("decoder", 5, 10), 0.9),
        (Progress("decoder", 10, 10), 1.0),
        (Progress("decoder", 0, 0), 0.8),
    ],
)
def test_the_share_of_the_work_goes_over_both_stages(progress: Progress | None, share: float) -> None:
    assert share_of(progress) == pytest.approx(share)


def test_what_is_left_is_guessed_from_what_it_took() -> None:
    record = live(1).record.model_copy(update={"state": "IN_PROGRESS", "started": 100.0})
    assert seconds_left(record, Progress("prior", 15, 30), now=104.0) == pytest.approx(6.0)
    assert seconds_left(record, Progress("prior", 0, 30), now=104.0) is None
    assert seconds_left(live(1).record, Progress("prior", 15, 30), now=104.0) is None


def test_a_failed_job_has_no_share_done() -> None:
    record = live(1).record.model_copy(update={"state": "FAILED"})
    assert Sight(record, progress=Progress("prior", 30, 30)).share == 0
