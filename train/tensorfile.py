"""Reading and writing safetensors files tensor by tensor, cast on the way: a large model needs no large memory.

The format: 8 bytes with the length of the header (little endian), the header as JSON padded with spaces to a multiple
of 8, the data. Tensors are laid out by size of their type, then by name, as the safetensors library does it.

Kind: actor.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sote.cluster import storage
from sote.cluster.errors import CheckpointError, WeightsError
from sote.train import names
from sote.train.folders import BYTES, Stored
from sote.train.names import Entry

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in TYPES.items()}
UNKNOWN = "0x" + "0" * 64  # stands where a sha256 will be
# Types that are cast; whole numbers (counters of BatchNorm) stay what they are
FLOATS = ("F64", "F32", "F16", "BF16")


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


def read(path: Path, stored: Stored, *, third: int | None = None) -> Tensor:
    """A tensor of the file at `path`, as it is stored, or only the `third`-th third of its rows.

    Raises WeightsError: the file has become shorter, or the tensor's type is one that torch does not compute with.
    """
    if stored.dtype not in TYPES:
        raise WeightsError(f"{path}: holds numbers of type {stored.dtype}; F16, BF16 and F32 can be read")
    shape, first, length = stored.shape, stored.start, stored.end - stored.start
    if third is not None:
        shape, length = (shape[0] // len(names.PARTS), *shape[1:]), length // len(names.PARTS)
        first += third * length
    data_N = torch.empty(length, dtype=torch.uint8)
    with path.open("rb") as file:
        file.seek(first)
        if file.readinto(data_N.numpy().data) != length:
            raise WeightsError(f"{path}: has become shorter while it was read; fetch it again")
    return data_N.view(TYPES[stored.dtype]).reshape(shape)


def planned(
    entry: Entry, *, stored: Mapping[str, Stored], read: Callable[[str], Tensor], dtype: torch.dtype
) -> Planned:
    """The tensor that `entry` makes of the stored ones; floats become `dtype`."""
    first = stored[entry.sources[0]]
    rows = sum(stored[name].shape[0] for name in entry.sources) if len(entry.sources) > 1 else None
    shape = first.shape if rows is None else (rows, *first.shape[1:])
    if entry.third is not None:
        shape = (shape[0] // len(names.PARTS), *shape[1:])
    if entry.transposed:
        shape = shape[::-1]
    kind = NAMES[dtype] if first.dtype in FLOATS else first.dtype
    return Planned(entry.name, kind, shape, partial(names.build, entry, read=read, join=torch.cat))


def write(path: Path, tensors: list[Planned], *, metadata: dict[str, str], hash_key: str | None = None) -> None:
    """Write the file, whole or not at all. With `hash_key` the metadata say the sha256 of all data under that key.

    Raises CheckpointError: a number is not finite or too large.
    """
    said = metadata if hash_key is None else metadata | {hash_key: UNKNOWN}
    digest = hashlib.sha256()
    with storage.atomic(path) as temporary, temporary.open("wb") as file:
        parts = pieces(path, tensors, metadata=said)
        header = bytes(next(parts))
        file.write(header)
        for part in parts:
            file.write(part)
            digest.update(part)
        if hash_key is not None:
            file.seek(0)
            file.write(header.replace(UNKNOWN.encode(), f"0x{digest.hexdigest()}".encode()))


def pieces(path: Path, tensors: list[Planned], *, metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of the file one after the other, each tensor made when its turn comes. Raises as `write` does."""
    ordered = sorted(tensors, key=lambda tensor: (-BYTES[tensor.dtype], tensor.name))
    header: dict[str, object] = {"__metadata__": metadata}
    place = 0
    for tensor in ordered:
        offsets = [place, place + tensor.bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        place = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for tensor in ordered:
        yield _bytes(tensor, path)


def _bytes(tensor: Planned, path: Path) -> memoryview:
    made = tensor.make()
    if tensor.dtype in FLOATS:
        made = made.to(TYPES[tensor.dtype])
        if not bool(made.isfinite().all()):
            raise CheckpointError(
                f"{path.name}: {tensor.name}: has numbers that {tensor.dtype} cannot hold; nothing was written"
            )
    data: Any = made.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)
