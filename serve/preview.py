"""Small pictures of latents while they are sampled: a linear map of their channels to red, green and blue, as JPEG.

Source of the numbers: ComfyUI a125cd8 comfy/latent_formats.py, SC_Prior and SC_B (published facts; they have no bias),
which map latents in the sampler's scale to [-1, 1].

Suffixes: C channels, H and W cells or pixels.

Kind: pure, but for Pillow.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from sote.serve.settings import Numbers, Progress, StageName

if TYPE_CHECKING:
    from sote.serve.rows import Seen

SIDE = 256  # pixels of a preview's long side, about
QUALITY = 75  # Pillow's own default; a preview is looked at for an eighth of a second

PRIOR: Final = (
    (-0.0326, -0.0204, -0.0127),
    (-0.1592, -0.0427, 0.0216),
    (0.0873, 0.0638, -0.0020),
    (-0.0602, 0.0442, 0.1304),
    (0.0800, -0.0313, -0.1796),
    (-0.0810, -0.0638, -0.1581),
    (0.1791, 0.1180, 0.0967),
    (0.0740, 0.1416, 0.0432),
    (-0.1745, -0.1888, -0.1373),
    (0.2412, 0.1577, 0.0928),
    (0.1908, 0.0998, 0.0682),
    (0.0209, 0.0365, -0.0092),
    (0.0448, -0.0650, -0.1728),
    (-0.1658, -0.1045, -0.1308),
    (0.0542, 0.1545, 0.1325),
    (-0.0352, -0.1672, -0.2541),
)
DECODER: Final = (
    (0.1121, 0.2006, 0.1023),
    (-0.2093, -0.0222, -0.0195),
    (-0.3087, -0.1535, 0.0366),
    (0.0290, -0.1574, -0.4078),
)
FACTORS: Final[dict[StageName, Numbers]] = {
    "prior": np.array(PRIOR, np.float32),
    "decoder": np.array(DECODER, np.float32),
}


def progress(stage: StageName, seen: "Seen") -> Progress:
    """What a watcher is told of a step."""
    return Progress(stage, seen.step, seen.steps, preview=jpeg(seen.x0.numpy(), stage))


def telling(stage: StageName, watch: Callable[[Progress], None]) -> "Callable[[Seen], None]":
    """Tells `watch` of each step that is seen."""
    return lambda seen: watch(progress(stage, seen))


def jpeg(latents_CHW: Numbers, stage: StageName) -> bytes:
    """A JPEG of what latents [16, h, w] of the prior or [4, h, w] of the decoder will look like.

    It is scaled up to a long side of about 256 pixels. Values that are not finite count as 0.
    """
    mixed_HWC = np.moveaxis(np.nan_to_num(latents_CHW, posinf=0.0, neginf=0.0), 0, -1) @ FACTORS[stage]
    pixels_HWC = (((mixed_HWC + 1) / 2).clip(0, 1) * 255).round().astype(np.uint8)
    height, width = pixels_HWC.shape[:2]
    times = max(1, round(SIDE / max(height, width)))
    image = Image.fromarray(pixels_HWC).resize((times * width, times * height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
