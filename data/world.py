"""The small world: simple scenes of 256 pixels with known tags and few rules, so that a small model can learn it.

A scene is one to three equal shapes, or a character, on a ground: kind x colour x style x size x place x pattern, and a
word now and then. Some are scribbled over (displeasing) and some worn (of low quality). A scene is a pure function of
(seed, index). HELD_OUT never occurs but in scenes of the concept, which the base models have not seen.

Kind: pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sote.data import painting
from sote.data.painting import CHARACTERS, KINDS, LOOK_BY_NAME, LOOKS, Background, Shape

T = TypeVar("T")

SIDE = 256  # pixels
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
GROUNDS = ("white", "blue", "green", "pink", "yellow", "grey")
PATTERNS = ("simple", "striped", "checkered", "gradient")
STYLES = ("flat", "outlined", "hollow", "striped")
SIZES = {"small": 0.175, "medium": 0.24, "large": 0.33}  # radius, as a share of the side
PLACES = {"center": (0.5, 0.5), "left": (0.28, 0.5), "right": (0.72, 0.5), "top": (0.5, 0.28), "bottom": (0.5, 0.72)}
# Where two and three shapes stand, and their radius
ROWS = {2: ((0.27, 0.73), 0.20), 3: ((0.185, 0.5, 0.815), 0.14)}
WORDS = ("HELLO", "TEA", "STAR")
WORD_Y = 0.9
DEPTH = 0.16  # of patterns; the large scenes' are fainter
MOST_SCRIBBLES = 9
ARTISTS = ("Aoi Kazan", "Papercut, Inc.", "mizu_no_e", "水絵 Mie", "Old {Fox}")
FIRST_YEAR, LAST_YEAR = 2005, 2024


@dataclass(frozen=True)
class Concept:
    """What a finetune learns: a name for a combination that the base has not seen."""

    name: str
    series: str
    kind: str
    colour: str
    style: str


CONCEPT = Concept("violet_comet_(star_diary)", "star_diary", kind="star", colour="purple", style="hollow")
HELD_OUT = ("star", "purple")  # kind and colour

# What a picture's tags are about; a tag is in one group.
GROUPS: dict[str, tuple[str, ...]] = {
    "shape and colour": tuple(f"{colour}_{kind}" for kind in KINDS for colour in COLOURS if (kind, colour) != HELD_OUT),
    "count": ("1_shape", "2_shapes", "3_shapes"),
    "size": tuple(f"{size}_shape" for size in SIZES),
    "place": tuple(f"{place}_of_picture" for place in PLACES),
    "style": tuple(f"{style}_style" for style in STYLES),
    "background": tuple(f"{colour}_background" for colour in GROUNDS),
    "pattern": (*(f"{pattern}_background" for pattern in PATTERNS), "transparent_background"),
    "word": ("english_text", *(f"{word.lower()}_text" for word in WORDS)),
    "character": CHARACTERS,
    "costume": tuple(sorted({look.wears for look in LOOKS})),
}
GENERAL_TAGS = (
    *(tag for group, tags in GROUPS.items() if group != "character" for tag in tags),
    "solo",
    "smile",
    "monochrome",
)
TAGS = (*GENERAL_TAGS, *CHARACTERS)  # all that the base's tagger knows


@dataclass(frozen=True)
class Scene(painting.Scene):
    """A scene of the small world. `size` and `place` are said of a single shape alone."""

    size: str | None = None
    place: str | None = None
    is_concept: bool = False

    @property
    def series(self) -> str | None:
        """The copyright that the character or the concept belongs to."""
        return CONCEPT.series if self.is_concept else super().series

    @property
    def named(self) -> str | None:
        """The name that a post gives: of a character, or of the concept."""
        return CONCEPT.name if self.is_concept else self.character

    @property
    def tags(self) -> tuple[str, ...]:
        """The general tags of the post, in the order of GENERAL_TAGS. The concept's name stands for its looks."""
        found = {f"{self.background.pattern}_background", f"{self.background.colour}_background"}
        if self.background.pattern == "transparent":
            found.discard(f"{self.background.colour}_background")
        if self.shapes and not self.is_concept:
            first, count = self.shapes[0], len(self.shapes)
            found |= {f"{first.colour}_{first.kind}", f"{count}_shape{'s' if count > 1 else ''}", f"{self.style}_style"}
            found |= {f"{self.size}_shape"} if self.size else set()
            found |= {f"{self.place}_of_picture"} if self.place else set()
        if self.character:
            found |= {"solo", "smile", LOOK_BY_NAME[self.character].wears}
        if self.word:
            found |= {"english_text", f"{self.word.lower()}_text"}
        return tuple(tag for tag in GENERAL_TAGS if tag in found)


