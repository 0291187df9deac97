"""The shapes in a painting of the small world, by rules: each one's kind, colour, style, centre and radius.

What stands out from the ground falls into pieces; a piece's filled silhouette is laid over those of all kinds, and the
style and the colours are those whose parts explain it best (least squares, so that a blur does not change the colour).

Kind: pure.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sote.data import painting, world
from sote.data.world_ground import SIDE, Floats, Ground
from sote.data.world_masks import FRAME, UNIT, Masks, silhouettes, styled

Bools = npt.NDArray[np.bool_]

STAND_OUT = 24.0  # RGB distance from the ground
_LEAST_AREA = 110  # pixels: a diamond of half the small radius
_LEAST_OVERLAP = 0.80  # intersection over union of the silhouettes
_MOST_COVERED = 0.6  # of a picture: more is noise
_FARTHEST = 62.0  # RGB distance of a colour from its name
_BAR_GAP = 9  # pixels between a small shape's bars that may have come apart


@dataclass(frozen=True)
class Seen:
    """A shape that was found. `x`, `y`, `radius` are shares of the side; `overlap` of its silhouette, 0 to 1."""

    kind: str
    colour: str | None
    style: str | None
    x: float
    y: float
    radius: float
    overlap: float


@dataclass(frozen=True)
class Found:
    """All shapes, and how many pieces are as large as they but of no kind."""

    shapes: tuple[Seen, ...]
    others: int


@dataclass(frozen=True)
class _Fit:
    """A silhouette laid over a piece; the centre and the radius in pixels."""

    kind: str
    overlap: float
    x: float
    y: float
    radius: float


def shapes_in(pixels: Floats, ground: Ground, away: Floats) -> Found:
    """The shapes of a picture [SIDE, SIDE, 3]; `away` is what it differs by from the ground, 0 where not to look."""
    distance = np.linalg.norm(away, axis=2)
    if (distance > STAND_OUT).mean() > _MOST_COVERED:
        return Found((), 0)
    best = Found((), 0)
    for reach in (1, _BAR_GAP):
        pieces = list(_pieces(distance, reach))
        seen = [_seen(pixels, ground, away, piece) for piece in pieces]
        shapes = tuple(shape for shape in seen if shape)
        if shapes and _quality(shapes) > _quality(best.shapes) + 0.03:
            smallest = min(math.pi * (shape.radius * SIDE) ** 2 for shape in shapes)
            lost = [piece for piece, shape in zip(pieces, seen, strict=True) if not shape]
            best = Found(shapes, sum(int(piece.sum()) > 0.3 * smallest for piece in lost))
    return best


def _quality(shapes: tuple[Seen, ...]) -> float:
    return sum(shape.overlap for shape in shapes) / len(shapes) if shapes else 0.0


def _pieces(distance: Floats, reach: int) -> Iterator[Bools]:
    """Filled masks of what hangs together when gaps of `reach` pixels from above to below are closed."""
    is_out = np.pad(distance > STAND_OUT, _BAR_GAP)
    closed = ndimage.binary_closing(is_out, np.ones((3, 3), dtype=bool))
    if reach > 1:
        closed |= ndimage.binary_closing(closed, np.ones((reach, 1), dtype=bool))
    filled = ndimage.binary_fill_holes(closed)[_BAR_GAP:-_BAR_GAP, _BAR_GAP:-_BAR_GAP]
    labels, count = ndimage.label(filled)
    for number, area in enumerate(np.bincount(labels.ravel(), minlength=count + 1)):
        if number and area >= _LEAST_AREA:
            yield labels == number


def _seen(pixels: Floats, ground: Ground, away: Floats, piece: Bools) -> Seen | None:
    """The shape that a piece is, if it is one."""
    near = ndimage.binary_dilation(piece, iterations=2)
    distance = np.linalg.norm(away, axis=2) * near
    # half way up to what stands out most is where a blurred edge was; a faint rim lies below that
    levels = (STAND_OUT, max(STAND_OUT, 0.45 * float(np.percentile(distance[piece], 85))))
    fits = [fit for level in levels for fit in _fits(_largest(distance > level, piece))]
    if not fits:
        return None
    top = max(fits, key=lambda fit: fit.overlap)
    if top.overlap < _LEAST_OVERLAP:
        return None
    same = [fit for fit in fits if fit.kind == top.kind and fit.overlap > top.overlap - 0.06]
    looks = [_styled(pixels, away * near[..., None], ground, fit) for fit in same]
    _, style, colour, fit = min(looks, key=lambda look: look[0])
    return Seen(fit.kind, colour, style, fit.x / SIDE, fit.y / SIDE, fit.radius / SIDE, top.overlap)


def _largest(mask: Bools, piece: Bools) -> Bools:
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(mask, np.ones((3, 3), dtype=bool)) & piece | mask)
    labels, count = ndimage.label(filled)
    if count < 2:
        return filled
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def _fits(mask: Bools) -> Iterator[_Fit]:
    """Each kind laid over the mask, with the mask's area and middle; the best of all turns."""
    area = int(mask.sum())
    if area < _LEAST_AREA:
        return
    y, x = (float(middle) + 0.5 for middle in ndimage.center_of_mass(mask))
    known, soft = silhouettes(), mask.astype(np.float32)
    for number, kind in enumerate(known.kinds):
        radius = math.sqrt(area / known.areas[kind])
        top = y - known.middles[kind] * radius
        there = _framed(soft, x, top, radius).ravel()
        shared = np.minimum(known.masks[number], there).sum(axis=1)
        either = np.maximum(known.masks[number], there).sum(axis=1)
        yield _Fit(kind, float((shared / either).max()), x, top, radius)


