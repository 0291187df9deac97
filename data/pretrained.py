"""What every actor needs when it opens pretrained files: they are there, they are whole, and where to run them.

All errors are WeightsError, one line that names the file, what it holds and what was expected.

Kind: actor.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sote.cluster import devices
from sote.cluster.devices import Device
from sote.cluster.errors import RunFailed, WeightsError


def pick_device(device: Device | str | None) -> torch.device:
    """`device` as torch names it; None is what this worker may use (NVIDIA, AMD, Intel or the CPU)."""
    return pick_named(device)[0]


def pick_named(device: Device | str | None) -> tuple[torch.device, str]:
    """The same, and the device's name for people."""
    device = devices.here() if device is None else device
    if isinstance(device, str):
        return torch.device(device), device
    return torch.device(device.torch_name), device.name


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, float32 is IEEE's: no TF32, which cuDNN's convolutions otherwise take, and cuBLAS's products do not."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextlib.contextmanager
def compiled(modules: dict[str, Any], device: torch.device, *, field: str) -> Iterator[None]:
    """Replace each module by torch.compile's, for batches of one size. Compiling itself happens at their first call,

    which belongs inside the block. Where that cannot be, it ends with RunFailed that names the recipe's `field`.
    """
    compiler = os.environ.get("CXX", "g++")  # what torch takes (torch/_inductor/config.py, cpp.cxx)
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise RunFailed(f"{field}: torch.compile needs a C++ compiler, there is no {compiler}; set compile = false")
    from torch._dynamo.exc import TorchDynamoException  # five seconds to import

    for name, module in modules.items():
        modules[name] = torch.compile(module, dynamic=False)
    try:
        yield
    except TorchDynamoException as error:
        why = one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]
        raise RunFailed(f"{field}: torch.compile does not work on {device} ({why}); set compile = false") from None


def needed(folder: Path, *names: str) -> tuple[Path, ...]:
    """The files `names` in `folder`, in that order; WeightsError if one is missing."""
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder; it should hold {', '.join(names)}")
    for name in names:
        if not (folder / name).is_file():
            raise WeightsError(f"{folder}: has no {name}; it should hold {', '.join(names)}")
    return tuple(folder / name for name in names)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: should hold a JSON object, holds a {type(value).__name__}")
    return value


def read_safetensors(path: Path, *, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file on the CPU; a truncated or foreign file is refused.

    With `prefix` only those whose names begin with it, which is taken off.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors ({one_line(error)})") from None


def check_tensors(path: Path, found: dict[str, torch.Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Same names, same shapes, every number finite; the first difference is named."""
    if missing := sorted(expected.keys() - found.keys()):
        raise WeightsError(f"{path}: lacks {missing[0]} ({len(missing)} of {len(expected)} tensors are missing)")
    if foreign := sorted(found.keys() - expected.keys()):
        raise WeightsError(f"{path}: has {foreign[0]}, which does not belong here ({len(foreign)} such tensors)")
    for name, shape in expected.items():
        if tuple(found[name].shape) != shape:
            raise WeightsError(f"{path}: {name} has shape {tuple(found[name].shape)}, expected {shape}")
        if not bool(torch.isfinite(found[name]).all()):
            raise WeightsError(f"{path}: {name} holds numbers that are not finite; fetch the file again")


def check_loaded(folder: Path, report: dict[str, Any]) -> None:
    """Refuse what transformers' `output_loading_info` reports: it fills missing tensors at random and goes on."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := report.get(kind):
            first = sorted(str(item) for item in found)[0]
            raise WeightsError(f"{folder}: {kind.replace('_', ' ')} in its weights: {first} ({len(found)} in all)")


def one_line(error: BaseException) -> str:
    """The message of a foreign error on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
