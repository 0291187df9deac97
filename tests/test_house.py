"""The rules of the house: layers, kinds of module, names, the README's tree, help, one writer for each column."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sote.cluster import cli
from sote.data import pipeline, plan, schema

TOP = Path(__file__).resolve().parent.parent
LAYERS = ("cluster", "data", "train", "serve")
KINDS = ("pure", "actor", "wiring")
HEAVY = {"torch", "ray", "onnxruntime", "deepspeed", "transformers", "diffusers", "open_clip", "timm"}
MODULES = sorted(path for layer in LAYERS for path in (TOP / layer).rglob("*.py") if path.name != "__init__.py")
LONGEST_FILE = 400


def imports(path: Path, *, top_level: bool) -> Iterator[str]:
    """The modules that a file imports: all of them, or those that run when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def kind_of(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.rpartition("Kind: ")[2].strip(" .").split(",")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TOP)))
def test_a_module_imports_only_from_its_own_folder_and_those_to_its_left(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(TOP).parts[0])
    for name in imports(path, top_level=path.name in ("cli.py", "cli_demo.py")):
        assert name.split(".")[0] not in LAYERS, f"{name}: import it as sote.{name}"
        if name.startswith("sote.") and name.split(".")[1] in LAYERS:
            assert LAYERS.index(name.split(".")[1]) <= layer, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TOP)))
def test_a_module_says_its_kind_and_a_pure_one_imports_nothing_heavy(path: Path) -> None:
    kind = kind_of(path)
    assert kind in KINDS, f"the docstring must end with `Kind: {'|'.join(KINDS)}.`"
    if kind == "pure":
        assert not {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TOP)))
def test_a_module_is_short_and_has_no_name_of_the_standard_library(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    assert path.stem not in sys.stdlib_module_names
    assert path.stem not in {"utils", "common", "base", "helpers", "misc"}


def test_the_command_starts_without_torch_and_ray() -> None:
    code = f"import sys, sote.cluster.cli; print(sorted({HEAVY!r} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TOP)
    assert ended.stdout.strip() == "[]"


def verbs() -> list[str]:
    return list(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_help_with_a_runnable_example_and_stands_in_the_readme(verb: str) -> None:
    shown = CliRunner().invoke(cli.app, [verb, "--help"])
    assert shown.exit_code == 0
    assert f"Example: sote {verb}" in shown.output
    assert f"sote {verb}" in (TOP / "README.md").read_text(encoding="utf-8")


def test_every_column_has_one_writer_that_is_a_stage() -> None:
    names = [column.name for column in schema.COLUMNS]
    assert len(names) == len(set(names))
    stages = {stage.name for stage in pipeline.STAGES} | {"catalogue"}
    assert {column.stage for column in schema.COLUMNS} == stages


def test_the_plan_knows_the_stages_of_the_pipeline() -> None:
    assert tuple(stage.name for stage in pipeline.STAGES) == plan.STAGES


def tree_lines(text: str) -> Iterator[str]:
    """The paths of the README's tree: the block after the heading `## The tree`."""
    block = re.search(r"## The tree\n.*?```\n(.*?)```", text, re.DOTALL)
    assert block, "README has no tree"
    folder = ""
    for line in block.group(1).splitlines():
        name = line.split()[0]
        if name == "#":  # a heading among the files
            continue
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            if folder:
                continue
        yield (folder if line.startswith(" ") else "") + name


def tracked() -> list[str]:
    listed = subprocess.run(["git", "-C", TOP, "ls-files"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def test_the_readme_tree_is_the_real_tree() -> None:
    folders = (*LAYERS, "notebooks")
    real = {name for name in tracked() if name.split("/")[0] in folders and not name.endswith("__init__.py")}
    shown = list(tree_lines((TOP / "README.md").read_text(encoding="utf-8")))
    assert len(shown) == len(set(shown))
    assert {name for name in shown if name.split("/")[0] in folders} == real


def test_tests_lie_where_their_module_lies() -> None:
    for path in (TOP / "tests").rglob("test_*.py"):
        folder, about = path.parent.name, path.stem.removeprefix("test_")
        modules = [module.stem for module in MODULES if module.parent.name == folder]
        if folder in LAYERS:
            assert any(about == module or about.startswith(f"{module}_") for module in modules), path


def test_every_module_is_in_what_ray_ships_to_a_cluster(tmp_path: Path) -> None:
    from ray._private.runtime_env import packaging

    listing = tmp_path / "package.zip"
    packaging.create_package(str(TOP), listing, include_gitignore=True, excludes=[".git", ".venv"])
    import zipfile

    names = set(zipfile.ZipFile(listing).namelist())
    for path in MODULES:
        assert f"sote/{path.relative_to(TOP)}" in names, path


def test_no_tracked_file_names_this_machine_or_an_index_host() -> None:
    home = os.fspath(TOP.parent)
    for name in tracked():
        path = TOP / name
        if path.suffix in {".png", ".onnx", ".safetensors"} or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        assert f"{home}/" not in text or home == "/", name
        assert not re.search(r"--(extra-)?index[-]url", text), name
