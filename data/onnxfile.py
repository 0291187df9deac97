"""The inputs of an ONNX graph, read without its weights.

A model file is one protobuf message and may hold hundreds of megabytes; the walk below skips from field to field in the
mapped file and hands only the descriptions of the inputs to onnx. Field numbers: onnx/onnx.proto.

Kind: pure, but for files.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from sote.cluster.errors import WeightsError

GRAPH_OF_MODEL, INITIALIZER_OF_GRAPH, INPUT_OF_GRAPH, NAME_OF_TENSOR = 7, 5, 11, 8
FLOAT = 1  # onnx.TensorProto.FLOAT
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # protobuf wire types
Buffer = mmap.mmap | bytes


@dataclass(frozen=True)
class Input:
    """One input. `type` is a number of onnx.TensorProto; `shape` has ints where sizes are fixed, else names or None."""

    name: str
    type: int
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        kind = "float32" if self.type == FLOAT else str(onnx.TensorProto.DataType.Name(self.type)).lower()
        return f"{kind} [{', '.join(str(size) for size in self.shape)}]"


def inputs(path: Path) -> tuple[Input, ...]:
    """The inputs of the graph, in its order, without the weights that old files list among them.

    Raises WeightsError if the file is not an ONNX model.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graph = _field(data, 0, len(data), GRAPH_OF_MODEL)
            parts = list(_fields(data, *graph))
            weights = {
                bytes(data[slice(*_field(data, start, end, NAME_OF_TENSOR))]).decode()
                for field, start, end in parts
                if field == INITIALIZER_OF_GRAPH
            }
            values = [
                onnx.ValueInfoProto.FromString(data[start:end])
                for field, start, end in parts
                if field == INPUT_OF_GRAPH
            ]
    except (ValueError, IndexError, OSError, DecodeError) as error:
        raise WeightsError(f"{path}: is not an ONNX model ({error})") from None
    return tuple(_input(value) for value in values if value.name not in weights)


def _input(value: onnx.ValueInfoProto) -> Input:
    tensor = value.type.tensor_type
    sizes = (size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim)
    return Input(value.name, tensor.elem_type, tuple(sizes))


def _field(data: Buffer, start: int, end: int, number: int) -> tuple[int, int]:
    """Where the first sub-message with this field number lies within [start, end)."""
    for field, begin, stop in _fields(data, start, end):
        if field == number:
            return begin, stop
    raise ValueError(f"has no field {number}")


def _fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of every length-delimited field within [start, end); the others are skipped."""
    at = start
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == VARINT:
            _, at = _varint(data, at)
        elif kind == LENGTH:
            size, at = _varint(data, at)
            if at + size > end:
                raise ValueError("it ends in the middle of a field")
            yield key >> 3, at, at + size
            at += size
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} is unknown")


def _varint(data: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
