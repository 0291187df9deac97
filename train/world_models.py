"""The small world's Stage C, Stage B and text encoder before training: the real classes and layouts, small enough to
learn on two cores.

`make` writes the two diffusers pipeline folders `prior` and `decoder`; Stage A (data/world_vqgan.py) is put beside.

Kind: actor.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from sote.train import pipelines, published, standins

TEXT_WIDTH = 64
IMAGE_WIDTH = 40

PRIOR_CONFIG: dict[str, Any] = published.PRIOR | {
    "conditioning_dim": 128,
    "block_out_channels": (128, 128),
    "num_attention_heads": (4, 4),
    "down_num_layers_per_block": (1, 2),
    "up_num_layers_per_block": (2, 1),
    "clip_text_in_channels": TEXT_WIDTH,
    "clip_text_pooled_in_channels": TEXT_WIDTH,
    "clip_image_in_channels": IMAGE_WIDTH,
    "dropout": (0.0, 0.0),
}
DECODER_CONFIG: dict[str, Any] = published.DECODER | {
    "conditioning_dim": 64,
    "block_out_channels": (32, 64, 96, 128),
    "num_attention_heads": (0, 0, 2, 4),
    "down_num_layers_per_block": (1, 2, 2, 1),
    "up_num_layers_per_block": (1, 2, 2, 1),
    "up_blocks_repeat_mappers": (1, 1, 1, 1),
    "clip_text_pooled_in_channels": TEXT_WIDTH,
    "dropout": (0.0, 0.0, 0.0, 0.0),
}
TEXT_CONFIG: dict[str, Any] = standins.TEXT_CONFIG | {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_attention_heads": 4,
    "projection_dim": TEXT_WIDTH,
}


def text_encoder(seed: int) -> CLIPTextModelWithProjection:
    """The text encoder before training. Equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_CONFIG))
    model.config.architectures = ["CLIPTextModelWithProjection"]
    return model


def make(folder: Path, *, seed: int) -> None:
    """Write `folder`/prior and `folder`/decoder, untrained, without Stage A. Equal seeds give equal files."""
    words = text_encoder(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        prior, decoder = StableCascadeUNet(**PRIOR_CONFIG), StableCascadeUNet(**DECODER_CONFIG)
        vision = standins.IMAGE_CONFIG | {"projection_dim": IMAGE_WIDTH}
        image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision))
    image_encoder.config.architectures = ["CLIPVisionModelWithProjection"]
    prior.save_pretrained(folder / "prior" / "prior")
    decoder.save_pretrained(folder / "decoder" / "decoder")
    for name in ("prior", "decoder"):
        standins.write_clip(words, folder / name / "text_encoder")
        pipelines.furnish(folder / name, name)
    standins.write_clip(image_encoder, folder / "prior" / "image_encoder")
