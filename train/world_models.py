"""The small world's Stage C, Stage B and text encoder before training: the real classes and layouts, small enough to
learn on two cores.

`make` writes the two diffusers pipeline folders `prior` and `decoder`; Stage A (data/world_vqgan.py) is put beside.

Kind: actor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_stable_cascade import SDCascadeResBlock, StableCascadeUNet
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from sote.train import pipelines, published, standins, world_start

TEXT_WIDTH = 64
IMAGE_WIDTH = 40
BESIDE_INPUT, BESIDE_OUTPUT = 0.7, 1.0  # a channel, see `unet`

PRIOR_CONFIG: dict[str, Any] = published.PRIOR | {  # 1.7 million numbers
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
    "block_out_channels": (64, 96, 128, 128),
    "num_attention_heads": (0, 0, 2, 4),
    "down_num_layers_per_block": (1, 1, 1, 1),
    "up_num_layers_per_block": (1, 1, 1, 1),
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


@dataclass(frozen=True)
class Configs:
    """Of Stage C, Stage B and the text encoder."""

    prior: Mapping[str, Any]
    decoder: Mapping[str, Any]
    text: Mapping[str, Any]


SMALL = Configs(PRIOR_CONFIG, DECODER_CONFIG, TEXT_CONFIG)
_WIDE = 4 * TEXT_WIDTH
LARGE = Configs(  # for a GPU
    PRIOR_CONFIG
    | {
        "conditioning_dim": 512,
        "block_out_channels": (512, 512),
        "num_attention_heads": (8, 8),
        "down_num_layers_per_block": (2, 6),
        "up_num_layers_per_block": (6, 2),
        "clip_text_in_channels": _WIDE,
        "clip_text_pooled_in_channels": _WIDE,
    },
    DECODER_CONFIG
    | {
        "conditioning_dim": 192,
        "block_out_channels": (192, 256, 384, 384),
        "num_attention_heads": (0, 0, 6, 6),
        "down_num_layers_per_block": (1, 2, 4, 2),
        "up_num_layers_per_block": (2, 4, 2, 1),
        "clip_text_pooled_in_channels": _WIDE,
    },
    TEXT_CONFIG
    | {
        "hidden_size": _WIDE,
        "intermediate_size": 4 * _WIDE,
        "num_hidden_layers": 4,
        "projection_dim": _WIDE,
    },
)


def text_encoder(seed: int, config: Mapping[str, Any] = TEXT_CONFIG) -> CLIPTextModelWithProjection:
    """The text encoder before training. Equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    model.config.architectures = ["CLIPTextModelWithProjection"]
    return model


def unet(config: Mapping[str, Any]) -> StableCascadeUNet:
    """A UNet before training, drawn from torch's generator.

    Its norms have no weights and take away how long each cell's vector is, which a UNet that predicts noise must know:
    16 numbers of noise vary in length by 18 %. Beside a fixed vector the length stays; it is put beside the input, and
    beside what the last level hands on.
    """
    net: StableCascadeUNet = StableCascadeUNet(**config)
    first = net.embedding[1]
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    with torch.no_grad():
        beside_C = torch.ones(config["block_out_channels"][0])
        beside_C[beside_C.numel() // 2 :] = -1
        first.bias.copy_(BESIDE_INPUT * beside_C)
        for block in net.up_blocks[-1].children():
            if isinstance(block, SDCascadeResBlock):
                last = block.channelwise[-1]
                assert isinstance(last, nn.Linear)
                last.bias.copy_(BESIDE_OUTPUT * beside_C)
    return net


def make(folder: Path, *, seed: int, configs: Configs = SMALL) -> None:
    """Write `folder`/prior and `folder`/decoder, untrained, without Stage A. Equal seeds give equal files."""
    words = text_encoder(seed, configs.text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        prior, decoder = unet(configs.prior), unet(configs.decoder)
        with torch.random.fork_rng(devices=[]):
            world_start.begin(decoder)
        vision = standins.IMAGE_CONFIG | {"projection_dim": IMAGE_WIDTH}
        image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision))
    image_encoder.config.architectures = ["CLIPVisionModelWithProjection"]
    prior.save_pretrained(folder / "prior" / "prior")
    decoder.save_pretrained(folder / "decoder" / "decoder")
    for name in ("prior", "decoder"):
        standins.write_clip(words, folder / name / "text_encoder")
        pipelines.furnish(folder / name, name)
    standins.write_clip(image_encoder, folder / "prior" / "image_encoder")
