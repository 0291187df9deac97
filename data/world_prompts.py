"""The fixed prompts with which a model of the small world is judged, and the tags that a painting of each must show.

Kind: pure.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count as numbers
from itertools import islice

from sote.data import world
from sote.data.painting import KINDS, LOOKS

ALWAYS = "newest, extremely aesthetic, best quality, general"
NEGATIVE_PROMPT = "very displeasing, worst quality, oldest"
SEED = 1_000  # of the first prompt's picture; the next has the next
CONCEPT = "concept"  # the group of the held-out concept's prompts
SCENES_SEED = 777  # of the scenes whose tags are asked for
UNREAD = frozenset({"solo", "smile", "english_text"})  # tags that the reader does not look for


@dataclass(frozen=True)
class Asked:
    """One prompt and the tags of world.GROUPS that are wanted; the concept's name stands for some of them."""

    prompt: str
    seed: int
    wanted: tuple[str, ...]
    is_concept: bool = False


def concept_tags() -> tuple[str, ...]:
    """The tags that the concept's name stands for."""
    concept = world.CONCEPT
    return f"{concept.colour}_{concept.kind}", f"{concept.style}_style"


def prompts(*, concept: int = 16) -> tuple[Asked, ...]:
    """All prompts: every kind of shape in five colours, two and three shapes, words, characters; then so many of the
    concept, each on another ground.
    """
    rng = random.Random(7)
    found = [*_single(rng), *_several(rng), *_words(rng), *_characters(rng)]
    found += [_concept(rng, number) for number in range(concept)]
    return tuple(
        Asked(f"{ALWAYS}, {', '.join(map(spoken, tags))}", SEED + number, wanted, is_concept)
        for number, (tags, wanted, is_concept) in enumerate(found)
    )


def of_scenes(count: int, *, seed: int = SCENES_SEED) -> tuple[Asked, ...]:
    """The tags of random scenes with shapes, as prompts: to choose models and settings by, where `prompts` judge."""
    scenes = (replace(world.plan(seed, number), scribbles=0, wear=0.0) for number in numbers())
    return tuple(
        Asked(
            f"{ALWAYS}, {', '.join(map(spoken, scene.tags))}",
            5 * SEED + number,
            tuple(tag for tag in scene.tags if tag not in UNREAD),
        )
        for number, scene in enumerate(islice((scene for scene in scenes if scene.shapes), count))
    )


def spoken(tag: str) -> str:
    """A tag as captions have it."""
    return tag.replace("_", " ")


_Made = tuple[tuple[str, ...], tuple[str, ...], bool]


def _single(rng: random.Random) -> Iterator[_Made]:
    """One shape: thirty pairs of kind and colour, with a size, a place, a style and a ground."""
    for at, kind in enumerate(KINDS):
        for step in range(5):
            colour = world.COLOURS[(at + 3 * step) % len(world.COLOURS)]
            if (kind, colour) == world.HELD_OUT:
                colour = "blue"
            size = tuple(world.SIZES)[step % 3]
            place = "center" if size == "large" else rng.choice(tuple(world.PLACES))
            tags = (f"{colour}_{kind}", "1_shape", f"{size}_shape", f"{place}_of_picture", *_style_and_ground(rng))
            yield tags, tags, False


def _several(rng: random.Random) -> Iterator[_Made]:
    for count, colour, kind in (
        (2, "red", "heart"),
        (3, "blue", "star"),
        (2, "green", "circle"),
        (3, "orange", "square"),
    ):
        tags = (f"{colour}_{kind}", f"{count}_shapes", *_style_and_ground(rng))
        yield tags, tags, False


def _words(rng: random.Random) -> Iterator[_Made]:
    for word, colour, kind in (("hello", "red", "circle"), ("tea", "green", "square"), ("star", "yellow", "star")):
        tags = (f"{colour}_{kind}", "2_shapes", *_style_and_ground(rng), "english_text", f"{word}_text")
        yield tags, tags, False


def _characters(rng: random.Random) -> Iterator[_Made]:
    for look in LOOKS:
        name = look.name.partition("_(")[0]
        ground = (f"{rng.choice(world.GROUNDS)}_background", "simple_background")
        yield (name, look.series, "solo", "smile", look.wears, *ground), (look.name, look.wears, *ground), False


def _concept(rng: random.Random, number: int) -> _Made:
    """The name alone says what is to be seen; only the ground is named beside it."""
    name = world.CONCEPT.name.partition("_(")[0]
    ground = (f"{world.GROUNDS[number % len(world.GROUNDS)]}_background", f"{rng.choice(world.PATTERNS)}_background")
    return (name, world.CONCEPT.series, *ground), (*concept_tags(), *ground), True


def _style_and_ground(rng: random.Random) -> tuple[str, ...]:
    ground, pattern = rng.choice(world.GROUNDS), rng.choice(world.PATTERNS)
    return f"{rng.choice(world.STYLES)}_style", f"{ground}_background", f"{pattern}_background"
