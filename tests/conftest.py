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
    """Tests that look at the demo come last: it runs beside the others, and both cores are used."""
    items.sort(key=_needs_demo)


def _needs_demo(item: pytest.Item) -> bool:
    return "demo" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session", autouse=True)
def started_demo(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, "subprocess.Popen[str] | None"]]:
    """`sote demo`, started with the first test if any test will look at it."""
    folder = tmp_path_factory.mktemp("river")
    if not any(map(_needs_demo, request.session.items)):
        yield folder, None
        return
    command = [sys.executable, "-m", "sote.cluster.cli", "demo", "--out", str(folder / "demo")]
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        running = subprocess.Popen(command, stdout=out, stderr=err, text=True)
    yield folder, running
    if running.poll() is None:
        running.terminate()
        running.wait(timeout=60)


@pytest.fixture(scope="session")
def demo(started_demo: "tuple[Path, subprocess.Popen[str] | None]") -> Demo:
    """One demo as its user runs it. It takes minutes, so every test that needs a whole run looks at this one."""
    folder, running = started_demo
    assert running is not None
    code = running.wait(timeout=900)
    return Demo(folder / "demo", code, (folder / "out").read_text(), (folder / "err").read_text())
