"""Writing a safetensors file tensor by tensor, cast to fp16 on the way: a large model needs no large memory.

The format: 8 bytes with the length of the header (little endian), the header as JSON padded with spaces to a multiple
of 8, the data. Tensors are laid out by size of their type, then by name, as the safetensors library does it.

Kind: actor.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sote.cluster import storage
from sote.cluster.errors import CheckpointError
from sote.train import names
from sote.train.folders import Stored
from sote.train.names import Entry

# Types that are cast to fp16; whole numbers (counters of BatchNorm) stay what they are
FLOATS = ("F64", "F32", "F16", "BF16")
HALF = "F16"
BYTES = {"I64": 8, "I32": 4, "F16": 2, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Planned:
    """One tensor of a file to be written. `make` reads it; its type is `dtype` (safetensors' name) after the cast."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        count = BYTES[self.dtype]
        for side in self.shape:
            count *= side
        return count


def planned(entry: Entry, *, stored: Mapping[str, Stored], read: Callable[[str], Tensor]) -> Planned:
    """The tensor that `entry` makes of the stored ones."""
    first = stored[entry.sources[0]]
    rows = sum(stored[name].shape[0] for name in entry.sources) if len(entry.sources) > 1 else None
    shape = first.shape if rows is None else (rows, *first.shape[1:])
    if entry.third is not None:
        shape = (shape[0] // len(names.PARTS), *shape[1:])
    if entry.transposed:
        shape = shape[::-1]
    dtype = HALF if first.dtype in FLOATS else first.dtype
    return Planned(entry.name, dtype, shape, partial(names.build, entry, read=read, join=torch.cat))


def write(path: Path, tensors: list[Planned], *, metadata: dict[str, str]) -> None:
    """Write the file, whole or not at all. Raises CheckpointError: a number is not finite, or too large for fp16."""
    ordered = sorted(tensors, key=lambda tensor: (-BYTES[tensor.dtype], tensor.name))
    header: dict[str, object] = {"__metadata__": metadata}
    place = 0
    for tensor in ordered:
        offsets = [place, place + tensor.bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        place = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with storage.atomic(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            file.write(_bytes(tensor, path))


def _bytes(tensor: Planned, path: Path) -> bytes:
    made = tensor.make()
    if tensor.dtype == HALF:
        made = made.to(torch.float16)
        if not bool(made.isfinite().all()):
            raise CheckpointError(
                f"{path.name}: {tensor.name}: has numbers that fp16 cannot hold; nothing was exported"
            )
    return bytes(made.contiguous().reshape(-1).view(torch.uint8).numpy().data)
