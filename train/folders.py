"""Weight files and model folders on disk: which file holds the weights, what is in it, is it the model asked for.

Reads headers only: no weights are loaded.

Kind: pure, but for files.
"""

import json
import math
import re
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sote.cluster.errors import WeightsError
from sote.train import names

# Names that from_pretrained looks for, of diffusers and of transformers
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
# What diffusers and transformers put into the names of files that they cut
PART = re.compile(r"-\d{5}-of-(\d{5})(?=$|\.)")
# The longest header we take: the real models' are 130 to 200 kB (measured)
MAX_HEADER_BYTES = 8_000_000
WHAT = {
    "prior": "the prior (Stage C)",
    "decoder": "Stage B, the decoder",
    "vqgan": "Stage A, the vqgan",
    "text encoder": "the text encoder",
    "encoder": "the EfficientNet encoder",
    "previewer": "the previewer",
    "image encoder": "the image encoder (CLIP vision)",
    "adapters": "adapters (LoRA), which belong to a model and are none by themselves",
    None: "no model of Stable Cascade",
}
# Bytes of a number of each type of the format (safetensors 0.6, its Dtype)
BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file: type (F32, F16, BF16, I64, ...), shape, and bytes [start, end) in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def header(path: Path) -> Header:
    """Read the header of a safetensors file. Raises WeightsError: no such file, or not a whole safetensors file."""
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > MAX_HEADER_BYTES:
                raise WeightsError(f"{path}: not a safetensors file (its header would be {length} bytes long)")
            entries = json.loads(file.read(length), object_pairs_hook=partial(_unique, path))
        metadata = entries.pop("__metadata__", {})
        tensors = {name: _stored(at, 8 + length) for name, at in entries.items()}
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{path}: not a safetensors file, or cut short; fetch it again") from None
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != end:
            raise WeightsError(f"{path}: tensor {name} does not follow the one before it; fetch it again")
        end = tensor.end
    if path.stat().st_size != end:
        raise WeightsError(f"{path}: is {path.stat().st_size} bytes long, its header says {end}; fetch it again")
    return Header(tensors, metadata)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors file of a model's folder, or all the files that it was cut into: the plain one, else the only
    variant. Raises WeightsError: none, one that is not whole, or several variants."""
    groups = _variants(folder)
    if not groups:
        raise WeightsError(f"{folder}: has no weights; it must hold one of {', '.join(WEIGHT_NAMES)} .safetensors")
    kind = min(groups)  # "" is the plain one
    if kind[0] and len(groups) > 1:
        listed = ", ".join(paths[0].name for paths in groups.values())
        raise WeightsError(f"{folder}: which weights are meant of {listed}? leave one whole file")
    paths = groups[kind]
    whole = [path for path in paths if not PART.search(path.stem)]
    if whole:
        return whole[:1]
    counts = {int(match[1]) for path in paths if (match := PART.search(path.stem))}
    if counts != {len(paths)}:
        raise WeightsError(f"{folder}: {len(paths)} of {max(counts)} parts of the weights are here; fetch the others")
    return paths


def has_weights(folder: Path) -> bool:
    """Whether `folder` is a model's own, by the names of its files."""
    return bool(_variants(folder))


def config(folder: Path) -> dict[str, Any]:
    """config.json of a model's folder. Raises WeightsError."""
    return _json(folder / "config.json")


def check_file(path: Path, *, field: str, wanted: names.Model) -> None:
    """Raises WeightsError unless `path` is a safetensors file that holds the model `wanted`."""
    found = names.parts(header(path).tensors)
    if wanted not in found:
        what = WHAT[next(iter(found), None)]
        raise WeightsError(f"{path}: {field}: this is {what}, here goes {WHAT[wanted]}")


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a header. JSON lets a name stand twice, and the last would count."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for at, (name, _) in enumerate(pairs) if any(name == other for other, _ in pairs[:at]))
        raise WeightsError(f"{path}: tensor {twice} stands twice in it; take the file from its source again")
    return found


def _stored(entry: dict[str, Any], first: int) -> Stored:
    """One tensor of a header whose data start at byte `first`. Raises ValueError where its numbers do not agree."""
    shape, (start, end) = tuple(int(side) for side in entry["shape"]), entry["data_offsets"]
    if min(shape, default=0) < 0 or end - start != BYTES[entry["dtype"]] * math.prod(shape):
        raise ValueError(shape)
    return Stored(entry["dtype"], shape, first + start, first + end)


def _variants(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """The weight files of a model's folder by variant ("" is the plain one) and name."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(path for name in WEIGHT_NAMES for path in folder.glob(f"{name}*.safetensors")):
        stem, _, kind = PART.sub("", path.stem).partition(".")
        if stem in WEIGHT_NAMES:
            groups.setdefault((kind, stem), []).append(path)
    return groups


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; the model's folder is not whole") from None
    except ValueError:
        raise WeightsError(f"{path}: not valid JSON; fetch it again") from None
