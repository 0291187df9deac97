"""The noise of one image: normal, with coarser noise and a shift of each channel where the recipe asks for them.

Pyramid noise: Stability-AI/StableCascade 7a7d341, train/train_b.py `_pyramid_noise(size_range=[1, 16])`, where the
weight is 0.75. Offset noise: gdf/__init__.py `diffuse(offset_noise)`. In that order, as train_b.py has them.

Shapes: C channels, H and W latent cells.

Kind: actor.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sote.train.recipe import DiffusionPart

LEVELS = 10  # train_b.py: the coarsest noise is of 2 ** 9 cells, should there be so many
COARSEST, FINEST = 1, 16  # cells of a side that noise is added at (train_b.py, size_range)


def draw(random: np.random.Generator, shape: tuple[int, int, int], part: DiffusionPart) -> Tensor:
    """Noise [C,H,W] in float32. Without offset and pyramid noise it is the generator's normal numbers themselves."""
    noise_CHW = _normal(random, shape)
    channels, height, width = shape
    if part.pyramid_noise is not None:
        levels = coarse_levels(height, width)
        coarse = [_normal(random, (channels, *sides)) for _, sides in levels]
        weights = [part.pyramid_noise**level for level, _ in levels]
        noise_CHW = pyramid(noise_CHW, coarse=coarse, weights=weights)
    if part.offset_noise:
        noise_CHW = noise_CHW + part.offset_noise * _normal(random, (channels, 1, 1))
    return noise_CHW


def coarse_levels(height: int, width: int) -> list[tuple[int, tuple[int, int]]]:
    """The levels at which coarser noise is added, and its sides: H/2^level, W/2^level, where one is in [1, 16].

    train_b.py takes both sides from the height, a slip: for pictures that are not square its coarse noise is of squares
    that are not square when they are stretched. Here the width comes from the width; square pictures are the same.
    """
    found = []
    for level in range(1, LEVELS):
        sides = (height // 2**level, width // 2**level)
        if min(sides) >= COARSEST and min(sides) <= FINEST:
            found.append((level, sides))
        if min(sides) <= COARSEST:
            break
    return found


def pyramid(noise_CHW: Tensor, *, coarse: list[Tensor], weights: list[float]) -> Tensor:
    """The sum of noise and weighted coarser noise (each cell repeated), divided so that its deviation stays 1."""
    size = noise_CHW.shape[-2:]
    for part_Chw, weight in zip(coarse, weights, strict=True):
        noise_CHW = noise_CHW + interpolate(part_Chw[None], size=size, mode="nearest")[0] * weight
    return noise_CHW / math.sqrt(1 + sum(weight**2 for weight in weights))


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(random.standard_normal(shape, np.float32))
