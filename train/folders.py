"""Model folders of diffusers on disk: which file holds the weights, what is in it, is it the model asked for.

Reads headers only: no weights are loaded.

Kind: pure, but for files.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sote.cluster.errors import WeightsError
from sote.train import names

# Names that from_pretrained looks for, of diffusers and of transformers
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
# The longest header we take: the real models' are 130 to 200 kB (measured)
MAX_HEADER_BYTES = 8_000_000
WHAT = {
    "prior": "the prior (Stage C)",
    "decoder": "Stage B, the decoder",
    "vqgan": "Stage A, the vqgan",
    "text encoder": "the text encoder",
    "encoder": "the EfficientNet encoder",
    "previewer": "the previewer",
    None: "no model of Stable Cascade",
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
            entries = json.loads(file.read(length))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    except (struct.error, ValueError):
        raise WeightsError(f"{path}: not a safetensors file, or cut short; fetch it again") from None
    metadata = entries.pop("__metadata__", {})
    first = 8 + length
    tensors = {
        name: Stored(at["dtype"], tuple(at["shape"]), first + at["data_offsets"][0], first + at["data_offsets"][1])
        for name, at in entries.items()
    }
    expected = max((tensor.end for tensor in tensors.values()), default=first)
    if path.stat().st_size != expected:
        raise WeightsError(f"{path}: is {path.stat().st_size} bytes long, its header says {expected}; fetch it again")
    return Header(tensors, metadata)


def weights(folder: Path) -> Path:
    """The one safetensors file of a model's folder: the plain one, else the only variant. Raises WeightsError."""
    found = sorted(path for name in WEIGHT_NAMES for path in folder.glob(f"{name}*.safetensors"))
    plain = [path for path in found if path.stem in WEIGHT_NAMES]
    if plain:
        return plain[0]
    if len(found) == 1 and "-of-" not in found[0].name:
        return found[0]
    if not found:
        raise WeightsError(f"{folder}: has no weights; it must hold one of {', '.join(WEIGHT_NAMES)} .safetensors")
    listed = ", ".join(path.name for path in found)
    raise WeightsError(f"{folder}: which weights are meant of {listed}? leave one whole file")


def variant(folder: Path) -> str | None:
    """The variant that `from_pretrained` must be asked for to get `weights(folder)`: None, "bf16", "fp16", ..."""
    return weights(folder).stem.partition(".")[2] or None


def config(folder: Path) -> dict[str, Any]:
    """config.json of a model's folder. Raises WeightsError."""
    return _json(folder / "config.json")


def check_prior(folder: Path, *, field: str) -> None:
    """Raises WeightsError unless `folder` is a whole folder of a StableCascadePriorPipeline."""
    _check_pipeline(folder, field=field, wanted="prior")
    width = config(folder / "prior").get("clip_text_in_channels")
    there = config(folder / "text_encoder").get("hidden_size")
    if width != there:
        raise WeightsError(
            f"{folder}: {field}: the prior takes text of width {width}, its text encoder gives {there}; "
            f"put the text encoder there that belongs to this prior"
        )


def check_decoder(folder: Path, *, field: str) -> None:
    """Raises WeightsError unless `folder` is a whole folder of a StableCascadeDecoderPipeline."""
    _check_pipeline(folder, field=field, wanted="decoder")
    found = names.model_of(header(weights(folder / "vqgan")).tensors)
    if found != "vqgan":
        raise WeightsError(f"{folder}/vqgan: {field}: holds {WHAT[found]}, must hold {WHAT['vqgan']}")


def check_file(path: Path, *, field: str, wanted: names.Model) -> None:
    """Raises WeightsError unless `path` is a safetensors file with the model `wanted`."""
    found = names.model_of(header(path).tensors)
    if found != wanted:
        raise WeightsError(f"{path}: {field}: this is {WHAT[found]}, here goes {WHAT[wanted]}")


def _check_pipeline(folder: Path, *, field: str, wanted: names.Model) -> None:
    if not folder.is_dir():
        kind = "is a file" if folder.is_file() else "no such folder"
        raise WeightsError(f"{folder}: {field}: {kind}; name the diffusers folder of {WHAT[wanted]}")
    for other in ("prior", "decoder"):
        if other != wanted and (folder / other).is_dir() and not (folder / wanted).is_dir():
            raise WeightsError(f"{folder}: {field}: this is {WHAT[other]}; here goes the folder of {WHAT[wanted]}")
    for name in (wanted, "text_encoder", "tokenizer", "scheduler"):
        if not (folder / name).is_dir():
            raise WeightsError(f"{folder}: {field}: has no folder {name}; name the diffusers folder of {WHAT[wanted]}")
    for name, model in ((wanted, wanted), ("text_encoder", "text encoder")):
        found = names.model_of(header(weights(folder / name)).tensors)
        if found != model:
            raise WeightsError(f"{folder / name}: {field}: this is {WHAT[found]}, here goes {WHAT[model]}")


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; the model's folder is not whole") from None
    except ValueError:
        raise WeightsError(f"{path}: not valid JSON; fetch it again") from None