def _framed(plane: Floats, x: float, y: float, radius: float) -> Floats:
    """The plane [SIDE, SIDE, ...] in the standard frame of a shape, 0 beyond its edge, by bilinear interpolation."""
    down, across = _steps(y, radius), _steps(x, radius)
    rows = np.tensordot(down, plane, axes=(1, 0))
    return np.moveaxis(np.tensordot(across, rows, axes=(1, 1)), 0, 1)


def _steps(middle: float, radius: float) -> Floats:
    """What [FRAME, SIDE] takes from each pixel along one axis."""
    at = middle + (np.arange(FRAME) + 0.5 - FRAME / 2) * (radius / UNIT) - 0.5
    return np.maximum(1 - np.abs(at[:, None] - np.arange(SIDE)[None]), 0).astype(np.float32)


def _styled(pixels: Floats, away: Floats, ground: Ground, fit: _Fit) -> tuple[float, str | None, str | None, _Fit]:
    """(what is not explained, style, colour, the fit) of the best style."""
    target = _framed(away, fit.x, fit.y, fit.radius).reshape(-1, 3)
    below = _framed(pixels - away, fit.x, fit.y, fit.radius).reshape(-1, 3)
    total = max(float((target**2).sum()), 1.0)
    found = [_explained(masks, target, below, ground) for masks in styled(fit.kind)]
    lost, odd, style, colour = min(found, key=lambda one: one[0] / total + one[1])
    return lost / total + odd, style, colour, fit


def _explained(masks: Masks, target: Floats, below: Floats, ground: Ground) -> tuple[float, float, str, str | None]:
    """(squared error, how unlike the style its colours are, style, the colour's name)."""
    parts = masks.solver @ target
    lost = float(((target - masks.parts.T @ parts) ** 2).sum())
    share = masks.parts / masks.parts.sum(axis=1, keepdims=True)
    colours = parts + share @ below
    name = _named(colours[1 if masks.style == "outlined" else 0])
    odd = 0.0
    if masks.style == "outlined":
        odd = math.dist(colours[0], painting.COLOURS["white" if name == "black" else "black"])
    elif masks.style == "hollow":
        odd = math.dist(colours[1], ground.light[0])
    elif masks.style == "striped":
        odd = math.dist(colours[1], painting.COLOURS["white"])
    return lost, 0.3 * min(max((odd - 40) / 60, 0), 1), masks.style, name


def _named(colour: Floats) -> str | None:
    away = {name: math.dist(colour, painting.COLOURS[name]) for name in world.COLOURS}
    nearest = min(away, key=lambda name: away[name])
    return nearest if away[nearest] < _FARTHEST else None
