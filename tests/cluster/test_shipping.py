import subprocess
import sys
import tomllib
from pathlib import Path

from sote.cluster import shipping

TOP = Path(__file__).resolve().parent.parent.parent


def test_every_module_and_every_file_beside_one_travels_but_the_models(tmp_path: Path) -> None:
    shipping.pack(tmp_path, recipe="run = 'r'\n", code=shipping.checkout())
    shipped = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    modules = {
        f"sote/{path.relative_to(TOP)}"
        for name in ("cluster", "data", "train", "serve")
        for path in (TOP / name).rglob("*.py")
    }
    assert modules <= shipped
    settings = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]
    beside = set()
    for package, patterns in settings["package-data"].items():
        folder = TOP / package.removeprefix("sote.")
        for pattern in patterns:
            found = {path for path in folder.glob(pattern) if path.is_file()}
            assert found, f"{package}: {pattern} fits nothing"
            beside |= {f"sote/{path.relative_to(TOP)}" for path in found}
    models = {name for name in beside if name.endswith((".safetensors", ".onnx"))}
    assert len(models) > 5
    beside -= models
    assert shipped - modules - beside == {"sote/__init__.py", "pyproject.toml", "recipe.toml"}
    assert beside <= shipped


def test_no_link_travels_and_the_whole_is_small(tmp_path: Path) -> None:
    shipping.pack(tmp_path, recipe=None, code=TOP)
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 8 << 20


def test_what_travels_is_what_a_job_imports(tmp_path: Path) -> None:
    shipping.pack(tmp_path, recipe=None, code=TOP)
    words = "import sote.cluster.cli, sote.data.recipe, sote.train.recipe, sote.serve.recipe as r; print(r.__file__)"
    ended = subprocess.run(
        [sys.executable, "-c", words], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert ended.stdout.strip() == str(tmp_path / "sote" / "serve" / "recipe.py"), ended.stderr


def test_an_installed_wheel_ships_no_code(tmp_path: Path) -> None:
    assert shipping.checkout(tmp_path) is None
    (tmp_path / "pyproject.toml").touch()
    assert shipping.checkout(tmp_path) is None
    assert shipping.checkout() == TOP


def test_the_recipe_travels_alone_with_a_wheel(tmp_path: Path) -> None:
    shipping.pack(tmp_path, recipe="run = 'r'\n", code=None)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
