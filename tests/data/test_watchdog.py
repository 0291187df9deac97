import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sote.cluster.errors import RunFailed
from sote.data.watchdog import TRIES, Patience, Watchdog
from sote.data.watchdog_process import Heard

# An actor's process: it calls for the seconds that it is told, then says so and waits for its end
ACTOR = """
import sys, time
from pathlib import Path
from sote.data.watchdog import Patience, Watchdog
watchdog = Watchdog(Patience("tag", float(sys.argv[2]), Path(sys.argv[1])))
for seconds in map(float, sys.argv[3:]):
    with watchdog.over(7, "rows 16 to 31", key="00007-16"):
        time.sleep(seconds)
    print("done", watchdog.watcher, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def actor(folder: Path, limit: float, *calls: float) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", ACTOR, str(folder), str(limit), *map(str, calls)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        yield started
        started.kill()


def notes(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in folder.glob("*.json")]


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def within(seconds: float, found: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not found() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_call_that_never_returns_ends_its_process_and_leaves_a_note_of_its_rows(tmp_path: Path) -> None:
    with actor(tmp_path, 1.5, 0.0, 600) as hung:
        assert hung.wait(timeout=60) == -signal.SIGKILL
    within(30, lambda: notes(tmp_path))
    (note,) = notes(tmp_path)
    assert (note["stage"], note["shard"], note["rows"], note["seconds"]) == ("tag", 7, "rows 16 to 31", 1.5)


def test_a_process_that_is_stopped_between_calls_is_ended_too(tmp_path: Path) -> None:
    with actor(tmp_path, 2.0, 0.0) as idle:
        assert idle.stdout is not None
        assert idle.stdout.readline().startswith("done")
        os.kill(idle.pid, signal.SIGSTOP)
        assert idle.wait(timeout=60) == -signal.SIGKILL


def test_calls_that_return_in_time_are_left_alone_and_the_watcher_ends_with_its_actor(tmp_path: Path) -> None:
    with actor(tmp_path, 2.0, *[0.5] * 8) as busy:  # longer than the limit all together
        assert busy.stdout is not None
        said = [busy.stdout.readline().split() for _ in range(8)]
        assert [words[0] for words in said] == ["done"] * 8
        watcher = int(said[-1][1])
        assert not has_ended(watcher)
    within(30, lambda: has_ended(watcher))
    assert has_ended(watcher)
    assert not notes(tmp_path)


def test_a_watcher_that_is_ended_is_started_again_at_the_next_word(tmp_path: Path) -> None:
    watchdog = Watchdog(Patience("tag", 600.0, tmp_path))
    first = watchdog.watcher
    os.kill(first, signal.SIGKILL)
    within(30, lambda: has_ended(first))
    with watchdog.over(0, "rows 0 to 15", key="00000-0"):
        assert watchdog.watcher != first
    watchdog.close()


def test_a_piece_that_hung_three_times_ends_the_run_with_its_shard_and_rows(tmp_path: Path) -> None:
    patience = Patience("tag", 5.0, tmp_path / "notes")
    patience.notes.mkdir(parents=True)
    for at in range(TRIES):
        (patience.notes / f"00007-16.host-{at}.json").write_text("{}")
    for key, is_refused in (("00007-1", False), ("00007-16", True)):
        watchdog = Watchdog(patience)
        if is_refused:
            with pytest.raises(RunFailed, match=r"hung 3 times, .* shard 7, rows 16 to 31"):
                watchdog.over(7, "rows 16 to 31", key=key).__enter__()
        else:
            with watchdog.over(7, "row 1", key=key):
                pass
        watchdog.close()


def test_pictures_that_are_read_one_by_one_have_each_their_own_time(tmp_path: Path) -> None:
    watchdog = Watchdog(Patience("text", 600.0, tmp_path))
    assert list(watchdog.each(iter("abc"), 3)) == ["a", "b", "c"]
    watchdog.close()


def test_what_an_actor_tells_may_come_in_pieces() -> None:
    heard = Heard(10.0, at=0.0)
    heard.take(b'{"shard": 1}\n"al', now=2.0)
    assert (heard.call, heard.due()) == ({"shard": 1}, 12.0)
    heard.take(b'ive"\n', now=5.0)
    assert heard.due() == 12.0
    heard.take(b"null\n", now=6.0)
    assert (heard.call, heard.due()) == (None, 16.0)
