"""What a pipeline folder of diffusers holds besides weights: index, configs, tokenizer, scheduler, the decoder's card.

The tokenizer is always CLIP's own, which every Stable Cascade has; published folders of it say different things about
padding and length, and with one of them (8,192 tokens) diffusers' pipelines fail.

Kind: pure, but for writing files.
"""

import json
from pathlib import Path
from typing import Any

from sote.cluster import storage
from sote.data import tokens
from sote.train import names, shapes
from sote.train.names import Model

TOKENS = 77
# stabilityai/stable-cascade: scheduler/scheduler_config.json
SCHEDULER = {"_class_name": "DDPMWuerstchenScheduler", "_diffusers_version": shapes.VERSION, "s": 0.008, "scaler": 1.0}
INDEXES: dict[str, dict[str, Any]] = {"prior": names.PRIOR_INDEX, "decoder": names.DECODER_INDEX}
# diffusers' combined pipeline finds the prior through the list `prior` in the head of the decoder's card
CARD = """---
prior:
- {prior}
---
Stage B and Stage A of Stable Cascade, beside the prior named above (a folder, or a repository once published).
"""


def furnish(folder: Path, kind: str) -> None:
    """Write tokenizer, scheduler and index of a pipeline of the `kind` "prior" or "decoder"."""
    write_tokenizer(folder / "tokenizer")
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "model_index.json", INDEXES[kind])


def write_card(folder: Path, *, prior: str) -> None:
    """Write the decoder's README.md, which names a prior."""
    storage.write_text(folder / "README.md", CARD.format(prior=prior))


def write_config(folder: Path, config: dict[str, Any], what: Model) -> None:
    """Write config.json; float32 stays the type that a loader without another wish computes in."""
    values = dict(config)
    if what == "text encoder":
        values = {key: value for key, value in values.items() if key != "torch_dtype"} | {"dtype": "float32"}
        values |= {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
    elif what == "vqgan":
        values |= {"_class_name": "PaellaVQModel", "scale_factor": shapes.VQGAN_SCALE}
    else:
        values |= {"_class_name": "StableCascadeUNet"}
    storage.write_text(folder / "config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")


def weight_name(what: Model) -> str:
    """The name that from_pretrained looks for."""
    return "model.safetensors" if what == "text encoder" else "diffusion_pytorch_model.safetensors"


def write_tokenizer(folder: Path) -> None:
    """Write the CLIP tokenizer (vocab.json, merges.txt and its two configs), padding with the end mark."""
    vocabulary, merges = tokens.vocabulary()
    marks = {"bos_token": tokens.START, "eos_token": tokens.END, "unk_token": tokens.END, "pad_token": tokens.END}
    config = marks | {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    storage.write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    storage.write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", marks)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    storage.write_text(path, json.dumps(values, indent=2) + "\n")
