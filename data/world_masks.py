"""What shapes of the small world look like in a standard frame: filled silhouettes, and the parts of each style.

A frame is FRAME x FRAME pixels with the shape's centre in the middle and its radius UNIT pixels.

Kind: pure.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from sote.data import painting, world
from sote.data.painting import Point

Floats = npt.NDArray[np.float32]

FRAME, UNIT = 54, 20
TURNS = (-8.0, -4.0, 0.0, 4.0, 8.0)  # degrees; the world's shapes turn by 8 at the most
BLURS = (0.5, 1.2, 2.2)  # pixels of the frame
_FINE = 4  # painted at so many times the size, then reduced


@dataclass(frozen=True)
class Masks:
    """What a shape covers, as shares of each pixel: `parts` [P, FRAME * FRAME], outer first, and what solves for them."""

    style: str
    parts: Floats
    solver: Floats  # [P, FRAME * FRAME], the pseudo-inverse


@dataclass(frozen=True)
class Silhouettes:
    """Every kind at every turn, filled, and what a filled shape's area and middle say of its radius and centre."""

    kinds: tuple[str, ...]
    masks: Floats  # [K, T, FRAME * FRAME]
    areas: dict[str, float]  # in squared radii
    middles: dict[str, float]  # of the mass, in radii below the centre


@cache
def silhouettes() -> Silhouettes:
    filled = [[_reduced(_polygon(kind, 1.0, turn)).ravel() for turn in TURNS] for kind in painting.KINDS]
    areas, middles = {}, {}
    for kind, masks in zip(painting.KINDS, filled, strict=True):
        upright = masks[len(TURNS) // 2].reshape(FRAME, FRAME)
        heights = (np.arange(FRAME) + 0.5 - FRAME / 2) / UNIT
        areas[kind] = float(upright.sum()) / UNIT**2
        middles[kind] = float((upright.sum(axis=1) * heights).sum() / upright.sum())
    return Silhouettes(painting.KINDS, np.array(filled, dtype=np.float32), areas, middles)


@cache
def styled(kind: str) -> tuple[Masks, ...]:
    """The parts of a kind in each of the world's styles, at three turns and as sharp as each of BLURS."""
    found = []
    for style in world.STYLES:
        for turn in TURNS[::2]:
            sharp = [_reduced(part) for part in _parts(kind, style, turn)]
            for blur in BLURS:
                parts = np.array([ndimage.gaussian_filter(part, blur).ravel() for part in sharp], dtype=np.float32)
                found.append(Masks(style, parts, np.linalg.pinv(parts).T.astype(np.float32)))
    return tuple(found)


def _parts(kind: str, style: str, turn: float) -> list[Floats]:
    """As painting._paint_styled paints them: what has the rim's or the shape's colour, then what is within."""
    full = _polygon(kind, 1.0, turn)
    if style == "flat":
        return [full]
    if style == "striped":
        inner = np.minimum(_polygon(kind, 0.9, turn), _bars())
    else:
        inner = _polygon(kind, {"outlined": 0.78, "hollow": 0.58}[style], turn)
    return [full - inner, inner]


def _polygon(kind: str, share: float, turn: float) -> Floats:
    side = FRAME * _FINE
    points: list[Point] = painting.placed(painting.outline_of(kind), (side / 2, side / 2), share * UNIT * _FINE, turn)
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    return np.asarray(canvas, dtype=np.float32) / 255


def _bars() -> Floats:
    """The white bars of a striped shape, which do not turn with it."""
    bars = np.zeros((FRAME * _FINE, FRAME * _FINE), dtype=np.float32)
    for bar in range(-2, 3):
        middle = FRAME / 2 + bar * 0.46 * UNIT
        bars[round((middle - 0.11 * UNIT) * _FINE) : round((middle + 0.11 * UNIT) * _FINE)] = 1
    return bars


def _reduced(fine: Floats) -> Floats:
    return fine.reshape(FRAME, _FINE, FRAME, _FINE).mean(axis=(1, 3))
