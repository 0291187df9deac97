"""The input of an ONNX graph, read without its weights.

A model file is one protobuf message and may hold hundreds of megabytes; the walk below skips from field to field in the
mapped file and hands only the description of the first input to onnx. Field numbers: onnx/onnx.proto.

Kind: pure, but for files.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from sote.cluster.errors import WeightsError

GRAPH_OF_MODEL, INPUT_OF_GRAPH = 7, 11
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # protobuf wire types
Buffer = mmap.mmap | bytes


def input_shape(path: Path) -> list[int | str | None]:
    """The shape of the graph's first input: an int where a size is fixed, else its name or None.

    Raises WeightsError if the file is not an ONNX model.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graph = _field(data, 0, len(data), GRAPH_OF_MODEL)
            start, end = _field(data, *graph, INPUT_OF_GRAPH)
            value = onnx.ValueInfoProto.FromString(data[start:end])
    except (ValueError, IndexError, OSError, DecodeError) as error:
        raise WeightsError(f"{path}: is not an ONNX model ({error})") from None
    sizes = value.type.tensor_type.shape.dim
    return [size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in sizes]


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
