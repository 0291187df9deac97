"""What an exported weight file says of itself: where it comes from, how to use it, under which licence.

All values are strings. The keys `modelspec.*` are those of Stability's ModelSpec 1.0.0, as kohya's scripts write them;
the others are ours, the same as in checkpoints, and serving reads them.

Kind: pure.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sote.train.recipe import ExportPart

ARCHITECTURE = "stable-cascade"  # how ComfyUI, kohya and CivitAI recognise the family
LORA_ARCHITECTURE = f"{ARCHITECTURE}/lora"
IMPLEMENTATION = "https://github.com/Stability-AI/StableCascade"
HASH = "modelspec.hash_sha256"  # of all data behind the header; the writer knows it


def spec(title: str, *, licence: str, seconds: float, architecture: str = ARCHITECTURE) -> dict[str, str]:
    """ModelSpec of a file whose weights are from the time `seconds` (since 1970)."""
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": title,
        "modelspec.date": datetime.fromtimestamp(int(seconds), UTC).isoformat().removesuffix("+00:00") + "Z",
        "modelspec.license": licence,
    }


def training(state: Mapping[str, Any], part: ExportPart, *, resolution: int | None) -> dict[str, str]:
    """Where trained weights come from: the fields of a checkpoint's State. `resolution` is the side of its buckets."""
    said = {
        "recipe": str(state["recipe"]),
        "base": str(state["base"]),
        "step": str(state["step"]),
        "images_seen": str(state["images_seen"]),
        "compression": f"{state['compression']:g}",
        "text_mask": str(state["text_mask"]),
        "text_tokens": str(state["text_tokens"]),
        "licence": part.licence,
    }
    return said | ({"modelspec.resolution": f"{resolution}x{resolution}"} if resolution else {})


def configs(models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The configs of a file's models by module name: the first under `config`, others under `config.<module>`."""
    return {
        "config" if number == 0 else f"config.{module}": json.dumps(config)
        for number, (module, config) in enumerate(models.items())
    }


def adapters(*, rank: int, alpha: float) -> dict[str, str]:
    """What kohya's scripts and the tools around them read of a LoRA file."""
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
    }
