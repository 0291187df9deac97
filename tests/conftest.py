"""What many tests stand on: one demo, one local Ray, one set of stand-in models."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.stores import bucket, server  # noqa: F401  fixtures

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # Ray's own ten seconds would be waited for


# Files that take a minute or more: they start Ray, DeepSpeed or a server of their own
SLOW = {
    *("test_app", "test_declared", "test_engine_deepspeed", "test_faults", "test_jobs", "test_launch"),
    *("test_nodes", "test_pipeline"),
}
SLOWEST_SECONDS = 900  # of a test with the fixtures that are made for it, on a machine that does other things too
REST = 2  # the turn of what is quick

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


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal whole files to the processes of pytest-xdist, and what shares a costly fixture as if it were one file.

    What looks at the demo comes first, then what starts Ray or a server by itself: whoever gets the rest ends in time.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
        if _turn(item) < REST:
            item.add_marker(pytest.mark.timeout(SLOWEST_SECONDS))
    items.sort(key=_turn)


def _group(item: pytest.Item) -> str:
    if _needs_demo(item):
        return "demo"
    return "ray" if "local_ray" in getattr(item, "fixturenames", ()) else str(item.path)


def _turn(item: pytest.Item) -> int:
    return 0 if _needs_demo(item) else 1 if item.path.stem in SLOW else REST


def _needs_demo(item: pytest.Item) -> bool:
    return "demo" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """One demo as its user runs it. It takes minutes, so every test that needs a whole run looks at this one."""
    run = tmp_path_factory.mktemp("river") / "demo"
    command = [sys.executable, "-m", "sote.cluster.cli", "demo", "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    return Demo(run, done.returncode, done.stdout, done.stderr)
