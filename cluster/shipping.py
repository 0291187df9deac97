"""What travels with a job: the recipe always, the code where it is a git checkout's.

An installed wheel ships no code: the cluster's image has it. A checkout ships the modules of the package and what
pyproject.toml says lies beside them, as real files under `sote/`; nothing else of the folder ever leaves it. The small
world's models stay: only `sote demo` reads them, which runs where it is called.

Kind: pure, but for files.
"""

import shutil
import tomllib
from pathlib import Path
from typing import Final

from sote.cluster.submission import RECIPE

PYPROJECT: Final = "pyproject.toml"
STAYS: Final = (".safetensors", ".onnx")
TOP: Final = Path(__file__).resolve().parent.parent


def checkout(top: Path = TOP) -> Path | None:
    """The git checkout that this code runs from; None for an installed wheel."""
    return top if (top / ".git").exists() and (top / PYPROJECT).is_file() else None


def files(top: Path) -> dict[str, Path]:
    """What the package needs of the checkout `top`: the name in the shipped folder -> the file. Sorted by name."""
    settings = tomllib.loads((top / PYPROJECT).read_text(encoding="utf-8"))["tool"]["setuptools"]
    beside: dict[str, list[str]] = settings.get("package-data", {})
    found = {PYPROJECT: top / PYPROJECT}
    for package in settings["packages"]:
        folder = top.joinpath(*package.split("."))
        for pattern in ("*.py", *beside.get(package, ())):
            for path in folder.glob(pattern):
                if path.is_file() and path.suffix not in STAYS:
                    found[f"{package.replace('.', '/')}/{path.relative_to(folder)}"] = path
    return dict(sorted(found.items()))


def pack(folder: Path, *, recipe: str | None, code: Path | None) -> None:
    """Put into `folder` what travels: the text of the recipe, and the code of the checkout `code`."""
    if recipe is not None:
        (folder / RECIPE).write_text(recipe, encoding="utf-8")
    for name, path in files(code).items() if code is not None else ():
        there = folder / name
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
