"""The weight files that a recipe names, seen from outside: which they are, their licence, their sha256.

Reads headers only, as the ingress does, which loads no torch; what the models in them are, load.py finds. The sha256 of
a file that this machine's cache of weights has is its name there; others are computed once, in a thread, and kept.

Kind: pure, but for files.
"""

import hashlib
import json
import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sote.cluster import bringing, remote, storage, weights
from sote.cluster.errors import WeightsError
from sote.cluster.storage import RunFolder
from sote.serve.recipe import ModelPart
from sote.train import folders, names
from sote.train.names import Model

OPTIMIZER: Final = "optimizer.safetensors"  # of a checkpoint: never served
AVERAGE: Final = "ema_"  # before the names of a checkpoint's averaged weights, which are not served
HASH: Final = "modelspec.hash_sha256"
UNSTATED: Final = "that of the file which these weights are from"  # what `sote export` writes where nothing is known
# Fields of the recipe that name weights, the model each must hold, and the folder of it in a diffusers layout
ROLES: Final[tuple[tuple[str, Model, str], ...]] = (
    ("prior", "prior", "prior"),
    ("decoder", "decoder", "decoder"),
    ("text_encoder", "text encoder", "text_encoder"),
    ("encoder", "encoder", "encoder"),
    ("image_encoder", "image encoder", "image_encoder"),
)

# Where train/modelfile.py looks for what a recipe need not name: model, folder, files
BESIDE: Final[dict[str, tuple[Model, str | None, tuple[str, ...]]]] = {
    "encoder": ("encoder", None, ("{base}_effnet_encoder", "effnet_encoder")),
    "image_encoder": ("image encoder", "image_encoder", ("{base}_image_encoder", "image_encoder")),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """The weights that one field of the recipe names. `name` is the key or the last part of the path: no more of the
    machine is told. `licence` None: the files do not say."""

    role: str
    name: str
    repository: str | None
    licence: str | None
    files: tuple[Path, ...]
    tensors_sha256: str | None  # of all data behind the header of the only file, as its metadata has it


def named(part: ModelPart) -> tuple[Named, ...]:
    """What the fields of `part` name, the prior first. Raises WeightsError: missing, or no whole safetensors file."""
    references = [(getattr(part, role), role, model, module) for role, model, module in ROLES]
    return tuple(
        _named(reference, role, model=model, module=module)
        for reference, role, model, module in references
        if reference is not None
    )


def lies_beside(prior: Named, role: str) -> bool:
    """Whether the `encoder` or `image_encoder` lies inside or beside a prior, where loading looks for it."""
    model, module, files = BESIDE[role]
    for file in prior.files:
        if model in names.parts(folders.header(file).tensors):
            return True
        home = file.parent.parent if folders.has_weights(file.parent) else file.parent
        if any((home / f"{name.format(base=file.stem)}.safetensors").is_file() for name in files):
            return True
        if module is not None and folders.has_weights(home / module):
            return True
    return False


class Hashes:
    """The sha256 of files; None until it is known. `start` has those that are not known computed in a thread, one after
    the other, and kept in the file `kept` by path, size and time of change."""

    def __init__(self, files: Sequence[Path], *, kept: Path) -> None:
        self.kept = kept
        self.found = {file: digest for file in files if (digest := cached_name(file)) is not None}
        self.found |= {file: kept_one for file in files if (kept_one := self._read().get(_stamp(file))) is not None}
        self.missing = [file for file in files if file not in self.found]
        self.thread: threading.Thread | None = None

    def of(self, file: Path) -> str | None:
        return self.found.get(file)

    def start(self) -> None:
        """Does nothing where all are known or the thread has been started."""
        if self.missing and self.thread is None:
            self.thread = threading.Thread(target=self._compute, name="sha256 of the weights", daemon=True)
            self.thread.start()

    def _compute(self) -> None:
        for file in self.missing:
            try:
                with file.open("rb") as stream:
                    self.found[file] = hashlib.file_digest(stream, "sha256").hexdigest()
                storage.write_text(self.kept, json.dumps(self._read() | {_stamp(file): self.found[file]}, indent=1))
            except OSError as error:  # the server goes on: it only cannot say this one, or must compute it again
                log.warning("sha256 not kept file=%s error=%s", file.name, error.strerror or error)

    def _read(self) -> dict[str, str]:
        try:
            return dict(json.loads(remote.fetch(self.kept).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return {}


def cached_name(file: Path) -> str | None:
    """The sha256 of a file in the Hugging Face cache: large files lie there as blobs of that name."""
    real = file.resolve()
    return real.name if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name) else None


def _named(reference: str, role: str, *, model: Model, module: str) -> Named:
    path = weights.locate(reference, field=f"model.{role}")
    files = _files(path, model=model, module=module)
    said: dict[str, str] = {}
    for file in files:
        said |= folders.header(file).metadata
    known = weights.BY_KEY.get(reference) or weights.BY_KEY.get(said.get("base", ""))
    stated = said.get("licence") or said.get("modelspec.license")
    if reference in weights.BY_KEY or stated in (None, UNSTATED):
        stated = known.licence if known else None
    hashed = said.get(HASH, "").removeprefix("0x")
    return Named(
        role=role,
        name=Path(reference).name,
        repository=weights.BY_KEY[reference].repo if reference in weights.BY_KEY else None,
        licence=stated,
        files=tuple(files),
        tensors_sha256=hashed if len(files) == 1 and re.fullmatch(r"[0-9a-f]{64}", hashed) else None,
    )


def _files(path: Path, *, model: Model, module: str) -> list[Path]:
    """The files of the model at `path`: a file, a model's folder, a pipeline's, a folder of files, a run's."""
    if path.is_file():
        return [path]
    if (steps := _steps(path)) is not None:
        if not steps:
            raise WeightsError(f"{remote.named(path)}: model: is a run without a checkpoint yet; train it first")
        path = max(steps, key=lambda each: int(each.name.removeprefix("step-")))
        for file in remote.paths(path, "*.safetensors"):
            if file.name != OPTIMIZER:
                bringing.bring(file)
    if not folders.has_weights(path) and (path / module).is_dir():
        path = path / module
    if folders.has_weights(path):
        return folders.weight_files(path)
    files = [file for file in sorted(path.glob("*.safetensors")) if not file.name.startswith(AVERAGE)]
    return [file for file in files if model in names.parts(folders.header(file).tensors)]


def _steps(run: Path) -> list[Path] | None:
    """The checkpoints of a run folder; None for what is no run folder. Of those at a URI only their states are here."""
    folder = RunFolder(run).checkpoints
    if remote.uri(run) is None:
        found = list(folder.glob("step-*")) if folder.is_dir() else None
    elif set(remote.names(run)) & weights.RUN:
        found = [path.parent for path in remote.fetch_tree(folder, "step-*/state.json")]
    else:
        found = None
    return None if found is None else [each for each in found if re.fullmatch(r"step-\d+", each.name)]


def _stamp(file: Path) -> str:
    found = file.stat()
    return f"{file.resolve()} {found.st_size} {found.st_mtime_ns}"
