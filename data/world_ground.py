"""The ground of a painting of the small world, by rules: its colour, its pattern, and what stands out from it.

Pictures are read at half the size of the world's, 128 x 128, as float RGB of 0 to 255.

Kind: pure.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from sote.data import painting, world

Floats = npt.NDArray[np.float32]
Picture = Image.Image | npt.NDArray[np.uint8]

SIDE = 128  # of the picture that is read
STAND_OUT = 24.0  # RGB distance from the ground: what is farther is no ground
_FRAME = 6  # pixels at the edge that show ground
_LEAST_DROP = 35.0  # levels from top to bottom; the world's gradients drop by 75 to 95
_LEAST_STEP = 13.0  # levels between the two tones; the world's differ by 25 to 32
_LEAST_WAVE = 0.5  # share of a clean pattern's Fourier amplitude
_FARTHEST = 45.0  # RGB distance of a ground from its colour's name
_COARSE = 64  # side at which waves are sought


@dataclass(frozen=True)
class Ground:
    """`light` and `dark` [SIDE, 3]: the two tones of each row, equal where there is one tone."""

    pattern: str | None
    colour: str | None
    light: Floats
    dark: Floats

    def below(self, pixels: Floats) -> Floats:
        """The ground's colour that is nearest to each pixel of [SIDE, SIDE, 3]."""
        start, way = self.light[:, None], (self.dark - self.light)[:, None]
        length = np.maximum((way[:, 0] ** 2).sum(axis=1), 1e-6)
        share = np.clip(np.einsum("yxc,yc->yx", pixels - start, way[:, 0]) / length[:, None], 0, 1)
        below: Floats = start + share[..., None] * way
        return below


def pixels_of(picture: Picture) -> Floats:
    """The picture [SIDE, SIDE, 3]. Raises ValueError for an array that is no RGB picture of 8 bits."""
    if isinstance(picture, np.ndarray) and (picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3):
        raise ValueError(f"an RGB picture is uint8 [height, width, 3], not {picture.dtype} {picture.shape}")
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture.convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)


def ground_of(pixels: Floats) -> Ground:
    """The ground of a picture [SIDE, SIDE, 3], from its frame and, for the pattern, from all that is like the frame."""
    sides = np.concatenate([pixels[:, :_FRAME], pixels[:, -_FRAME:]], axis=1)
    rows = np.median(sides, axis=1)
    heights = np.arange(SIDE) / (SIDE - 1)
    fit = np.polynomial.polynomial.polyfit(heights, rows, 1)
    line = (fit[0] + heights[:, None] * fit[1]).astype(np.float32)
    drop, spread = -float(fit[1].mean()), float((rows - line).mean(axis=1).std())
    if drop > _LEAST_DROP and spread < 0.12 * drop:
        return Ground("gradient", _named(line[0]), line, line)
    frame = np.concatenate([sides.reshape(-1, 3), pixels[:_FRAME].reshape(-1, 3)])
    light, dark = _tones(frame)
    flat = np.median(frame, axis=0)
    simple = Ground("simple", _named(flat), _every_row(flat), _every_row(flat))
    if float((light - dark).mean()) < _LEAST_STEP:
        return simple
    two = Ground(None, _named(light), _every_row(light), _every_row(dark))
    return Ground(_wave(pixels, two), two.colour, two.light, two.dark)


def _every_row(colour: Floats) -> Floats:
    return np.repeat(colour[None].astype(np.float32), SIDE, axis=0)


def _tones(frame: Floats) -> tuple[Floats, Floats]:
    """The colours of the brighter and the darker pixels of [N, 3]: two means by Lloyd's steps."""
    brightness = frame.mean(axis=1)
    low, high = np.percentile(brightness, (15, 85))
    for _ in range(4):
        is_light = brightness > (low + high) / 2
        if is_light.all() or not is_light.any():
            return frame.mean(axis=0), frame.mean(axis=0)
        low, high = brightness[~is_light].mean(), brightness[is_light].mean()
    return np.median(frame[is_light], axis=0), np.median(frame[~is_light], axis=0)


def _named(colour: Floats) -> str | None:
    """The nearest of the world's grounds."""
    away = {name: math.dist(colour, painting.BACKGROUND_COLOURS[name]) for name in world.GROUNDS}
    nearest = min(away, key=lambda name: away[name])
    return nearest if away[nearest] < _FARTHEST else None


def _wave(pixels: Floats, ground: Ground) -> str | None:
    """Striped or checkered, by the Fourier amplitudes of the tones; None where it is neither."""
    near = np.linalg.norm(pixels - ground.below(pixels), axis=2) < STAND_OUT
    middle = float((ground.light[0] + ground.dark[0]).mean()) / 2
    half = max(float((ground.light[0] - ground.dark[0]).mean()) / 2, 1.0)
    tones = np.where(near, np.clip((pixels.mean(axis=2) - middle) / half, -1, 1), 0).astype(np.float32)
    step = SIDE // _COARSE
    tones = tones.reshape(_COARSE, step, _COARSE, step).mean(axis=(1, 3))
    parts = _waves() @ tones.ravel() / max(float(near.mean()) * tones.size, 1.0)
    amplitudes = np.hypot(*parts.reshape(2, -1))
    # a wave of +1 and -1 has a Fourier amplitude of 2/pi; a checkerboard has (2/pi)^2 along both diagonals
    stripes = float(amplitudes[6:].max()) / (2 / math.pi)
    checkers = float(amplitudes[:6].reshape(2, 3).min(axis=0).max()) / (2 / math.pi) ** 2
    if max(stripes, checkers) < _LEAST_WAVE:
        return None
    return "striped" if stripes > checkers else "checkered"


@cache
def _waves() -> Floats:
    """Cosines and sines [2 x waves, pixels]: both diagonals of checkerboards at three periods, then stripes."""
    y, x = np.mgrid[:_COARSE, :_COARSE].reshape(2, -1) / _COARSE
    # waves in a side: 4 of a checkerboard of 8 fields, 4.5 of stripes of a ninth
    found = [(4 * scale, sign * 4 * scale) for sign in (1, -1) for scale in (0.9, 1.0, 1.1)]
    for angle in np.deg2rad(np.arange(0, 180, 6)):
        found += [(4.5 * scale * math.cos(angle), 4.5 * scale * math.sin(angle)) for scale in (0.88, 1.0, 1.12)]
    phases = np.array([2 * math.pi * (across * x + down * y) for across, down in found])
    return np.concatenate([np.cos(phases), np.sin(phases)]).astype(np.float32)
