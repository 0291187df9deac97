"""The shapes in a painting of the small world, by rules: each one's kind, colour, style, centre and radius.

What stands out from the ground falls into pieces, which are cut out in a few ways; a piece's filled silhouette is laid
over those of all kinds, and its style and colour are those that explain best what is seen (least squares, so that a
blur does not change the colour). The way of cutting that explains most is taken.

Kind: pure.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sote.data import painting, world
from sote.data.world_ground import SIDE, STAND_OUT, Floats, Ground
from sote.data.world_masks import FRAME, UNIT, silhouettes, styled

Bools = npt.NDArray[np.bool_]

_LEAST_AREA = 110  # pixels: a diamond of half the smallest radius
_LEAST_RADIUS = 0.09  # share of the side; the smallest shapes of the world have 0.13
_LEAST_OVERLAP = 0.82  # intersection over union of the silhouettes
_LEAST_CLEAR_OVERLAP, _CLEARLY = 0.72, 0.05  # or so much, if the next kind's is less by this
_LEAST_EXPLAINED = 0.3  # of what stands out: where there is less, shapes are not what the picture shows
_FARTHEST = 62.0  # RGB distance of a colour from its name
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)  # of a shape's own colour in what is painted
_BAR_GAP, _WIDE_BAR_GAP = 9, 13  # pixels between a small and a large shape's bars that may have come apart
_BREAK = 5  # pixels of an outline that may be missing
_ENOUGH = 0.85  # of what stands out is explained: no other way of cutting is tried
_CLEAR = 0.06  # of what stands out is not explained: as in a sharp picture
_SQUARE = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Seen:
    """A shape that was found. `x`, `y`, `radius` are shares of the side; `explained` is a share, of its silhouette
    and its colours."""

    kind: str
    colour: str | None
    style: str
    x: float
    y: float
    radius: float
    explained: float


@dataclass(frozen=True)
class Found:
    """All shapes, how many pieces are as large as they but of no kind, and what share of the picture this explains."""

    shapes: tuple[Seen, ...] = ()
    others: int = 0
    explained: float = 0.0


@dataclass(frozen=True)
class _Fit:
    """A silhouette laid over a piece; the centre and the radius in pixels."""

    kind: str
    overlap: float
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class _Look:
    """How a piece is painted; `lost` is the share of what stands out that this does not explain."""

    style: str
    colour: str | None
    radius: float
    lost: float


@dataclass(frozen=True)
class _View:
    """A picture [SIDE, SIDE, 3] over its ground: `away` is what it differs by, 0 where not to look."""

    below: Floats
    away: Floats
    distance: Floats  # [SIDE, SIDE], the length of `away`
    light: Floats  # [3], the ground's colour


def shapes_in(pixels: Floats, ground: Ground, away: Floats) -> Found:
    """The shapes of a picture [SIDE, SIDE, 3]; `away` is what it differs by from the ground, 0 where not to look."""
    view = _View((pixels - away).astype(np.float32), away, np.linalg.norm(away, axis=2), ground.light[0])
    is_out = view.distance > STAND_OUT
    if int(is_out.sum()) < _LEAST_AREA // 2:
        return Found()
    # half way up to what stands out most is where a blurred edge was; a faint rim lies below that
    half = max(STAND_OUT, 0.45 * float(np.percentile(view.distance[is_out], 80)))
    best = Found()
    ways: list[Callable[[], Bools]] = [
        lambda: _filled(is_out, 1),
        lambda: _filled(view.distance > half, 1),
        lambda: _filled(is_out, _BAR_GAP),
        lambda: _filled(is_out, _WIDE_BAR_GAP),
        lambda: _filled(is_out, 1, broken=_BREAK),
        lambda: _cut(_filled(is_out, 1)),
    ]
    for way in ways:
        found = _found(view, way())
        if found.explained > best.explained + 0.01:
            best = found
        if best.explained > _ENOUGH:
            break
    return best if best.explained > _LEAST_EXPLAINED else Found()


def _found(view: _View, mask: Bools) -> Found:
    """What the pieces of a mask are."""
    pieces = list(_pieces(mask))
    seen = [_seen(view, piece) for piece in pieces]
    shapes = tuple(shape for shape in seen if shape)
    if not shapes:
        return Found()
    energy = view.distance**2
    whole = float(energy[view.distance > STAND_OUT].sum())
    known = sum(float(energy[p].sum()) * shape.explained for p, shape in zip(pieces, seen, strict=True) if shape)
    smallest = min(float(p.sum()) for p, shape in zip(pieces, seen, strict=True) if shape)
    others = sum(float(p.sum()) > 0.5 * smallest for p, shape in zip(pieces, seen, strict=True) if not shape)
    return Found(shapes, others, known / whole)


def _filled(is_out: Bools, reach: int, *, broken: int = 1) -> Bools:
    """The mask with its holes filled, when gaps of `reach` pixels from above to below, and of `broken` pixels in any
    direction, are closed."""
    margin = _WIDE_BAR_GAP
    closed = ndimage.binary_closing(np.pad(is_out, margin), _SQUARE)
    closed |= ndimage.binary_closing(closed, np.ones((reach, 1), dtype=bool))
    closed |= ndimage.binary_closing(closed, np.ones((broken, broken), dtype=bool))
    filled: Bools = ndimage.binary_fill_holes(closed)[margin:-margin, margin:-margin]
    return filled


def _cut(mask: Bools) -> Bools:
    """The mask with thin bridges cut: each pixel goes to the nearest of the mask's thick parts."""
    depth = ndimage.distance_transform_edt(mask)
    labels, count = ndimage.label(depth > 0.6 * depth.max())
    if count < 2:
        return np.zeros_like(mask)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    owners = np.where(mask, labels[tuple(nearest)], 0)
    same = (owners == np.roll(owners, 1, axis=0)) & (owners == np.roll(owners, 1, axis=1))
    apart: Bools = mask & same
    return apart


