"""What a path with weights holds, found from names and configs alone: the right stage is told from the wrong one.

Kind: pure, but for looking at files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sote.cluster.errors import CheckpointError
from sote.train import names

Which = Literal["prior", "decoder"]
STAGE = {"prior": "Stage C, the prior", "decoder": "Stage B, the decoder"}
# The folders that serving reads of each pipeline; the decoder's text encoder is not needed, its scheduler neither
NEEDED = {"prior": ("prior", "text_encoder", "tokenizer"), "decoder": ("decoder", "vqgan")}
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Header:
    """The head of a safetensors file: shape of each tensor by name, and the metadata."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @property
    def values(self) -> int:
        """Number of values in all tensors."""
        count = 0
        for shape in self.shapes.values():
            size = 1
            for side in shape:
                size *= side
            count += size
        return count


def check_folder(folder: Path, which: Which, *, field: str) -> None:
    """Refuse a `folder` that does not hold the pipeline `which`.

    Raises CheckpointError in one line that says what it is instead, and what would be right.
    """
    other: Which = "decoder" if which == "prior" else "prior"
    wanted = f"name a folder with {', '.join(part + '/' for part in NEEDED[which])}"
    if folder.is_file():
        raise CheckpointError(f"{field}: {folder} is a single file{_content(folder)}; {wanted}")
    if (folder / other / "config.json").exists() and not (folder / which).exists():
        raise CheckpointError(f"{field}: {folder} is {STAGE[other]}; {STAGE[which]}, is missing: {wanted}")
    if (folder / "config.json").exists() and not (folder / which).exists():
        raise CheckpointError(f"{field}: {folder} is one model's folder; name the folder above it, {wanted[5:]}")
    for part in NEEDED[which]:
        if not (folder / part).is_dir():
            raise CheckpointError(f"{field}: {folder} has no {part}/; {wanted}")
    found = stage_of(config(folder / which, field=field))
    if found != which:
        raise CheckpointError(f"{field}: {folder / which} is {STAGE[found]} by its config.json, not {STAGE[which]}")


def stage_of(unet_config: dict[str, Any]) -> Which:
    """Which stage a StableCascadeUNet config describes: only Stage B takes latents as a condition."""
    return "decoder" if unet_config.get("effnet_in_channels") else "prior"


def config(folder: Path, *, field: str) -> dict[str, Any]:
    """The config.json of a model's folder. Raises CheckpointError if there is none or it is no JSON object."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{field}: {path} cannot be read ({error}); copy the folder again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{field}: {path} is no JSON object; copy the folder again")
    return values


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of a model's folder; `variant` is the "bf16" of `model.bf16.safetensors`."""

    paths: tuple[Path, ...]
    variant: str | None


def weight_files(folder: Path, *, field: str) -> WeightFiles:
    """The weights of a model's folder: the plain files, or else those of the only variant.

    Raises CheckpointError if there are none.
    """
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise CheckpointError(f"{field}: {folder} has no .safetensors file; fetch or export it again")
    if plain := tuple(path for path in found if len(path.suffixes) == 1):
        return WeightFiles(plain, None)
    variants = sorted({path.suffixes[0].partition("-")[0].removeprefix(".") for path in found})
    if len(variants) > 1:
        raise CheckpointError(f"{field}: {folder} has the variants {', '.join(variants)}; keep one of them")
    return WeightFiles(tuple(found), variants[0])


def header(path: Path, *, field: str) -> Header:
    """The head of the safetensors file `path`, checked against its length.

    Raises CheckpointError if it is no safetensors file, or one that is cut short.
    """
    broken = f"{field}: {path} is not a whole safetensors file; fetch or export it again"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise CheckpointError(broken)
        try:
            entries = json.loads(file.read(length))
        except ValueError:
            raise CheckpointError(broken) from None
    metadata = entries.pop("__metadata__", {})
    end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    if path.stat().st_size != 8 + length + end:
        raise CheckpointError(broken)
    return Header({name: tuple(entry["shape"]) for name, entry in entries.items()}, metadata)


def _content(path: Path) -> str:
    """' with <model>' for a single file whose content is known."""
    if path.suffix != ".safetensors":
        return ""
    model = names.model_of(header(path, field="weights").shapes)
    return f" with {STAGE.get(model, f'the {model}')}" if model else ""
