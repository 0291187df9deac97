"""The characters and the words in a painting of the small world, by rules.

Each character, at a few sizes and places near the middle, is laid over the picture: its body and what it wears are
there where their colours are, and where its eyes would be it is dark. Each word is laid over the foot of the picture as
its letters' brightness.

Kind: pure.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from sote.data import painting, world
from sote.data.painting import Background, Look, Shape
from sote.data.world_ground import SIDE, Floats

_COARSE = 32  # side at which characters are sought
_RADII = (0.23, 0.25, 0.27, 0.29, 0.31)
_MOVES = (-2, -1, 0, 1, 2)  # pixels of _COARSE
_MOST_BODY, _MOST_WORN = 42.0, 55.0  # RGB distance, root of the mean square
_MOST_DRESSED = 60.0  # of a body in a colour that is not quite the character's
_LEAST_WORD, _LEAST_BAND = 0.55, 0.45  # correlation of the brightness
_EYE = 22.0  # levels that an eye is darker than the body; the world's are by 60 to 130
_SHIFTS = 5  # pixels that a word may be away from its place


@dataclass(frozen=True)
class Figure:
    """What was found: `character` where body and dress are a character's, `wears` also on a body that is nearly so."""

    character: str | None
    wears: str | None


@dataclass(frozen=True)
class Written:
    """What was found: `word` of world.WORDS or None, and the rows and columns of the band that it stands on."""

    word: str | None
    rows: slice
    columns: slice


@dataclass(frozen=True)
class _Drawn:
    """The coverage of one part of all characters at all places [N, P], times the colours' [N, 3 P], and sums [N]."""

    cover: Floats
    colours: Floats
    squares: Floats
    sums: Floats

    def away(self, pixels: Floats) -> Floats:
        """The root of the mean squared RGB distance [N] from a picture [_COARSE, _COARSE, 3]."""
        flat = pixels.reshape(-1, 3)
        squares = self.cover @ (flat**2).sum(axis=1) - 2 * (self.colours @ flat.ravel()) + self.squares
        root: Floats = np.sqrt(np.maximum(squares, 0) / self.sums).astype(np.float32)
        return root


def figure_in(pixels: Floats) -> Figure:
    """The character of a picture [SIDE, SIDE, 3]."""
    small = _coarse(pixels)
    drawn, body, worn = _all_drawn()
    body_away, worn_away = body.away(small), worn.away(small)
    best = int(np.argmin(body_away / _MOST_BODY + worn_away / _MOST_WORN))
    look, at = drawn[best]
    is_dressed = bool(worn_away[best] < _MOST_WORN and body_away[best] < _MOST_DRESSED) and _has_face(pixels, at)
    is_known = is_dressed and bool(body_away[best] < _MOST_BODY)
    return Figure(look.name if is_known else None, look.wears if is_dressed else None)


def _has_face(pixels: Floats, body: Shape) -> bool:
    """Whether there is something dark where both eyes are."""
    brightness, reach = pixels.mean(axis=2), 0.13 * body.radius
    skin = sum(painting.COLOURS[body.colour]) / 3
    for side in (-1, 1):
        x, y = body.x + 0.25 * side * body.radius, body.y - 0.02 * body.radius
        top, bottom, left, right = (round(edge * SIDE) for edge in (y - reach, y + reach, x - reach, x + reach))
        if brightness[top : bottom + 1, left : right + 1].min() > skin - _EYE:
            return False
    return True


def word_in(pixels: Floats) -> Written | None:
    """The word at the foot of a picture [SIDE, SIDE, 3], or the band alone."""
    brightness = np.pad(pixels.mean(axis=2) - 128, _SHIFTS, mode="edge")
    best: tuple[float, str, slice, slice] | None = None
    for word in world.WORDS:
        letters, top, left = _letters(word)
        height, width = letters.shape
        searched = brightness[top : top + height + 2 * _SHIFTS, left : left + width + 2 * _SHIFTS]
        windows = np.lib.stride_tricks.sliding_window_view(searched, letters.shape).reshape(-1, letters.size)
        means = windows.mean(axis=1)
        spread = np.sqrt(np.maximum(np.einsum("ij,ij->i", windows, windows) / letters.size - means**2, 12.0**2))
        # the letters' mean is 0, so that of the windows does not matter
        likeness = float((windows @ letters.ravel() / (spread * letters.size)).max())
        if not best or likeness > best[0]:
            best = likeness, word, slice(top - 3, top + height + 4), slice(max(left - 4, 0), left + width + 4)
    if not best or best[0] < _LEAST_BAND:
        return None
    return Written(best[1] if best[0] > _LEAST_WORD else None, best[2], best[3])


