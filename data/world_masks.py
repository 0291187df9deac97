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
    """A kind in N looks: what its own colour covers, and what a colour that its style sets."""

    styles: tuple[str, ...]  # [N]
    is_white: npt.NDArray[np.bool_]  # [N], of the other part; it is a rim in the style "outlined"
    own: Floats  # [N, FRAME * FRAME]
    other: Floats  # [N, FRAME * FRAME]
    areas: Floats  # [N, 2], of both parts
    products: Floats  # [N, 3]: own with own, other with other, own with other


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
def styled(kind: str) -> Masks:
    """A kind in each of the world's styles, at three turns and as sharp as each of BLURS."""
    styles, is_white, own, other = [], [], [], []
    for style in world.STYLES:
        for turn in TURNS[::2]:
            sharp = [_reduced(part) for part in _parts(kind, style, turn)]
            for blur in BLURS:
                parts = [ndimage.gaussian_filter(part, blur).ravel() for part in sharp]
                for white in (False, True) if style == "outlined" else (style == "striped",):
                    styles.append(style)
                    is_white.append(white)
                    own.append(parts[0])
                    other.append(parts[1])
    both = np.array([own, other], dtype=np.float32)
    areas = np.maximum(both.sum(axis=2), 1e-6).T
    products = np.stack([(both[one] * both[two]).sum(axis=1) for one, two in ((0, 0), (1, 1), (0, 1))], axis=1)
    return Masks(tuple(styles), np.array(is_white), both[0], both[1], areas, products)


def _parts(kind: str, style: str, turn: float) -> tuple[Floats, Floats]:
    """(its own colour's part, the other part), as painting.paint paints them."""
    full = _polygon(kind, 1.0, turn)
    if style == "flat":
        return full, np.zeros_like(full)
    if style == "striped":
        bars: Floats = np.minimum(_polygon(kind, 0.9, turn), _bars())
        return full - bars, bars
    inner = _polygon(kind, {"outlined": 0.78, "hollow": 0.58}[style], turn)
    return (inner, full - inner) if style == "outlined" else (full - inner, inner)


def _polygon(kind: str, share: float, turn: float) -> Floats:
    side = FRAME * _FINE
    points: list[Point] = painting.placed(painting.outline_of(kind), (side / 2, side / 2), share * UNIT * _FINE, turn)
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    return np.asarray(canvas, dtype=np.float32) / np.float32(255)


def _bars() -> Floats:
    """The white bars of a striped shape, which do not turn with it."""
    bars = np.zeros((FRAME * _FINE, FRAME * _FINE), dtype=np.float32)
    for bar in range(-2, 3):
        middle = FRAME / 2 + bar * 0.46 * UNIT
        bars[round((middle - 0.11 * UNIT) * _FINE) : round((middle + 0.11 * UNIT) * _FINE)] = 1
    return bars


def _reduced(fine: Floats) -> Floats:
    means: Floats = fine.reshape(FRAME, _FINE, FRAME, _FINE).mean(axis=(1, 3), dtype=np.float32)
    return means
