"""What one replica holds in memory: weights, and what the steps of its slots take at the largest size it is asked for.

Weights are counted. Activations are ESTIMATES: a block's peak, and what the levels of a UNet keep for the way up.

Kind: pure.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sote.serve.recipe import BEGUN_PER_SLOT, DType, ServeRecipe
from sote.serve.sizes import DECODER_COMPRESSION
from sote.train.shapes import ATTENTION
from sote.train.source import Source

FULL, HALF = 4, 2  # bytes of a number in float32, and in bfloat16 and float16
LOWEST_COMPRESSION: Final = 32  # of those that can be asked for: the most cells
# Of a ResBlock (train/blocks.py) in numbers of its own input: the input, its norm, and 4 times the width before and
# after GELU and response norm, the last with one copy in float32
BLOCK: Final = 20
KEPT: Final = 2  # of each level, for the way up: its output, and that of the mapper after it
VQGAN_BLOCK: Final = 10  # of Stage A's: as above without the response norm
WINDOW: Final = 77  # tokens
WINDOWS: Final = 2  # of a prompt, for the keys and values that are kept for all steps
COPIES: Final = 1 + BEGUN_PER_SLOT  # of those: of the rows that step as one batch, and of each that has begun
RESERVE: Final = 1_500_000_000  # CUDA's context, the libraries' workspaces, what the allocator cannot use
HOST_RESERVE: Final = 600_000_000  # a process with torch in it, measured on Linux


@dataclass(frozen=True)
class Need:
    """Bytes of one replica."""

    weights: float
    activations: float
    reserve: float

    @property
    def total(self) -> float:
        return self.weights + self.activations + self.reserve


def values(source: Source) -> int:
    """Number of values in a model's weights."""
    return sum(math.prod(shape) for shape in source.shapes.values())


def prior(recipe: ServeRecipe, models: Sequence[Source]) -> Need:
    """Of a replica of the prior; `models` are its UNet and what else it loads."""
    part, each = recipe.prior_replicas, width(recipe.model.prior_dtype, on_gpu=recipe.prior_replicas.gpus > 0)
    rows = part.slots * (2 if recipe.defaults.prior_guidance > 1 else 1)
    cells = recipe.limits.max_pixels / LOWEST_COMPRESSION**2
    config = models[0].config
    return Need(
        weights=each * sum(map(values, models)),
        activations=each * rows * (_steps(config, cells) + _conditions(config)),
        reserve=RESERVE if part.gpus else HOST_RESERVE,
    )


def decoder(recipe: ServeRecipe, unet: Source, vqgan: Source) -> Need:
    """Of a replica of the decoder: Stage A, in float32, decodes one picture while no step is made."""
    part, each = recipe.decoder_replicas, width(recipe.model.decoder_dtype, on_gpu=recipe.decoder_replicas.gpus > 0)
    rows = part.slots * (2 if recipe.defaults.decoder_guidance > 1 else 1)
    pixels = recipe.limits.max_pixels
    steps = each * rows * (_steps(unet.config, pixels / DECODER_COMPRESSION**2) + _conditions(unet.config))
    # Its widest tensors are those at half the side, with half the channels
    picture = FULL * VQGAN_BLOCK * pixels / 4 * unet_width(vqgan.config) / 2
    return Need(
        weights=each * values(unet) + FULL * values(vqgan),
        activations=max(steps, picture),
        reserve=RESERVE if part.gpus else HOST_RESERVE,
    )


def width(dtype: DType, *, on_gpu: bool) -> int:
    """Bytes of a weight."""
    return FULL if dtype == "float32" or (dtype == "auto" and not on_gpu) else HALF


def unet_width(config: Mapping[str, Any]) -> int:
    """Channels of Stage A at a quarter of the side."""
    return int(config.get("embed_dim", 384))


def _steps(config: Mapping[str, Any], cells: float) -> float:
    """Numbers of one row at the peak of a pass."""
    levels = list(_levels(config, cells))
    return max(BLOCK * numbers for numbers in levels) + KEPT * sum(levels)


def _levels(config: Mapping[str, Any], cells: float) -> Iterator[float]:
    """Numbers of one row's state at each level."""
    cells /= int(config.get("patch_size", 1)) ** 2
    switched = config.get("switch_level")
    for place, channels in enumerate(config["block_out_channels"]):
        if place and (switched is None or switched[place - 1]):
            cells /= 4
        yield cells * channels


def _conditions(config: Mapping[str, Any]) -> float:
    """Numbers of one row's keys and values, of all attention blocks, in all copies."""
    has_text = config.get("clip_text_in_channels") is not None
    tokens = int(config.get("clip_seq", 4)) * 2 + (WINDOW * WINDOWS if has_text else 0)
    kept = 0.0
    for place, channels in enumerate(config["block_out_channels"]):
        layers = config["down_num_layers_per_block"][place] + config["up_num_layers_per_block"][-1 - place]
        attentions = list(config["block_types_per_layer"][place]).count(ATTENTION)
        kept += 2 * tokens * channels * layers * attentions
    return COPIES * kept
