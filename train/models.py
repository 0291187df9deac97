"""Models out of their sources: Stage C, Stage B, the text and the image encoder, Stage A, and the tokenizer.

Weights are read tensor by tensor, so a model needs its own memory and one tensor's.

Kind: actor.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from sote.cluster.errors import CheckpointError
from sote.data import tokens, vqgan_net
from sote.data.vqgan_net import Vqgan
from sote.train import shapes
from sote.train.source import Source
from sote.train.unet import CascadeUNet, Config

TOKENS = 77  # CLIP's positions; ComfyUI's tokenizer folder says 8192, with which a pipeline fails


def unet_model(source: Source, *, dtype: torch.dtype, device: torch.device | str) -> CascadeUNet:
    """The UNet of a source on `device`, in eval mode."""
    with torch.device("meta"):
        model = CascadeUNet(Config.of(source.config))
    _fill(model, source, dtype=dtype, device=device)
    return model


def text_model(source: Source, *, dtype: torch.dtype, device: torch.device | str) -> CLIPTextModelWithProjection:
    """The text encoder of a source on `device`, in eval mode."""
    config = CLIPTextConfig(**_typeless(source.config))
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(config)
    _fill(model, source, dtype=dtype, device=device)
    model.config.architectures = ["CLIPTextModelWithProjection"]
    # the one buffer that no file has
    positions = torch.arange(config.max_position_embeddings, device=device).expand((1, -1))
    model.text_model.embeddings.position_ids = positions
    return model


def image_model(source: Source, *, dtype: torch.dtype, device: torch.device | str) -> CLIPVisionModelWithProjection:
    """The image encoder of a source on `device`, in eval mode."""
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**_typeless(source.config)))
    _fill(model, source, dtype=dtype, device=device)
    embeddings = model.vision_model.embeddings
    # the one buffer that no file has
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device).expand((1, -1))
    return model


def vqgan_model(source: Source, *, dtype: torch.dtype, device: torch.device | str) -> Vqgan:
    """Stage A of a source on `device`, in eval mode."""
    with torch.device("meta"):
        model = Vqgan(vqgan_net.Config.of(source.config))
    _fill(model, source, dtype=dtype, device=device)
    return model


def tokenizer(path: Path | None) -> CLIPTokenizer:
    """The tokenizer in a folder; None: CLIP's own. It pads with the end mark, as training and ComfyUI do."""
    if path is not None:
        found: CLIPTokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        return found
    numbers, merges = tokens.vocabulary()
    # the annotation of `merges` asks for strings; the Rust tokenizer below takes pairs
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=TOKENS)  # type: ignore[arg-type]


def _typeless(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}


def _fill(model: nn.Module, source: Source, *, dtype: torch.dtype, device: torch.device | str) -> None:
    """Put the tensors of `source` into a model on the meta device, one after the other."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if problem := shapes.difference(wanted, source.shapes):
        raise CheckpointError(f"{source.path}: {problem}")
    made = {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in source.tensors()}
    model.load_state_dict(made, strict=True, assign=True)
    model.eval()
