"""Sizes of pictures and of the latents that belong to them.

A side is a multiple of 128: there floor(px / 42) (ComfyUI), ceil(px / 42.67) (diffusers) and px * 3 / 128 agree, and
the decoder gives back exactly the size asked for. This holds up to 2560 pixels; at 2688 they part.

Kind: pure.
"""

import math
from typing import Final, Literal

SIDE_STEP = 128
MIN_SIDE = 256  # ComfyUI's StableCascade_EmptyLatentImage
MAX_SIDE = 2560
DECODER_COMPRESSION = 4  # pixels per VQ latent cell: Stage A halves twice

Preset = Literal["square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"]
# fal's names. Its 16:9 is 1024x576, but 576 is no multiple of 128: the seed's own 2048x1152 is the exact ratio
PRESETS: Final[dict[Preset, tuple[int, int]]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (1152, 2048),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (2048, 1152),
}


def check_side(side: int) -> int:
    """`side` pixels, if the model can make it. Raises ValueError that names the nearest sides it can make."""
    if side % SIDE_STEP == 0 and MIN_SIDE <= side <= MAX_SIDE:
        return side
    below = min(max(side // SIDE_STEP * SIDE_STEP, MIN_SIDE), MAX_SIDE)
    above = min(below + SIDE_STEP, MAX_SIDE) if side > below else below
    near = f"{below}" if below == above else f"{below} and {above}"
    if side % SIDE_STEP == 0:
        raise ValueError(f"{side} is outside of {MIN_SIDE} to {MAX_SIDE} pixels; nearest: {near}")
    raise ValueError(f"{side} is not a multiple of {SIDE_STEP} pixels; nearest: {near}")


def nearest_side(side: int) -> int:
    """The side nearest to `side` that the model can make; of two equally near the larger."""
    return min(max((side + SIDE_STEP // 2) // SIDE_STEP * SIDE_STEP, MIN_SIDE), MAX_SIDE)


def latent_side(side: int, compression: float) -> int:
    """Cells of Stage C latents along a side of `side` pixels.

    A whole compression such as 42 rounds down as ComfyUI does; another such as 42.67 rounds up as diffusers does.
    """
    return side // int(compression) if float(compression).is_integer() else math.ceil(side / compression)


def vq_side(side: int) -> int:
    """Cells of VQ latents (Stage B) along a side of `side` pixels. Does not depend on the compression."""
    return side // DECODER_COMPRESSION
