"""What many tests stand on: one demo, one local Ray, one set of stand-in models."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


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
    """The stand-in models of curation and of training in one folder."""
    from sote.data import standins as data_standins
    from sote.train import standins as train_standins

    folder = tmp_path_factory.mktemp("models")
    data_standins.make(folder)
    train_standins.make(folder)
    return folder


@dataclass(frozen=True)
class Demo:
    """How `sote demo` ended, and its run folder."""

    run: Path
    exit_code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """One demo as its user runs it. It takes minutes, so every test that needs a whole run looks at this one."""
    run = tmp_path_factory.mktemp("river") / "demo"
    command = [sys.executable, "-m", "sote.cluster.cli", "demo", "--out", str(run)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    return Demo(run, ended.returncode, ended.stdout, ended.stderr)