@cache
def _all_drawn() -> tuple[tuple[tuple[Look, Shape], ...], _Drawn, _Drawn]:
    looks, bodies, worn, colours = [], [], [], []
    moves = [(down, across) for down in _MOVES for across in _MOVES]
    for look in painting.LOOKS:
        for radius in _RADII:
            body, dress, colour = _one_drawn(look, radius)
            for down, across in moves:
                x, y = 0.5 + across / _COARSE, 0.55 + down / _COARSE
                looks.append((look, Shape(look.body, look.colour, x, y, radius)))
            bodies += [np.roll(body, move, axis=(0, 1)).ravel() for move in moves]
            worn += [np.roll(dress, move, axis=(0, 1)).ravel() for move in moves]
            colours += [np.roll(colour, move, axis=(0, 1)).reshape(-1, 3) for move in moves]
    drawn = np.array(colours)
    return tuple(looks), _together(np.array(bodies), drawn), _together(np.array(worn), drawn)


def _together(cover: Floats, colours: Floats) -> _Drawn:
    """From covers [N, P] and colours [N, P, 3]."""
    squares = (cover * (colours**2).sum(axis=2)).sum(axis=1)
    return _Drawn(cover, (colours * cover[..., None]).reshape(len(cover), -1), squares, cover.sum(axis=1))


def _one_drawn(look: Look, radius: float) -> tuple[Floats, Floats, Floats]:
    """(body, dress) as shares of each pixel [_COARSE, _COARSE], and colours [..., 3], of a character alone."""
    at = Shape(look.body, look.colour, 0.5, 0.55, radius)
    alpha = np.asarray(painting.paint_cutout(_scene(character=look.name, at=at)), dtype=np.float32)[..., 3] / 255
    colours = np.asarray(painting.paint(_scene(character=look.name, at=at)), dtype=np.float32)
    changed = np.abs(colours - np.asarray(painting.paint(_scene(shapes=(at,))), dtype=np.float32)).sum(axis=2) > 30
    is_above = np.arange(SIDE)[:, None] < (at.y - 0.25 * radius) * SIDE
    worn = np.where(changed & is_above, alpha, 0)
    body = np.where(changed & is_above, 0, alpha)
    return _coarse(body) ** 4, _coarse(worn) ** 4, _coarse(colours)


def _coarse(plane: Floats) -> Floats:
    """Means of a plane [SIDE, SIDE, ...]."""
    step = SIDE // _COARSE
    means: Floats = plane.reshape(_COARSE, step, _COARSE, step, -1).mean(axis=(1, 3)).astype(np.float32)
    return means[..., 0] if plane.ndim == 2 else means


def _scene(*, character: str | None = None, at: Shape | None = None, shapes: tuple[Shape, ...] = ()) -> painting.Scene:
    return painting.Scene(
        width=SIDE,
        height=SIDE,
        background=Background("simple", "white"),
        shapes=shapes,
        character=character,
        character_at=at,
        word=None,
        word_y=world.WORD_Y,
        artist="",
        year=world.FIRST_YEAR,
    )


@cache
def _letters(word: str) -> tuple[Floats, int, int]:
    """(brightness of the word on its band, of mean 0 and deviation 1; its top row; its left column)."""
    scene = painting.Scene(
        width=world.SIDE,
        height=world.SIDE,
        background=Background("simple", "grey"),
        shapes=(),
        character=None,
        character_at=None,
        word=word,
        word_y=world.WORD_Y,
        artist="",
        year=world.FIRST_YEAR,
    )
    # a little blurred, as paintings are: a sharp one is still like it
    small = painting.paint(scene).filter(ImageFilter.GaussianBlur(1.2)).resize((SIDE, SIDE), Image.Resampling.BOX)
    brightness = np.asarray(small, dtype=np.float32).mean(axis=2)
    rows, columns = np.nonzero(np.abs(brightness - brightness[0, 0]) > 10)
    top, left = int(rows.min()), int(columns.min())
    part = brightness[top : rows.max() + 1, left : columns.max() + 1]
    return ((part - part.mean()) / part.std()).astype(np.float32), top, left