def _pieces(mask: Bools) -> Iterator[Bools]:
    labels, count = ndimage.label(mask)
    for number, area in enumerate(np.bincount(labels.ravel(), minlength=count + 1)):
        if number and area >= _LEAST_AREA:
            yield labels == number


def _seen(view: _View, piece: Bools) -> Seen | None:
    """The shape that a piece is, if it is one."""
    fit, second = sorted(_fits(piece), key=lambda fit: -fit.overlap)[:2]
    is_clear = fit.overlap >= _LEAST_CLEAR_OVERLAP and fit.overlap - second.overlap >= _CLEARLY
    if not (fit.overlap >= _LEAST_OVERLAP or is_clear) or fit.radius < _LEAST_RADIUS * SIDE:
        return None
    near = ndimage.binary_dilation(piece, _SQUARE, iterations=2)
    look = _styled(view, near, fit)
    if look.lost > _CLEAR:  # a blurred dark rim reaches beyond its place
        inside = [_styled(view, near, replace(fit, radius=share * fit.radius)) for share in (0.95, 0.9, 0.85)]
        look = min([look, *inside], key=lambda look: look.lost)
    explained = fit.overlap * (1 - min(look.lost, 1))
    return Seen(fit.kind, look.colour, look.style, fit.x / SIDE, fit.y / SIDE, look.radius / SIDE, explained)


def _fits(mask: Bools) -> Iterator[_Fit]:
    """Each kind laid over the mask, with the mask's area and middle; the best of all turns."""
    area = int(mask.sum())
    y, x = (float(middle) + 0.5 for middle in ndimage.center_of_mass(mask))
    known, soft = silhouettes(), mask.astype(np.float32)
    for number, kind in enumerate(known.kinds):
        radius = math.sqrt(area / known.areas[kind])
        middle = y - known.middles[kind] * radius
        down, across = _steps(middle, radius), _steps(x, radius)
        there = (down @ soft @ across.T).ravel()
        # both are shares, so the union is what is left of the sum
        shared = np.minimum(known.masks[number], there).sum(axis=1)
        either = known.masks[number].sum(axis=1) + there.sum() - shared
        yield _Fit(kind, float((shared / either).max()), x, middle, radius)


def _steps(middle: float, radius: float) -> Floats:
    """What each of FRAME rows takes from SIDE pixels along one axis, by linear interpolation: [FRAME, SIDE]."""
    at = middle + (np.arange(FRAME) + 0.5 - FRAME / 2) * (radius / UNIT) - 0.5
    steps: Floats = np.maximum(1 - np.abs(at[:, None] - np.arange(SIDE)[None]), 0).astype(np.float32)
    return steps


def _styled(view: _View, near: Bools, fit: _Fit) -> _Look:
    """The style and the colour that explain best what is near a piece."""
    down, across = _steps(fit.y, fit.radius), _steps(fit.x, fit.radius)
    planes = np.concatenate([view.away * near[..., None], view.below], axis=2).transpose(2, 0, 1)
    framed = (down @ planes @ across.T).reshape(6, -1).T
    target = framed[:, :3]
    masks = styled(fit.kind)
    own, other = masks.own @ framed, masks.other @ framed
    own_square, other_square, both = (masks.products[:, [which]] for which in range(3))
    # what the other part adds to the ground, and, given that, the own colour of least squares
    added = np.array([_other_colour(view, *look) for look in zip(masks.styles, masks.is_white, strict=True)])
    added = added - other[:, 3:] / masks.areas[:, 1:]
    colour = (own[:, :3] - both * added) / own_square
    explained = 2 * (added * other[:, :3] + colour * own[:, :3] - both * added * colour)
    explained = (explained - other_square * added**2 - own_square * colour**2).sum(axis=1)
    share = 1 - explained / max(float((target**2).sum()), 1.0)
    names = [_named(one, view.light) for one in colour + own[:, 3:] / masks.areas[:, :1]]
    # a black shape has a white rim and all others a black one
    odd = [
        style == "outlined" and (name == "black") != white
        for style, white, name in zip(masks.styles, masks.is_white, names, strict=True)
    ]
    best = int(np.argmin(share + 0.2 * np.array(odd)))
    return _Look(masks.styles[best], names[best], fit.radius, float(share[best]))


def _other_colour(view: _View, style: str, is_white: bool) -> Floats:
    """The colour that a style sets for the part that has not the shape's own."""
    if style in ("hollow", "flat"):
        return view.light
    return np.array(painting.COLOURS["white" if is_white else "black"], dtype=np.float32)


def _named(colour: Floats, light: Floats) -> str | None:
    """The colour that this is, or is with some of the ground's light in it, as thin bars and rims are painted."""
    away = {
        name: min(
            math.dist(colour, share * np.array(painting.COLOURS[name]) + (1 - share) * light) + _FARTHEST * (1 - share)
            for share in _SHARES
        )
        for name in world.COLOURS
    }
    nearest = min(away, key=lambda name: away[name])
    return nearest if away[nearest] < _FARTHEST else None
