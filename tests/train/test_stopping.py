"""Signals become a stop file, the stop file becomes a wish of the workers."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sote.cluster.errors import Interrupted, Stopped
from sote.cluster.storage import RunFolder
from sote.train import stopping
from sote.train.stopping import Stopping, Wishes


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def worker_process() -> Iterator[None]:
    """What a test does to the signals of a worker's process is undone."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    stopping._told.clear()


def test_sigterm_leaves_the_stop_file_and_a_second_one_changes_nothing(run: RunFolder) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopping(run) as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        assert stopping.file(run).exists()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not stopping.file(run).exists()
    ended = stop.ended(step=7, saved=7)
    assert (type(ended), ended.exit_code) == (Stopped, 143)
    assert str(ended) == "stopped at step 7, saved; the same command continues"


def test_a_second_ctrl_c_ends_at_once(run: RunFolder) -> None:
    with pytest.raises(KeyboardInterrupt), Stopping(run) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stopping.file(run).exists()
        signal.raise_signal(signal.SIGINT)
    ended = stop.ended(step=7, saved=4)
    assert (type(ended), ended.exit_code) == (Interrupted, 130)
    assert "step 7, saved up to step 4" in str(ended)
    assert "before the first step" in str(stop.ended(step=0, saved=0))


def test_a_stop_file_of_an_earlier_run_does_not_stop_this_one(run: RunFolder) -> None:
    stopping.file(run).parent.mkdir()
    stopping.file(run).touch()
    with Stopping(run) as stop:
        assert not stop.asked
        assert Wishes(run, rank=0, has_notices=False)(1) is None


def test_signals_are_taken_back_from_whoever_took_them(run: RunFolder) -> None:
    with Stopping(run) as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as ray.init does with a handler of its own
        stop.listen()
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked


def test_the_first_worker_looks_for_the_stop_file_for_all(run: RunFolder) -> None:
    first, second = (Wishes(run, rank=rank, has_notices=False) for rank in (0, 1))
    assert first(1) is None
    with Stopping(run):
        signal.raise_signal(signal.SIGTERM)
        assert first(2) == "stop"
        assert second(2) is None


def test_a_worker_that_is_told_to_end_wishes_a_stop_once_and_then_follows(run: RunFolder, worker_process: None) -> None:
    heard = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))  # as a Ray worker does
    stopping.follow_sigterm()
    wishes = Wishes(run, rank=1, has_notices=False)
    assert wishes(1) is None
    signal.raise_signal(signal.SIGTERM)
    assert wishes(2) == "stop"
    assert not heard
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
