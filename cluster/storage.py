"""Writing that survives a kill at any moment, and the layout of the run folder.

Every write is: temporary name in the same folder, flush, fsync, rename. A shard counts only with its marker
`<file>.done`, which is written after the file. `RunFolder` names every place in a run folder (the contract's layout).

Kind: pure, but for files.
"""

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sote.cluster import logs
from sote.cluster import recipe as recipes
from sote.cluster.errors import RunFolderError
from sote.cluster.jsonlines import Who

PACKAGES = ("sote", "ray", "torch", "diffusers", "transformers", "deepspeed", "onnxruntime-gpu", "open_clip_torch")
# What the demo puts into its run folder before the first run
BEFORE_A_RUN = {"weights", "weights.done", "pictures", "pictures.done", "recipes"}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it is flushed to disk and renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_table(path: Path, table: pa.Table) -> None:
    """Write `table` as Parquet to `path`, whole or not at all. The same table gives the same bytes."""
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def commit(path: Path, **facts: Any) -> None:
    """Write the marker of `path`: from now on the file counts. `facts` (JSON values) are kept in the marker."""
    write_text(marker(path), json.dumps(facts, sort_keys=True) + "\n")


def committed(path: Path) -> dict[str, Any] | None:
    """The facts in the marker of `path`, or None if the file does not count (no marker, or no file)."""
    try:
        facts = json.loads(marker(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return dict(facts) if path.exists() else None


def marker(path: Path) -> Path:
    """The commit marker that belongs to the file `path`."""
    return path.with_name(path.name + ".done")


def once(folder: Path, make: Callable[[Path], object]) -> None:
    """Let `make` fill a folder that is not whole yet; a kill in between leaves no marker, and it is made again."""
    if committed(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
        commit(folder)


@dataclass(frozen=True)
class RunFolder:
    """The places in one run folder. Nothing is made before it is written."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def catalogue(self) -> Path:
        return self.root / "catalogue.parquet"

    @property
    def latents(self) -> Path:
        return self.root / "latents"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def images(self) -> Path:
        return self.root / "images"

    def export(self, form: str) -> Path:
        """Where the export of the format `form` (diffusers, comfyui, unet) lies."""
        return self.root / "export" / form

    def rows(self, stage: str, shard: int) -> Path:
        """The rows of one shard as the stage `stage` wrote them."""
        return self.root / "rows" / stage / f"{shard:05d}.parquet"

    def recipe(self, verb: str) -> Path:
        """The resolved recipe of `verb`: `recipe.toml`, or `recipe.<verb>.toml` if another verb made the folder."""
        first = self.root / "recipe.toml"
        owner = _verbs(self.record)
        return first if not owner or owner[0] == verb else self.root / f"recipe.{verb}.toml"


@contextlib.contextmanager
def open_run(
    recipe: recipes.Recipe, *, verb: str, command: str, may_differ: Collection[str] = ()
) -> Iterator[RunFolder]:
    """Take the run folder of `recipe` for the verb `verb` and record the run in it; the folder is made if need be.

    The resolved recipe and the record are written first. If the folder already holds a run of the verb, this continues
    it: its recipe must be equal but for the top-level tables in `may_differ`. One process at a time may hold a folder
    for one verb. The exit code and the end are written to the record in any case that Python survives.

    Raises RunFolderError: another recipe's folder, a folder that is no run folder, or one that is in use.
    """
    folder = RunFolder(Path(recipe.run))
    refuse_foreign(folder)
    _refuse_other(folder, recipe, verb, may_differ)
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder.root}: run: cannot be made ({error.strerror}); name another one") from None
    with _held(folder.root / f".{verb}.lock", verb):
        _sweep(folder)
        record = _start(folder, recipe, verb, command)
        code = 1
        try:
            who = Who.here(run=folder.root.name, verb=verb, digest=record["digest"])
            with logs.events(folder.events, who):
                yield folder
            code = 0
        except BaseException as error:
            code = int(getattr(error, "exit_code", 1))
            raise
        finally:
            _finish(folder, verb, record, code)


def refuse_foreign(folder: RunFolder) -> None:
    """Raise RunFolderError for a file, or for a folder that holds other things than a run."""
    if folder.root.is_file():
        raise RunFolderError(f"{folder.root}: run: is a file; name a folder")
    if not folder.root.is_dir() or folder.record.exists():
        return
    foreign = sorted(path.name for path in folder.root.iterdir() if path.name not in BEFORE_A_RUN)
    if [name for name in foreign if not name.startswith(".")]:
        raise RunFolderError(
            f"{folder.root}: run: holds {foreign[0]!r} and no run.json, so it is not a run folder; name a new one"
        )


def same_code() -> dict[str, str]:
    """Commit (where the code lies in a git checkout) and versions of the packages that results depend on."""
    found = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    found["python"] = platform.python_version()
    return found


def _refuse_other(folder: RunFolder, recipe: recipes.Recipe, verb: str, may_differ: Collection[str]) -> None:
    path = folder.recipe(verb)
    if not path.exists() or verb not in _verbs(folder.record):
        return
    there = tomllib.loads(path.read_text(encoding="utf-8"))
    here = tomllib.loads(recipes.dumps(recipe))
    for name in may_differ:
        there.pop(name, None)
        here.pop(name, None)
    there.pop("run", None)
    here.pop("run", None)
    if found := recipes.difference(there, here):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise RunFolderError(
            f"{folder.root}: run: holds a run of another recipe: {found[0]}{more}; name another run folder"
        )


@contextlib.contextmanager
def _held(path: Path, verb: str) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{path.parent}: run: another `sote {verb}` is writing to it; wait for that one or stop it"
            ) from None
        yield


def _sweep(folder: RunFolder) -> None:
    """Take away the temporary files that killed processes left; those of living ones stay."""
    for pattern in (".*.tmp", "rows/*/.*.tmp", "latents/*/.*.tmp", "latents/vqgan/*/.*.tmp"):
        for path in folder.root.glob(pattern):
            if not Path(f"/proc/{path.name.split('.')[-2]}").exists():
                path.unlink(missing_ok=True)


def _start(folder: RunFolder, recipe: recipes.Recipe, verb: str, command: str) -> dict[str, Any]:
    record = json.loads(folder.record.read_text()) if folder.record.exists() else {"verbs": {}}
    before = record["verbs"].pop(verb, None)
    order = [verb, *record["verbs"]] if before and _verbs(folder.record)[0] == verb else [*record["verbs"], verb]
    mine = {
        "digest": recipes.digest(recipe),
        "commit": _commit(),
        "versions": same_code(),
        "command": command,
        "start": before["start"] if before else now(),
        "continued": before["continued"] + 1 if before else 0,
        "end": None,
        "exit_code": None,
    }
    verbs = record["verbs"] | {verb: mine}
    record = mine | {"verbs": {name: verbs[name] for name in order}}
    write_text(folder.record, json.dumps(record, indent=2) + "\n")
    write_text(folder.recipe(verb), recipes.dumps(recipe))
    return record


def _finish(folder: RunFolder, verb: str, started: dict[str, Any], code: int) -> None:
    record = json.loads(folder.record.read_text())
    mine = started["verbs"][verb] | {"end": now(), "exit_code": code}
    record = record | mine | {"verbs": record["verbs"] | {verb: mine}}
    write_text(folder.record, json.dumps(record, indent=2) + "\n")


def now() -> str:
    """The time as it stands in records: ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _verbs(record: Path) -> list[str]:
    if not record.exists():
        return []
    return list(json.loads(record.read_text(encoding="utf-8"))["verbs"])


def _commit() -> str | None:
    """The git commit of this code, with `+` if the tree has changes; None outside a checkout."""
    top = Path(__file__).resolve().parent.parent
    if not (top / ".git").exists():
        return None
    head = subprocess.run(["git", "-C", top, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "-C", top, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
