"""Stage A's net in plain torch: RGB pixels <-> VQ latents, with the names and shapes of diffusers' PaellaVQModel.

diffusers has that class on its way out, and its import costs a process fifteen seconds. The codebook is held because
files have it; neither way quantises: Stage B is trained on the unquantised latents (Stability-AI/StableCascade 7a7d341,
modules/stage_a.py, train/train_b.py).

Shape suffixes: B batch, C channels, H height, W width; K values of the codebook.

Kind: actor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

EPS = 1e-6  # of the layer norms
WIDER = 4  # of a block's inner width
MODULATIONS = 6  # numbers of a block: gain, shift and weight of each of its two halves


@dataclass(frozen=True)
class Config:
    """What shapes a net, with the names of config.json; defaults are the published net's."""

    in_channels: int = 3
    out_channels: int = 3
    up_down_scale_factor: int = 2
    levels: int = 2
    bottleneck_blocks: int = 12
    embed_dim: int = 384
    latent_channels: int = 4
    num_vq_embeddings: int = 8192

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From a config.json; what does not shape the net is left aside."""
        return cls(**{field.name: int(values[field.name]) for field in fields(cls) if field.name in values})

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from the picture inwards."""
        return [self.embed_dim // 2**level for level in reversed(range(self.levels))]


class Block(nn.Module):
    """A residual block of two halves: over the neighbours of each channel, then over the channels of each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.depthwise = nn.Sequential(nn.ReplicationPad2d(1), nn.Conv2d(width, width, 3, groups=width))
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        inner = width * WIDER
        self.channelwise = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.gammas = nn.Parameter(torch.zeros(MODULATIONS))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        gain, shift, weight, gain2, shift2, weight2 = self.gammas
        near_BHWC = self.norm1(x_BCHW.permute(0, 2, 3, 1)) * (1 + gain) + shift
        x_BCHW = x_BCHW + self.depthwise(near_BHWC.permute(0, 3, 1, 2)) * weight
        here_BHWC = self.norm2(x_BCHW.permute(0, 2, 3, 1)) * (1 + gain2) + shift2
        x_BCHW = x_BCHW + self.channelwise(here_BHWC).permute(0, 3, 1, 2) * weight2
        return x_BCHW


class Vqgan(nn.Module):
    """Stage A. A side of the latents is a fourth of the picture's in the published net."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        widths, factor = config.widths, config.up_down_scale_factor
        self.in_block = nn.Sequential(
            nn.PixelUnshuffle(factor), nn.Conv2d(config.in_channels * factor**2, widths[0], kernel_size=1)
        )
        self.down_blocks = nn.Sequential(*_down(config))
        self.vquantizer = nn.ModuleDict({"embedding": nn.Embedding(config.num_vq_embeddings, config.latent_channels)})
        self.up_blocks = nn.Sequential(*_up(config))
        self.out_block = nn.Sequential(
            nn.Conv2d(widths[0], config.out_channels * factor**2, kernel_size=1), nn.PixelShuffle(factor)
        )

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """RGB in [0, 1], sides multiples of 4 -> latents [B,4,H/4,W/4], unscaled: about mean 0 and deviation 1."""
        latents_BCHW: Tensor = self.down_blocks(self.in_block(pixels_BCHW))
        return latents_BCHW

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents as `encode` gives them -> RGB, about [0, 1]."""
        pixels_BCHW: Tensor = self.out_block(self.up_blocks(latents_BCHW))
        return pixels_BCHW


def _down(config: Config) -> list[nn.Module]:
    widths = config.widths
    layers: list[nn.Module] = [Block(widths[0])]
    for outer, inner in pairwise(widths):
        layers += [nn.Conv2d(outer, inner, kernel_size=4, stride=2, padding=1), Block(inner)]
    narrow = nn.Conv2d(widths[-1], config.latent_channels, kernel_size=1, bias=False)
    return [*layers, nn.Sequential(narrow, nn.BatchNorm2d(config.latent_channels))]


def _up(config: Config) -> list[nn.Module]:
    inward = config.widths[::-1]
    layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(config.latent_channels, inward[0], kernel_size=1))]
    layers += [Block(inward[0]) for _ in range(config.bottleneck_blocks)]
    for inner, outer in pairwise(inward):
        layers += [nn.ConvTranspose2d(inner, outer, kernel_size=4, stride=2, padding=1), Block(outer)]
    return layers
