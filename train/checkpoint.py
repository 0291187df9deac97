"""Checkpoints: `step-<n>/` with float32 weights, the optimizer's state by tensor name, and what they belong to.

    prior.safetensors text_encoder.safetensors    diffusers and transformers names
    optimizer.safetensors                         `<tensor>/<moment>`
    state.json                                    State, and the sha256 of each file

A checkpoint is written into a temporary folder, flushed and renamed: a folder named `step-<n>` is whole, or was damaged
later, which its digests show.

Kind: actor.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.optimization import Adafactor

from sote.cluster import storage
from sote.cluster.errors import CheckpointError
from sote.train import folders, optimizer

log = logging.getLogger(__name__)

MODULES = ("prior", "text_encoder")
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True)
class Origin:
    """What a checkpoint says of where it comes from: digest of the recipe, compression, digest of the encoder."""

    recipe: str
    compression: float
    encoder_sha256: str


@dataclass(frozen=True)
class State:
    """Where a run was. `text_mask` says how the text encoder was called; `compression` is pixels per latent cell."""

    step: int
    epoch: int
    images_seen: int
    seed: int
    recipe: str  # digest
    compression: float
    encoder_sha256: str
    text_mask: str


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    state: State


def save(folder: Path, state: State, *, model: nn.Module, adafactor: Adafactor, keep: int) -> Checkpoint:
    """Write folder/step-<n> and remove all but the newest `keep` checkpoints."""
    path = folder / f"step-{state.step}"
    making = folder / f".{path.name}.{os.getpid()}.tmp"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for name in MODULES:
        _write(making / f"{name}.safetensors", model.get_submodule(name).state_dict())
    _write(making / OPTIMIZER, optimizer.state_by_name(adafactor, model))
    digests = {file.name: _sha256(file) for file in sorted(making.iterdir())}
    storage.write_text(making / STATE, json.dumps(asdict(state) | {"sha256": digests}, indent=2) + "\n")
    if path.exists():  # a damaged one of the same step, that this run did not start from
        shutil.rmtree(path)
    making.rename(path)
    _sync(folder)
    for old in _listed(folder)[keep:]:
        shutil.rmtree(old)
    log.info("checkpoint written step=%d folder=%s", state.step, path)
    return Checkpoint(path, state)


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; None if there is none yet. Damaged ones are named in the log.

    Raises CheckpointError if there are checkpoints but not one is whole.
    """
    problems = []
    for path in _listed(folder):
        try:
            return Checkpoint(path, verify(path))
        except CheckpointError as error:
            log.warning("checkpoint damaged, taking the one before: %s", error)
            problems.append(str(error))
    if problems:
        raise CheckpointError(
            f"{folder}: not one of {len(problems)} checkpoints is whole ({problems[0]}); delete them to start anew"
        )
    return None


def verify(path: Path) -> State:
    """Read the state of the checkpoint at `path` and compare every file with its digest. Raises CheckpointError."""
    try:
        values = json.loads((path / STATE).read_text(encoding="utf-8"))
        digests = values.pop("sha256")
        state = State(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / STATE}: cannot be read ({type(error).__name__})") from None
    for name, digest in digests.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: missing")
        if _sha256(path / name) != digest:
            raise CheckpointError(f"{path / name}: damaged, its sha256 is not the one in {STATE}")
    return state


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Put the weights of `checkpoint` into `model`. Raises CheckpointError if names or shapes differ."""
    for name in MODULES:
        module, path = model.get_submodule(name), checkpoint.path / f"{name}.safetensors"
        wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        found = {key: stored.shape for key, stored in folders.header(path).tensors.items()}
        if problem := difference(wanted, found):
            raise CheckpointError(f"{path}: {problem}; this checkpoint is of another model than the recipe's")
        module.load_state_dict(load_file(path))


def load_optimizer(checkpoint: Checkpoint, model: nn.Module, adafactor: Adafactor) -> None:
    """Put the optimizer's state of `checkpoint` back. Raises CheckpointError if it does not fit."""
    path = checkpoint.path / OPTIMIZER
    try:
        optimizer.load_state(adafactor, model, tensors=load_file(path), step=checkpoint.state.step)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def difference(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str | None:
    """The first thing in which the tensors found differ from those wanted, in words; None if in nothing."""
    if missing := sorted(wanted.keys() - found.keys()):
        return f"tensor {missing[0]} is missing ({len(missing)} in all)"
    if extra := sorted(found.keys() - wanted.keys()):
        return f"tensor {extra[0]} is not of this model ({len(extra)} in all)"
    for name, shape in wanted.items():
        if found[name] != shape:
            return f"tensor {name} has shape {found[name]}, should have {shape}"
    return None


def _listed(folder: Path) -> list[Path]:
    """The checkpoint folders, newest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, path, metadata={"format": "pt"})
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