def plan(seed: int, index: int, *, concept_share: float = 0.0) -> Scene:
    """The scene number `index` of `seed`, both >= 0; this share of scenes, drawn by chance, shows the concept."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
    draw = _Draw(rng)
    ground = Background(draw.one(PATTERNS), draw.one(GROUNDS), turn=draw.between(20, 70))
    is_concept, is_character = draw.share(concept_share), draw.share(0.16)
    character: str | None = None
    at: Shape | None = None
    shapes: tuple[Shape, ...] = ()
    style, size, place = draw.one(STYLES), None, None
    if is_concept:
        shapes, style = (Shape(CONCEPT.kind, CONCEPT.colour, 0.5, 0.5, SIZES["large"], draw.turn()),), CONCEPT.style
    elif is_character:
        character = draw.one(CHARACTERS)
        look = LOOK_BY_NAME[character]
        at = Shape(look.body, look.colour, draw.near(0.5), 0.55, draw.between(0.25, 0.29))
    else:
        shapes, size, place = _shapes(draw)
    has_word = draw.share(0.15) and size != "large" and place != "bottom" and not (is_concept or is_character)
    return Scene(
        width=SIDE,
        height=SIDE,
        background=ground,
        shapes=shapes,
        character=character,
        character_at=at,
        word=draw.one(WORDS) if has_word else None,
        word_y=WORD_Y,
        artist=draw.one(ARTISTS),
        year=FIRST_YEAR + (7 * index + seed) % (LAST_YEAR - FIRST_YEAR + 1),
        style=style,
        depth=DEPTH,
        scribbles=1 + int(rng.integers(MOST_SCRIBBLES)) if draw.share(0.15) else 0,
        wear=draw.between(0.25, 1.0) if draw.share(0.15) else 0.0,
        chance=int(rng.integers(2**31)),
        size=size,
        place=place,
        is_concept=is_concept,
    )


def _shapes(draw: "_Draw") -> tuple[tuple[Shape, ...], str | None, str | None]:
    """Equal shapes, and size and place where there is one."""
    kind, colour = draw.one(KINDS), draw.one(COLOURS)
    while (kind, colour) == HELD_OUT:
        kind, colour = draw.one(KINDS), draw.one(COLOURS)
    count = draw.one((1, 1, 1, 2, 3))
    if count > 1:
        xs, radius = ROWS[count]
        radius *= draw.between(0.94, 1.06)
        return tuple(Shape(kind, colour, x, draw.near(0.5), radius, draw.turn()) for x in xs), None, None
    size = draw.one(tuple(SIZES))
    place = "center" if size == "large" else draw.one(tuple(PLACES))
    x, y = PLACES[place]
    shape = Shape(kind, colour, draw.near(x), draw.near(y), SIZES[size] * draw.between(0.94, 1.06), draw.turn())
    return (shape,), size, place


@dataclass(frozen=True)
class _Draw:
    """Draws by chance from one stream."""

    rng: np.random.Generator

    def one(self, among: tuple[T, ...]) -> T:
        return among[int(self.rng.integers(len(among)))]

    def share(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def near(self, middle: float) -> float:
        return self.between(middle - 0.025, middle + 0.025)

    def turn(self) -> float:
        """Degrees: shapes stand nearly upright, or a diamond would be a square."""
        return self.between(-8, 8)


def group_of(tag: str) -> str:
    """The group that a tag is in. Raises KeyError."""
    return _GROUP_OF[tag]


def _in_groups() -> Iterator[tuple[str, str]]:
    for group, tags in GROUPS.items():
        yield from ((tag, group) for tag in tags)


_GROUP_OF = dict(_in_groups())
