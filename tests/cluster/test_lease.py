"""The lock of a run folder at a URI, against a real S3 server."""

import json
import subprocess
import sys
import time

import pytest

from sote.cluster import lease, remote, store
from sote.cluster.errors import RunFailed, RunFolderError
from tests.stores import Store

IN_USE = r"/run: run: another `sote curate` is writing to it; wait for that one or stop it$"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS", 1.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.1)


def elsewhere(s3: Store) -> str:
    """Put the lease of a process on another machine there, which says no more; its place."""
    place = f"{s3.uri}/run/.curate.lock/000004"
    store.put(place, json.dumps({"host": "other", "machine": "other", "pid": 1, "since": "1"}).encode())
    return place


def test_of_two_commands_the_second_is_told_and_another_verb_is_not(s3: Store) -> None:
    with lease.held(f"{s3.uri}/run", verb="curate"):
        with pytest.raises(RunFolderError, match=IN_USE), lease.held(f"{s3.uri}/run", verb="curate"):
            pytest.fail("both hold it")
        with lease.held(f"{s3.uri}/run", verb="train"):
            assert len(s3.files()) == 2
    assert s3.files() == {}
    with lease.held(f"{s3.uri}/run", verb="curate"):
        assert len(s3.files()) == 1


def test_a_lease_outlives_its_time_while_its_holder_lives(s3: Store) -> None:
    with lease.held(f"{s3.uri}/run", verb="curate") as mine:
        time.sleep(1.5)
        mine.check()
        assert mine.count >= 2


def test_the_lease_of_a_killed_process_of_this_machine_is_taken_at_once(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SECONDS", 10_000.0)  # nobody waits for that
    code = "import os, sys; from sote.cluster import lease; lease._taken(sys.argv[1], verb='curate'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, f"{s3.uri}/run"], check=False)
    assert list(s3.files()) == ["run/.curate.lock/000001"]
    with lease.held(f"{s3.uri}/run", verb="curate") as mine:
        assert mine.number == 2
        assert list(s3.files()) == ["run/.curate.lock/000002"]


def test_a_lease_of_another_machine_is_left_behind_when_it_stays_the_same(s3: Store) -> None:
    elsewhere(s3)
    began = time.monotonic()
    with lease.held(f"{s3.uri}/run", verb="curate") as mine:
        assert (mine.number, time.monotonic() - began >= lease.SECONDS) == (5, True)


def test_a_lease_of_another_machine_that_changes_is_alive(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_machine", lambda: None)  # none can be told from another
    second = lease.held(f"{s3.uri}/run", verb="curate")
    with lease.held(f"{s3.uri}/run", verb="curate"), pytest.raises(RunFolderError, match=IN_USE), second:
        pytest.fail("both hold it")


def test_a_lease_that_was_taken_ends_the_run_and_its_writes(s3: Store) -> None:
    root = remote.place(f"{s3.uri}/run")
    with (
        pytest.raises(RunFailed, match=r"/run: run: another `sote curate` has taken it"),
        lease.held(f"{s3.uri}/run", verb="curate") as mine,
        remote.holding(root, mine.check),
    ):
        remote.put(root / "before", b"")
        elsewhere(s3)
        with pytest.raises(KeyboardInterrupt):  # what waits for Ray is interrupted
            time.sleep(30)
        with pytest.raises(RunFailed):
            remote.put(root / "after", b"")
        raise KeyboardInterrupt
    assert sorted(s3.files()) == ["run/.curate.lock/000001", "run/.curate.lock/000004", "run/before"]


def test_the_users_own_interrupt_stays_one(s3: Store) -> None:
    with pytest.raises(KeyboardInterrupt), lease.held(f"{s3.uri}/run", verb="curate"):
        raise KeyboardInterrupt
    assert s3.files() == {}
