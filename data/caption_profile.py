"""A profile: the words, tables and order that turn what is known of a picture into its caption.

Profiles are data: `data/profiles/<name>.toml`, or a file of the user's own with the same tables.

Kind: pure, but for reading the profile's file.
"""

import fnmatch
import re
import string
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from sote.cluster import recipe as recipes
from sote.cluster.errors import RecipeError
from sote.cluster.recipe import Part
from sote.data.recipe import SourceKind
from sote.data.schema import RATINGS

SHIPPED = Path(__file__).parent / "profiles"
FIELDS = frozenset({"artist", "title", "short_title"})  # what a custom tag may name

Group = Literal["aesthetic", "quality", "date", "custom", "rating", "character", "series", "rest"]


def _one_tag(word: str) -> str:
    if not word or word != word.strip() or any(sign in word for sign in ",{}\n"):
        raise ValueError(f"{word!r} is no tag: it must not be empty or hold a comma, a brace or outer blanks")
    return word


def _template(text: str) -> str:
    try:
        names = {name for _, name, spec, mark in string.Formatter().parse(text) if name is not None or spec or mark}
    except ValueError as error:
        raise ValueError(f"{text!r} is no template: {error}") from None
    if unknown := sorted(str(name) for name in names - FIELDS):
        raise ValueError(f"{text!r} names {{{unknown[0]}}}, known: {', '.join(sorted(FIELDS))}")
    return text


Word = Annotated[str, AfterValidator(_one_tag)]
Template = Annotated[str, AfterValidator(_template)]


class Scale(Part):
    """Words of a score: the first step whose bound the score is strictly above, else `rest`."""

    steps: tuple[tuple[Annotated[float, Field(ge=0, le=1)], Word], ...] = Field(min_length=1)
    rest: Word

    @model_validator(mode="after")
    def _falls(self) -> Self:
        for (above, _), (below, word) in pairwise(self.steps):
            if below >= above:
                raise ValueError(f"bounds must fall from step to step, but {below} ({word!r}) stands after {above}")
        words = [word for _, word in self.steps] + [self.rest]
        if twice := [word for word in words if words.count(word) > 1]:
            raise ValueError(f"the word {twice[0]!r} stands twice, each step must have its own")
        return self

    @cached_property
    def stored_steps(self) -> tuple[tuple[float, str], ...]:
        """The steps with their bounds as float32, the type that scores are stored in."""
        return tuple((float(np.float32(bound)), word) for bound, word in self.steps)


class Years(Part):
    """The word of the years `first` to `last`, both within."""

    first: int
    last: int
    word: Word

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.first > self.last:
            raise ValueError(f"first year {self.first} of {self.word!r} is after its last, {self.last}")
        return self


class RatingWords(Part):
    """What the tagger's four ratings are called in a caption; in the order of schema.RATINGS."""

    general: Word
    sensitive: Word
    questionable: Word
    explicit: Word

    @cached_property
    def in_order(self) -> tuple[str, str, str, str]:
        return self.general, self.sensitive, self.questionable, self.explicit


class CustomTags(Part):
    """What the kind of a source adds. Each tag is a list of templates: the first whose fields are known is taken."""

    date: bool
    tags: tuple[Annotated[tuple[Template, ...], Field(min_length=1)], ...]


class Profile(Part):
    """A whole profile."""

    groups: tuple[Group, ...]
    text_position: Literal["card", "end"]  # "card": within the custom tags, as the card has it; "end": as on its disk
    assembly: Literal["clean", "kohya"]
    aesthetic: Scale
    quality: Scale
    years: tuple[Years, ...]
    rating: RatingWords
    custom: dict[SourceKind, CustomTags]
    kaomoji: tuple[str, ...]
    non_series: tuple[str, ...]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if sorted(self.groups) != sorted(get_args(Group)):
            raise ValueError(f"groups must list each of these once: {', '.join(get_args(Group))}")
        if missing := [kind for kind in get_args(SourceKind) if kind not in self.custom]:
            raise ValueError(f"custom has no table for the source kind {missing[0]!r}")
        for older, newer in pairwise(sorted(self.years, key=lambda years: years.first)):
            if newer.first <= older.last:
                raise ValueError(f"years: {older.word!r} and {newer.word!r} both hold {newer.first}")
        return self

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every word that a score, a year or a rating can become, and the tagger's names of the ratings.

        With the author's early spelling, which his captions have up to 2024-03-17: "very asthetic".
        """
        words = [word for scale in (self.aesthetic, self.quality) for _, word in scale.steps]
        words += [self.aesthetic.rest, self.quality.rest, *self.rating.in_order, *RATINGS]
        words += [years.word for years in self.years]
        return frozenset((*words, *(word.replace("aesthetic", "asthetic") for word in words)))

    @cached_property
    def kaomoji_set(self) -> frozenset[str]:
        return frozenset(self.kaomoji)

    @cached_property
    def known_series(self) -> dict[str, tuple[str, str | None]]:
        """What the names of characters were split into so far: caption.split_series fills it."""
        return {}

    @cached_property
    def non_series_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(fnmatch.translate(entry) for entry in self.non_series) or r"(?!)")


def load_profile(name_or_path: str) -> Profile:
    """The shipped profile of that name, or the profile in the TOML file at that path (anything ending in .toml).

    Raises RecipeError: no such profile, or one line for each problem of the file.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
    else:
        path = SHIPPED / f"{name_or_path}.toml"
        shipped = sorted(file.stem for file in SHIPPED.glob("*.toml"))
        if name_or_path not in shipped:
            known = ", ".join(shipped)
            raise RecipeError(
                f"profile {name_or_path!r}: no such profile, shipped are {known}; or give a path to a .toml"
            )
    return recipes.load(path, Profile)
