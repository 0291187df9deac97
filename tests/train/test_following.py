"""The driver's bar follows metrics.jsonl."""

from pathlib import Path

import pytest

from sote.cluster.logs import Metrics, Reasons
from sote.train.following import Follower


class Bar:
    """Takes down what a progress bar is told."""

    def __init__(self) -> None:
        self.done, self.note = 0, ""
        self.reasons: dict[str, int] = {}

    def __call__(self, count: int, reasons: Reasons | None = None, *, note: str = "") -> None:
        self.done += count
        self.note = note
        self.reasons |= reasons or {}


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return Metrics(tmp_path / "metrics.jsonl")


def test_only_what_is_new_is_shown_and_steps_made_again_count_once(metrics: Metrics) -> None:
    bar = Bar()
    metrics.write(kind="step", step=4, loss=9.0)
    follower = Follower(metrics.path, done=4)
    for step in (5, 6):
        metrics.write(kind="step", step=step, loss=0.5, images_per_second=3.2)
    follower.look(bar)
    assert (bar.done, bar.note) == (2, "loss 0.5000, 3.2 images/s")
    for step in (5, 6, 7):
        metrics.write(kind="step", step=step, loss=0.5, images_per_second=3.2)
    follower.look(bar)
    assert (bar.done, follower.last) == (3, 7)


def test_a_skipped_step_is_a_line_with_its_reason_and_images(
    metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    bar, follower = Bar(), Follower(metrics.path, done=0)
    metrics.write(kind="step", step=1, loss=0.5)
    metrics.write(kind="step", step=2, loss=None, skipped="loss: not finite", skipped_ids=["ab" * 32])
    metrics.write(kind="step", step=3, loss=0.5)
    follower.look(bar)
    assert bar.reasons == {"loss: not finite": 1}
    assert bar.note == "loss 0.5000"
    assert "step 2 skipped: loss: not finite (images ababababab)" in capsys.readouterr().err


def test_it_knows_what_is_saved_and_says_when_the_workers_start_again(
    metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    bar, follower = Bar(), Follower(metrics.path, done=0)
    metrics.write(kind="start", workers=2, resumed_from=None)
    for step in range(1, 6):
        metrics.write(kind="step", step=step, loss=0.5)
    metrics.write(kind="checkpoint", step=4, seconds=0.1, bytes=1)
    follower.look(bar)
    assert (follower.starts, follower.last, follower.saved) == (1, 5, 4)
    assert not capsys.readouterr().err
    metrics.write(kind="start", workers=1, resumed_from=4)
    follower.look(bar)
    assert (follower.last, follower.saved) == (4, 4)
    assert "workers started again: 1 worker, from step 4" in capsys.readouterr().err


def test_a_line_that_is_half_written_is_read_when_it_is_whole(metrics: Metrics) -> None:
    bar, follower = Bar(), Follower(metrics.path, done=0)
    with metrics.path.open("a") as file:
        file.write('{"kind": "step", "st')
        file.flush()
        follower.look(bar)
        assert bar.done == 0
        file.write('ep": 1, "loss": 0.5}\n')
    follower.look(bar)
    assert bar.done == 1


def test_snapshots_are_handed_on(metrics: Metrics) -> None:
    follower = Follower(metrics.path, done=0)
    metrics.write(kind="snapshot", step=2, folder="/run/.snapshots/step-2")
    assert [line["step"] for line in follower.look(Bar())] == [2]
