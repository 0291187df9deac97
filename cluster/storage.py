"""Writing that survives a kill at any moment, and the layout of the run folder.

Every write is: temporary name in the same folder, flush, fsync, put at its URI if it has one (remote.py), rename. A
shard counts only with its marker `<file>.done`, which is written after the file. `RunFolder` names every place in a run
folder (the contract's layout); the way to a run folder is `open_run`, here or at a URI.

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

from sote.cluster import lease, logs, parts, remote, submission
from sote.cluster import recipe as recipes
from sote.cluster.errors import Denied, RunFolderError
from sote.cluster.jsonlines import Who

PACKAGES = ("sote", "ray", "torch", "diffusers", "transformers", "deepspeed", "onnxruntime-gpu", "open_clip_torch")
# What the demo puts into its run folder before the first run
BEFORE_A_RUN = {"weights", "weights.done", "pictures", "pictures.done", "recipes"}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it is flushed to disk and renamed to `path`.

    A path in the mirror is first brought to its URI: what cannot be put there is not here either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        remote.push(path, source=temporary)
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
    """The facts in the marker of `path`, or None if the file does not count (no marker, or no file).

    At a URI, as they are there; the process that holds the folder knows that without asking (`remote.known`).
    """
    try:
        facts = json.loads(remote.known(marker(path)).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return dict(facts) if remote.is_known(path) else None


def marker(path: Path) -> Path:
    """The commit marker that belongs to the file `path`."""
    return path.with_name(path.name + ".done")


def once(folder: Path, make: Callable[[Path], object]) -> None:
    """Let `make` fill a folder that is not whole yet; a kill in between leaves no marker, and it is made again."""
    if committed(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
        for path in remote.mirrored(folder):
            remote.push(path)
        commit(folder)


@dataclass(frozen=True)
class RunFolder:
    """The places in one run folder. Nothing is made before it is written. A process on another node gets one in its own
    mirror."""

    root: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return run_folder, (remote.named(self.root),)

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
        found = first if not owner or owner[0] == verb else self.root / f"recipe.{verb}.toml"
        with contextlib.suppress(FileNotFoundError):
            remote.fetch(found)
        return found


def run_folder(text: str) -> RunFolder:
    """The run folder at a path or URI. Raises UserError as `remote.place` does."""
    return RunFolder(remote.place(text))


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
    folder = run_folder(recipe.run)
    with contextlib.ExitStack() as stack:
        try:
            refuse_foreign(folder)
            _refuse_other(folder, recipe, verb, may_differ)
            folder.root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_held(folder, verb))
        except Denied as error:
            raise RunFolderError(f"run: {error}") from None
        except OSError as error:
            raise RunFolderError(f"{folder.root}: run: cannot be made ({error.strerror}); name another one") from None
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
    root, there = remote.named(folder.root), remote.names(folder.root)
    if folder.root.is_file() or (remote.uri(folder.root) is not None and not there and remote.exists(folder.root)):
        raise RunFolderError(f"{root}: run: is a file; name a folder")
    if folder.record.name in there:
        return
    foreign = [name for name in there if name not in BEFORE_A_RUN and not name.startswith(".")]
    if foreign:
        raise RunFolderError(
            f"{root}: run: holds {foreign[0]!r} and no run.json, so it is not a run folder; name a new one"
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
        root = remote.named(folder.root)
        raise RunFolderError(f"{root}: run: holds a run of another recipe: {found[0]}{more}; name another run folder")


@contextlib.contextmanager
def _held(folder: RunFolder, verb: str) -> Iterator[None]:
    """Hold a folder for a verb: by a lock here, by a lease at a URI, of which all markers are brought."""
    where = remote.uri(folder.root)
    if where is not None:
        with lease.held(where, verb=verb) as taken, remote.holding(folder.root, taken.check):
            remote.known_tree(folder.root, "**/*.done")
            yield
        return
    with (folder.root / f".{verb}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise lease.in_use(str(folder.root), verb) from None
        yield


def _sweep(folder: RunFolder) -> None:
    """Take away the temporary files that killed processes left; those of living ones stay."""
    patterns = (".*.tmp", "rows/*/.*.tmp", "latents/*/.*.tmp", "latents/vqgan/*/.*.tmp")
    for pattern in patterns if remote.uri(folder.root) is None else ("**/.*.tmp",):
        for path in folder.root.glob(pattern):
            if not Path(f"/proc/{path.name.split('.')[-2]}").exists():
                path.unlink(missing_ok=True)


def _start(folder: RunFolder, recipe: recipes.Recipe, verb: str, command: str) -> dict[str, Any]:
    record = _record(folder.record) or {"verbs": {}}
    before = record["verbs"].pop(verb, None)
    order = [verb, *record["verbs"]] if before and _verbs(folder.record)[0] == verb else [*record["verbs"], verb]
    mine = {
        "digest": recipes.digest(recipe),
        "commit": code_commit(),
        "versions": same_code(),
        "command": command,
        "job": submission.job_id(),
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
    record = _record(folder.record) or started
    mine = started["verbs"][verb] | {"end": now(), "exit_code": code}
    record = record | mine | {"verbs": record["verbs"] | {verb: mine}}
    write_text(folder.record, json.dumps(record, indent=2) + "\n")
    for path in (folder.metrics, folder.events):
        parts.merge(path)


def now() -> str:
    """The time as it stands in records: ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _verbs(record: Path) -> list[str]:
    found = _record(record)
    return list(found["verbs"]) if found else []


def _record(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(remote.fetch(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def code_commit() -> str | None:
    """The git commit of this code, with `+` if the tree has changes; None outside a checkout.

    The code that a job brought with it is of its submitter's commit.
    """
    job = submission.here()
    if job is not None and job.is_shipped:
        return job.commit or None
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
