"""The truth about a painting of the small world: which of world.GROUPS' tags a person would say are true of it.

By rules alone; nothing here is learned, so a painting's tags do not depend on the models that painted or tagged.
Each group has one tag at the most, `word` two; where nothing can be seen of a group it has none. A combination that the
world holds out is read like all others, so that the concept can be measured.

Kind: pure.
"""

import math
from collections import Counter

import numpy as np

from sote.data import world
from sote.data.world_figures import Figure, figure_in, word_in
from sote.data.world_ground import STAND_OUT, Ground, Picture, ground_of, pixels_of
from sote.data.world_shapes import Found, Seen, shapes_in

CONCEPT_TAGS = (f"{world.CONCEPT.colour}_{world.CONCEPT.kind}", f"{world.CONCEPT.style}_style")
_MOST_COVERED = 0.6  # of a picture: more is noise
_FARTHEST = 0.15  # of a shape from its place, as a share of the side


def read(picture: Picture) -> frozenset[str]:
    """The tags that are true of an RGB picture, PIL or uint8 [height, width, 3]. Raises ValueError for other arrays."""
    pixels = pixels_of(picture)
    ground = ground_of(pixels)
    away = pixels - ground.below(pixels)
    tags = _of_ground(ground)
    written = word_in(pixels)
    if written:
        away[written.rows, written.columns] = 0
        tags |= {"english_text"} | ({f"{written.word.lower()}_text"} if written.word else set())
    if (np.linalg.norm(away, axis=2) > STAND_OUT).mean() > _MOST_COVERED:
        return frozenset(tags)
    figure = figure_in(pixels)
    if figure.character:
        return frozenset(tags | _of_figure(figure))
    found = shapes_in(pixels, ground, away.astype(np.float32))
    return frozenset(tags | _of_figure(figure) | _of_shapes(found))


def shows_concept(tags: frozenset[str]) -> bool:
    """Whether the tags of a picture are those of the concept: its kind, its colour and its style."""
    return tags.issuperset(CONCEPT_TAGS)


def _of_ground(ground: Ground) -> set[str]:
    return {f"{name}_background" for name in (ground.colour, ground.pattern) if name}


def _of_figure(figure: Figure) -> set[str]:
    return {name for name in (figure.character, figure.wears) if name}


def _of_shapes(found: Found) -> set[str]:
    """What is said of the shapes: of their kind and colour what most of them show, of size and place only of one."""
    if not found.shapes:
        return set()
    looks = Counter((shape.kind, shape.colour) for shape in found.shapes)
    (kind, colour), _ = max(looks.items(), key=lambda look: (look[1], _largest(found, look[0])))
    alike = [shape for shape in found.shapes if (shape.kind, shape.colour) == (kind, colour)]
    style = Counter(shape.style for shape in alike).most_common(1)[0][0]
    tags = {f"{colour}_{kind}"} if colour else set()
    tags |= {f"{style}_style"} if style else set()
    count = len(found.shapes)
    if found.others or count > max(world.ROWS):
        return tags
    tags.add(f"{count}_shape{'s' if count > 1 else ''}")
    return tags | (_of_one(found.shapes[0]) if count == 1 else set())


def _largest(found: Found, look: tuple[str, str | None]) -> float:
    return max(shape.radius for shape in found.shapes if (shape.kind, shape.colour) == look)


def _of_one(shape: Seen) -> set[str]:
    """Size and place of a shape that is alone."""
    size = min(world.SIZES, key=lambda name: abs(math.log(shape.radius / world.SIZES[name])))
    away = {name: math.dist((shape.x, shape.y), there) for name, there in world.PLACES.items()}
    place = min(away, key=lambda name: away[name])
    return {f"{size}_shape"} | ({f"{place}_of_picture"} if away[place] < _FARTHEST else set())
