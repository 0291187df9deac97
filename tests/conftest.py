"""What many tests stand on: one demo, one local Ray, one set of stand-in models."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.stores import bucket, server  # noqa: F401  fixtures

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the commands that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # Ray's own ten seconds would be waited for


# Files that take a minute or more: they start Ray, DeepSpeed or a server of their own
SLOW = {
    *("test_app", "test_declared", "test_engine_deepspeed", "test_faults", "test_jobs", "test_launch"),
    *("test_nodes", "test_pipeline", "test_pipeline_faults"),
}
SLOWEST_SECONDS = 900  # of a test with the fixtures that are made for it, on a machine that does other things too
REST = 3  # the turn of what is quick

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sote(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the `sote` command in this process; gives its exit code and what it wrote to standard output and error."""
    from sote.cluster import cli

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sote", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    return run


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray for all tests that ask for it; verbs called inside use it."""
    from sote.cluster import session

    with session.connect():
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in models of training in one folder: prior/ and decoder/."""
    from sote.train import standins

    folder = tmp_path_factory.mktemp("models")
    standins.make(folder)
    return folder


@dataclass(frozen=True)
class Demo:
    """How `sote demo` ended, and its run folder."""

    run: Path
    exit_code: int
    out: str
    err: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which pytest-xdist deals files to its processes: one that makes the demo, those that start Ray or a
    server, others that look at the demo, and then what is quick, so that all end at about the same time."""
    for item in items:
        if _turn(item) < REST:
            item.add_marker(pytest.mark.timeout(SLOWEST_SECONDS))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.path.stem == "test_river":
        return 0
    return 1 if item.path.stem in SLOW else 2 if _needs_demo(item) else REST


def _needs_demo(item: pytest.Item) -> bool:
    return "demo" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """One demo as its user runs it, for all of pytest-xdist's processes. It takes minutes, so every test that needs a
    whole run looks at this one."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "river"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = folder / "ended.json"
        if not kept.exists():
            command = [sys.executable, "-m", "sote.cluster.cli", "demo", "--quick", "--out", str(folder / "demo")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SLOWEST_SECONDS, check=False)
            kept.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    return Demo(folder / "demo", *json.loads(kept.read_text()))
