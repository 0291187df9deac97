"""Latent files: one safetensors file with the tensor `latents` for each bucket of a shard, and what tells their two
kinds apart.

Kind: pure.
"""

import json
import struct
from typing import NamedTuple

ENCODER_STRIDE = 32  # EfficientNet-V2-S features: 32 pixels a cell
VQGAN_STRIDE = 4  # Stage A: 4 pixels a cell
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}  # the format's names


class Kind(NamedTuple):
    """One of the two kinds of latents: where its files lie, what names them, which columns say where a row's are."""

    name: str
    format: str
    folder: str
    shard: str
    offset: str
    not_finite: str


STAGE_C = Kind("latents", "sote-latents-1", "", "latent_shard", "latent_offset", "latents: not finite")
STAGE_A = Kind(
    "vqgan", "sote-vqgan-latents-1", "vqgan/", "vqgan_shard", "vqgan_offset", "latents: of Stage A, not finite"
)
KINDS = {kind.name: kind for kind in (STAGE_C, STAGE_A)}


def latent_cells(pixels: int, compression: float) -> int:
    """Latent cells along a side of `pixels`: 1024 px are 32 cells at compression 32, 24 at 42.67."""
    return max(1, round(pixels / compression))


def latent_file(data: bytes, *, dtype: str, shape: list[int], facts: dict[str, str]) -> bytes:
    """A safetensors file with the one tensor `latents`. The same content gives the same bytes, which the library's own
    writer does not: it puts metadata in an order that changes from process to process."""
    tensor = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": facts, "latents": tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format wants the data to begin at a multiple of eight
    return struct.pack("<Q", len(header)) + header + data
