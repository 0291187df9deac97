"""Checkpoints: `step-<n>/` with float32 weights, the optimizer's state by tensor name, and what they belong to.

    prior.safetensors text_encoder.safetensors    (or decoder.safetensors) diffusers and transformers names;
                                                  what is frozen, in the type that it came in
    lora.safetensors                              instead of all these: the adapters alone, by plain name (lora.py)
    ema_<one of the above>.safetensors            running means of what is trained
    optimizer.safetensors                         `<name of parameter>/<moment>`
    state.json                                    State, and the sha256 of each file, of itself too

A folder named `step-<n>` is whole, or was damaged later, which its digests show (written by writer.py).

Kind: actor.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sote.cluster.errors import CheckpointError, WeightsError
from sote.train import folders, lora, shapes
from sote.train.shapes import Shapes

log = logging.getLogger(__name__)

STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
LORA = "lora.safetensors"
AVERAGE = "ema_"  # before the name of a weight file


@dataclass(frozen=True)
class Origin:
    """What a checkpoint says of where it comes from: digest of the recipe, compression, digest of the encoder."""

    recipe: str
    compression: float
    encoder_sha256: str


@dataclass(frozen=True)
class State:
    """Where a run was. `text_mask` says how the text encoder was called; `compression` is pixels per latent cell.

    `updates` leaves out the steps that were skipped; `images_seen` does not. `base` is what training started from.
    """

    step: int
    updates: int
    epoch: int
    images_seen: int
    seed: int
    workers: int
    recipe: str  # digest
    compression: float
    encoder_sha256: str
    text_mask: str
    text_tokens: int
    base: str
    recent_losses: tuple[float, ...]  # the guard's
    bad_steps: int  # skipped in a row, up to this one
    loss_buckets: tuple[float, ...] | None  # of the adaptive weight

    @classmethod
    def of(cls, values: dict[str, Any]) -> "State":
        """From JSON. Raises TypeError: other fields than these."""
        made: dict[str, Any] = {key: tuple(it) if isinstance(it, list) else it for key, it in values.items()}
        return cls(**made)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    state: State

    def weights(self, module: str) -> Path:
        """The weight file of a module."""
        return self.path / weight_file(module)


def weight_file(module: str) -> str:
    """Name of the weight file of a module."""
    return f"{module}.safetensors"


def dumps(state: State, *, digests: Mapping[str, str]) -> str:
    """The text of state.json, a line for each field."""
    values = asdict(state) | {"sha256": dict(digests)}
    values["sha256"][STATE] = _own_digest(values)
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; None if there is none yet. Damaged ones are named in the log.

    Raises CheckpointError if there are checkpoints but not one is whole.
    """
    problems = []
    for path in listed(folder):
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


def listed(folder: Path) -> list[Path]:
    """The checkpoint folders, newest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def verify(path: Path) -> State:
    """Read the state of the checkpoint at `path` and compare every file with its digest. Raises CheckpointError."""
    try:
        values = json.loads((path / STATE).read_text(encoding="utf-8"))
        own = values["sha256"].pop(STATE)
        is_whole = own == _own_digest(values)
        digests = values.pop("sha256")
        state = State.of(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / STATE}: cannot be read ({type(error).__name__})") from None
    if not is_whole:
        raise CheckpointError(f"{path / STATE}: damaged, its sha256 is not the one that it names")
    for name, digest in digests.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: missing")
        if _sha256(path / name) != digest:
            raise CheckpointError(f"{path / name}: damaged, its sha256 is not the one in {STATE}")
    return state


class Reader:
    """The tensors of a checkpoint by name of parameter (`prior.clf.1.bias`), read when they are asked for."""

    def __init__(self, found: Checkpoint, *, has_lora: bool) -> None:
        self.found, self.has_lora = found, has_lora
        self._files: dict[str, Any] = {}

    def weight(self, name: str) -> Tensor:
        """A trained tensor, or a frozen one. Raises CheckpointError: not in there."""
        return self._read("", name)

    def average(self, name: str) -> Tensor:
        """Its running mean."""
        return self._read(AVERAGE, name)

    def moment(self, name: str) -> Tensor:
        """A tensor of the optimizer's state."""
        return self._tensor(OPTIMIZER, name)

    def _read(self, prefix: str, name: str) -> Tensor:
        module, _, inner = name.partition(".")
        if self.has_lora:
            return self._tensor(prefix + LORA, lora.plain(inner))
        return self._tensor(prefix + weight_file(module), inner)

    def _tensor(self, file: str, name: str) -> Tensor:
        path = self.found.path / file
        try:
            if file not in self._files:
                self._files[file] = safe_open(path, framework="pt")
            tensor: Tensor = self._files[file].get_tensor(name)
        except (OSError, SafetensorError):
            raise CheckpointError(f"{path}: {name}: missing; this checkpoint is of another recipe") from None
        return tensor


def check(found: Checkpoint, wanted: Mapping[str, Shapes]) -> None:
    """Compare the weight files of a checkpoint with those `wanted`. Raises CheckpointError naming file and tensor."""
    there = sorted(path.name for path in found.path.glob("*.safetensors") if path.name != OPTIMIZER)
    for file, expected in wanted.items():
        path = found.path / file
        if file not in there:
            raise CheckpointError(
                f"{found.path}: has no {file} but {', '.join(there)}; this checkpoint is of another stage or recipe"
            )
        try:
            stored = folders.header(path).tensors
        except WeightsError as error:
            raise CheckpointError(str(error)) from None
        if problem := shapes.difference(expected, {name: tensor.shape for name, tensor in stored.items()}):
            raise CheckpointError(f"{path}: {problem}; this checkpoint is of another model than the recipe's")


def _own_digest(values: dict[str, Any]) -> str:
    """The sha256 of the state itself, with the digests of the files."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
