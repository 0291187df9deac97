"""Checkpoints: `step-<n>/` with float32 weights, the optimizer's state by tensor name, and what they belong to.

    prior.safetensors text_encoder.safetensors    (or decoder.safetensors) diffusers and transformers names;
                                                  what is frozen, in the type that it came in
    lora.safetensors                              instead of all these: the adapters alone, by plain name (lora.py)
    ema_<one of the above>.safetensors            running means of what is trained
    optimizer.safetensors                         `<name of parameter>/<moment>`
    state.json                                    State, and the sha256 of each file, of itself too

A folder named `step-<n>` is whole, or was damaged later, which its digests show (written by writer.py). At a URI it
counts from the moment its state.json is there, which comes last and goes first; it is fetched before it is read.

Kind: actor.
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sote.cluster import bringing, remote
from sote.cluster.errors import CheckpointError, WeightsError
from sote.train import folders, lora, shapes
from sote.train.shapes import Shapes

log = logging.getLogger(__name__)

STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
LORA = "lora.safetensors"
AVERAGE = "ema_"  # before the name of a weight file
FETCHED_AT_ONCE = 4  # files of a checkpoint, from a URI


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


def newest(folder: Path, *, has_optimizer: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint; None if there is none yet. Damaged ones are named in the log. From a URI it is
    fetched; without `has_optimizer` what only training reads of it stays there.

    Raises CheckpointError if there are checkpoints but not one is whole, and OSError: a network.
    """
    problems = []
    for path in listed(folder):
        try:
            return Checkpoint(path, verify(path, has_optimizer=has_optimizer))
        except CheckpointError as error:
            log.warning("checkpoint damaged, taking the one before: %s", error)
            problems.append(str(error))
    if problems:
        raise CheckpointError(
            f"{remote.named(folder)}: not one of {len(problems)} checkpoints is whole ({problems[0]}); delete them to "
            "start anew"
        )
    return None


def reached(folder: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none. At a URI only its state is looked at: gigabytes are not
    fetched for one number. Raises CheckpointError as `newest` does."""
    if remote.uri(folder) is None:
        found = newest(folder)
        return found.state.step if found is not None else 0
    for path in listed(folder):
        try:
            return _state(path)[0].step
        except CheckpointError as error:
            log.warning("checkpoint damaged, taking the one before: %s", error)
    return 0


def listed(folder: Path) -> list[Path]:
    """The checkpoint folders, newest first. Of those at a URI only their states are fetched."""
    if remote.uri(folder) is not None:
        states = remote.fetch_tree(folder, f"step-*/{STATE}")
        found = [path.parent for path in states if path.parent.parent == folder]
    else:
        found = list(folder.glob("step-*"))
    return sorted((path for path in found if re.fullmatch(r"step-\d+", path.name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def bring(found: Checkpoint, *, is_checked: bool) -> Checkpoint:
    """The same checkpoint on this node, where another node found it; a local one is where it was.

    Raises CheckpointError: it did not come whole (with `is_checked`, every byte is looked at) or is gone.
    """
    if remote.uri(found.path) is None:
        return found
    if is_checked:
        return Checkpoint(found.path, verify(found.path))
    _fetch(found.path, _state(found.path)[1])
    return found


def verify(path: Path, *, has_optimizer: bool = True) -> State:
    """Read the state of the checkpoint at `path` and compare every file with its digest. Raises CheckpointError.

    Of one at a URI the files are fetched, and without `has_optimizer` the optimizer's is left there.
    """
    state, digests = _state(path)
    if not has_optimizer and remote.uri(path) is not None:
        digests.pop(OPTIMIZER, None)
    _fetch(path, digests)
    for name, digest in digests.items():
        if _sha256(path / name) != digest and not _is_mended(path / name, digest):
            raise CheckpointError(f"{remote.named(path / name)}: damaged, its sha256 is not the one in {STATE}")
    return state


def _state(path: Path) -> tuple[State, dict[str, str]]:
    """What state.json says: where the run was, and the sha256 of each file. Raises CheckpointError."""
    where = remote.named(path / STATE)
    is_here = _is_fetched(path / STATE)
    try:
        values: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8") if is_here else "{}")
        own = values["sha256"].pop(STATE)
        is_whole = own == _own_digest(values)
        digests = {str(name): str(digest) for name, digest in values.pop("sha256").items()}
        state = State.of(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where}: cannot be read ({type(error).__name__})") from None
    if not is_whole:
        raise CheckpointError(f"{where}: damaged, its sha256 is not the one that it names")
    return state, digests


def _fetch(path: Path, names: Collection[str]) -> None:
    """Have these files of a checkpoint here. Raises CheckpointError for one that is nowhere, OSError: a network."""
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        for name, is_here in zip(names, pool.map(_is_fetched, (path / name for name in names)), strict=True):
            if not is_here:
                raise CheckpointError(f"{remote.named(path / name)}: missing")


def _is_fetched(path: Path) -> bool:
    try:
        return bringing.bring(path).is_file()
    except FileNotFoundError:
        return False


def _is_mended(path: Path, digest: str) -> bool:
    """Whether a file from a URI is what it should be when it is fetched once more: the copy here may be the bad one."""
    if remote.uri(path) is None:
        return False
    path.unlink()
    return _is_fetched(path) and _sha256(path) == digest


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
