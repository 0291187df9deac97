"""The wheel holds what is tracked, and works without the checkout beside it."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import sote
from sote.serve import page

TOP = Path(__file__).resolve().parent.parent
FOLDERS = ("cluster", "data", "train", "serve")
BUILT_FROM = (*FOLDERS, "sote", "pyproject.toml", "README.md", "LICENSE")

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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files: neither what lies about in the checkout nor an old build gets into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TOP / name, source / name, follow_symlinks=False)
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


def test_a_wheel_alone_has_the_caption_profiles_and_the_page(site: Path, tmp_path: Path) -> None:
    reads = (
        "from sote.data import caption_profile, recipe; from sote.serve import page; "
        "print(caption_profile.load_profile(recipe.CaptionPart().profile).groups[0], len(page.files()))"
    )
    ended = watched(site, tmp_path, f"cli.main = lambda: exec({reads!r})")
    assert ended.stdout == f"aesthetic {len(page.FILES)}\n"
