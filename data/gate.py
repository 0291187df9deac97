"""The numeric gate: an engine must say of a fixed sample what float32 says, or the run ends.

The sample is four pictures drawn from a counter-based generator: soft fields of colour, hard-edged shapes, noise, and
all of these, so that flat areas, edges and texture all pass the model. Shape suffix: NHWC pictures, height, width,
colour.

Kind: pure.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from sote.cluster.errors import RunFailed

SEED = 11_003
PICTURES = 4
WAVES, SHAPES = 6, 12  # in one picture

log = logging.getLogger(__name__)


def sample(*, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [4, height, width, 3], the same on every machine."""
    soft, hard, both = (_soft(width, height, at) for at in range(3))
    noise = np.random.default_rng([SEED, 3]).integers(0, 256, (height, width, 3))
    _paint_shapes(hard, 1)
    _paint_shapes(both, 2)
    mixed = np.clip(both + (noise - 128) * 0.2, 0, 255)
    pictures_NHWC: NDArray[np.uint8] = np.stack([soft, hard, noise.astype(np.float64), mixed]).round().astype(np.uint8)
    return pictures_NHWC


def difference(found: NDArray[np.float32], reference: NDArray[np.float32], *, limit: float, what: str) -> float:
    """The largest difference of two engines' numbers; RunFailed if it is above `limit`, or not finite.

    `what` names stage, engine, device and dtype for the message.
    """
    if found.shape != reference.shape:
        raise RunFailed(f"{what}: gives {found.shape} for the numeric gate's sample, float32 gives {reference.shape}")
    worst = float(np.abs(found.astype(np.float64) - reference).max())
    log.info("numeric gate what=%s max_difference=%.6f limit=%.6f", what, worst, limit)
    if not worst <= limit:
        raise RunFailed(
            f"{what}: differs by {worst:.4g} from float32 on a fixed sample, above max_difference ({limit:g}): "
            "take dtype float32 or another engine"
        )
    return worst


def _soft(width: int, height: int, number: int) -> NDArray[np.float64]:
    """Slow waves of colour around the middle of the range."""
    draw = np.random.default_rng([SEED, number])
    down, across = np.arange(height)[:, None, None] / height, np.arange(width)[None, :, None] / width
    picture_HWC = np.full((height, width, 3), 128.0)
    for _ in range(WAVES):
        turns, phase, strength = draw.uniform(-3, 3, 2), draw.uniform(0, 1, 3), draw.uniform(5, 35, 3)
        picture_HWC += strength * np.cos(2 * np.pi * (turns[0] * down + turns[1] * across + phase))
    return np.asarray(picture_HWC.clip(0, 255))


def _paint_shapes(picture_HWC: NDArray[np.float64], number: int) -> None:
    """Discs and boxes of one colour each, in place."""
    height, width, _ = picture_HWC.shape
    draw = np.random.default_rng([SEED, 10 + number])
    down, across = np.arange(height)[:, None] / height, np.arange(width)[None, :] / width
    for at in range(SHAPES):
        y, x, half, colour = *draw.uniform(0, 1, 2), draw.uniform(0.03, 0.2), draw.integers(0, 256, 3)
        away_y, away_x = np.abs(down - y), np.abs(across - x)
        inside = (away_y**2 + away_x**2 < half**2) if at % 2 else (away_y < half) & (away_x < half)
        picture_HWC[inside] = colour
