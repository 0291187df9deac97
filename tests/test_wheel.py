"""The wheel holds what is tracked, and works without the checkout beside it."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import sote
from sote.serve import page
from tests.conftest import SLOWEST_SECONDS

TOP = Path(__file__).resolve().parent.parent
FOLDERS = ("cluster", "data", "train", "serve")
BUILT_FROM = (*FOLDERS, "sote", "pyproject.toml", "README.md", "LICENSE")
BIN = Path(sys.executable).parent
UV = shutil.which("uv", path=BIN)
INSTALL_SECONDS = 2400  # for 6 GB over a line of 20 Mbit/s

# Runs the command as the wheel's own `sote` does, and tells which files of the checkout were opened meanwhile
WATCHED = """
import json, sys
top, opened = sys.argv.pop(1), []
inside = lambda path: isinstance(path, str) and path.startswith(top + "/") and not path.startswith(sys.prefix)
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and inside(args[0]) else None)
import sote
from sote.cluster import cli
exec(sys.argv.pop(1))
code = 0
try:
    cli.main()
except SystemExit as ended:
    code = ended.code
print(json.dumps({"from": sote.__file__, "code": code, "opened": opened}), file=sys.stderr)
"""


def tracked() -> list[str]:
    listed = subprocess.run(["git", "-C", TOP, "ls-files", *BUILT_FROM], capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files: neither what lies about in the checkout nor an old build gets into the wheel."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TOP / name, source / name, follow_symlinks=False)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({os.fspath(out)!r}))"
    ended = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return out / ended.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(site: Path, folder: Path, *words: str) -> str:
    """What `sote words...` prints, run from the unpacked wheel in `folder`."""
    return watched(site, folder, "pass", *words).stdout


def watched(site: Path, folder: Path, before: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command after the statement `before`; fails if it fails, or opens a file of the checkout."""
    environment = os.environ | {"PYTHONPATH": os.fspath(site), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120"}
    command = [sys.executable, "-c", WATCHED, os.fspath(TOP), before, *words]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    said = json.loads(ended.stderr.splitlines()[-1])
    assert said["code"] in (0, None), ended.stderr
    assert said["from"] == os.fspath(site / "sote" / "__init__.py")
    assert said["opened"] == []
    return ended


def test_the_wheel_holds_every_tracked_file_of_the_four_folders_and_nothing_else(wheel: Path) -> None:
    expected = {f"sote/{name}" for name in tracked() if name.split("/")[0] in FOLDERS} | {"sote/__init__.py"}
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    assert {entry.filename for entry in entries if ".dist-info/" not in entry.filename} == expected
    assert not [entry.filename for entry in entries if stat.S_ISLNK(entry.external_attr >> 16)]


def test_the_version_is_said_once(wheel: Path, site: Path) -> None:
    assert wheel.name == f"sote-{sote.__version__}-py3-none-any.whl"
    assert f"\nVersion: {sote.__version__}\n" in (site / f"sote-{sote.__version__}.dist-info/METADATA").read_text()
    assert "version" not in tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert f"## {sote.__version__} - " in (TOP / "CHANGELOG.md").read_text()


def test_the_wheels_entry_point_is_the_command(site: Path) -> None:
    [said] = site.glob("sote-*.dist-info/entry_points.txt")
    assert said.read_text() == "[console_scripts]\nsote = sote.cluster.cli:main\n"


def test_a_wheel_alone_shows_help_checks_its_recipes_and_renders_a_cluster(site: Path, tmp_path: Path) -> None:
    assert "curate" in run(site, tmp_path, "--help")
    assert "Example: sote demo" in run(site, tmp_path, "demo", "--help")
    recipe = site / "sote" / "train" / "recipes" / "base.toml"
    assert 'run = "runs/base"' in run(site, tmp_path, "check", os.fspath(recipe))
    profile = site / "sote" / "cluster" / "deploy" / "profiles" / "kubernetes.toml"
    run(site, tmp_path, "cluster", "render", "--profile", os.fspath(profile), "--out", "deploy")
    assert f":{sote.__version__}" in "".join(path.read_text() for path in (tmp_path / "deploy").rglob("*.yaml"))


def test_a_wheel_alone_has_the_caption_profiles_the_page_and_the_demos_models(site: Path, tmp_path: Path) -> None:
    reads = (
        "from sote.data import caption_profile, recipe; from sote.serve import page; "
        "print(caption_profile.load_profile(recipe.CaptionPart().profile).groups[0], len(page.files()))"
    )
    ended = watched(site, tmp_path, f"cli.main = lambda: exec({reads!r})")
    assert ended.stdout == f"aesthetic {len(page.FILES)}\n"
    unpacks = "from sote.train import world_files; world_files.unpack(__import__('pathlib').Path('weights'))"
    watched(site, tmp_path, f"cli.main = lambda: exec({unpacks!r})")
    assert (tmp_path / "weights" / "prior").is_dir()


def done(*words: str | Path, cwd: Path) -> str:
    """What the command prints; fails with all that it said. It knows nothing of the environment of the tests."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = os.pathsep.join(each for each in os.get_exec_path() if Path(each) != BIN)
    ended = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture
def clean(tmp_path: Path) -> Iterator[Path]:
    """A new virtual environment with nothing in it, outside the checkout; removed at the end, for it grows to 6 GB."""
    folder = tmp_path / "clean"
    done(str(UV), "venv", "--quiet", "--no-project", "--python", sys.executable, folder, cwd=tmp_path)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SECONDS + SLOWEST_SECONDS)
@pytest.mark.skipif(UV is None, reason="no uv beside this Python; `make setup` puts it there")
def test_the_wheel_of_make_runs_the_demo_in_a_clean_environment(
    source: Path, wheel: Path, clean: Path, tmp_path: Path
) -> None:
    make = ("make", "-f", TOP / "Makefile", f"BIN={BIN}", f"READY={sys.executable}", "-o", sys.executable, "wheel")
    done(*make, cwd=source)
    (made,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(made) as archive, zipfile.ZipFile(wheel) as expected:
        assert sorted(archive.namelist()) == sorted(expected.namelist())
    done(str(UV), "pip", "install", "--quiet", "--python", clean / "bin" / "python", made, cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    said = done(clean / "bin" / "sote", "demo", "--out", "runs/demo", cwd=elsewhere)
    run = elsewhere / "runs" / "demo"
    assert "report.html" in said
    assert "</html>" in (run / "report.html").read_text()
    goals = json.loads((run / "adherence.json").read_text())["goals"]
    assert [goal["what"] for goal in goals if not goal["met"]] == []
    where = "import sote; print(sote.__file__)"
    assert done(clean / "bin" / "python", "-c", where, cwd=elsewhere).startswith(os.fspath(clean))
