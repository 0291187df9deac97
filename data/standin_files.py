"""What the makers of stand-ins share: weights from a seed, and files as the published ones are written.

Kind: actor.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from sote.cluster import storage

Names = tuple[tuple[str, str], ...]  # patterns and what they become, tried in order


def seeded(build: Callable[[], Any], *, seed: int) -> Any:
    """A module in eval mode with weights from `seed` that keep the size of what passes; torch's own state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for tensor in module.parameters():
                if tensor.ndim >= 2:
                    tensor.normal_(std=float(tensor[0].numel()) ** -0.5)
    return module.eval()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as the hub's files are written."""
    storage.write_text(path, json.dumps(value, indent=2) + "\n")


def published(module: nn.Module, names: Names = ()) -> dict[str, torch.Tensor]:
    """The module's tensors by their names in the published file."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        for pattern, there in names:
            name = re.sub(pattern, there, name)
        tensors[name] = tensor.contiguous()
    return tensors


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors with the metadata that every published file has."""
    storage.write_bytes(path, save(tensors, {"format": "pt"}))


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], *, count: int) -> None:
    """model-00001-of-0000N.safetensors, ... and their index, as large models are published."""
    ordered = sorted(tensors)
    places: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = ordered[number * len(ordered) // count : (number + 1) * len(ordered) // count]
        write_safetensors(folder / file, {name: tensors[name] for name in part})
        places |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})
