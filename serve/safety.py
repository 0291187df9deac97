"""What is not painted and what is not handed out: tags that prompts may not have, and a tagger that looks at pictures.

A blocked tag is found where a prompt has it as a tag or, as whole words in this order, inside of a longer tag or a
sentence: "cat" is found in "a black cat, sitting" and not in "cathedral". Both are compared without case, weights,
brackets and invisible characters, with underscores as spaces; a negative prompt may name any tag.

Kind: actor.
"""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sote.cluster import weights
from sote.cluster.devices import Device
from sote.cluster.errors import RunFailed, UserError
from sote.data import tag as taggers
from sote.data.inputs import tagger_input
from sote.data.tag import Label, Tagger
from sote.serve import prompts
from sote.serve.recipe import SafetyPart
from sote.serve.settings import Pixels

FIELD: Final = "safety.tagger"
BRACKETS = re.compile(r"[()\[\]{}]")


@dataclass(frozen=True)
class BlockList:
    """Tags that a prompt may not have, as they stand in the recipe, each with what finds it."""

    patterns: tuple[tuple[str, re.Pattern[str]], ...]

    @staticmethod
    def of(part: SafetyPart) -> "BlockList":
        found = [(tag, _normal(tag)) for tag in part.blocked_tags]
        return BlockList(
            tuple((tag, re.compile(rf"(?<!\w){re.escape(each)}(?!\w)")) for tag, normal in found for each in normal)
        )

    def found(self, prompt: str) -> tuple[str, ...]:
        """The blocked tags that a prompt has, in the list's order."""
        tags = _normal(prompt)
        return tuple(tag for tag, pattern in self.patterns if any(pattern.search(each) for each in tags))


class Looker:
    """Looks at pictures for the tags that are withheld. Belongs to one thread at a time."""

    def __init__(self, tagger: Tagger, part: SafetyPart) -> None:
        self.tagger, self.probability = tagger, part.withheld_probability
        self.wanted = _places(tagger.labels, part)

    @staticmethod
    def of(part: SafetyPart, *, device: Device | None = None, threads: int | None = None) -> "Looker | None":
        """The tagger of the recipe on `device` (None: what this worker has), or None where the recipe has none.

        Raises WeightsError: it is not here, or no tagger; UserError: it does not know a withheld tag.
        """
        folder = _folder(part)
        return None if folder is None else Looker(Tagger(folder, device=device, rows=1, threads=threads), part)

    def flagged(self, pixels_HWC: Pixels) -> tuple[str, ...]:
        """The withheld tags that an RGB picture has, each with its probability, such as "gore 0.93".

        Raises RunFailed where the tagger's numbers are not finite: what was not looked at is not handed out.
        """
        picture = tagger_input(pixels_HWC, side=self.tagger.side)
        probabilities_T = self.tagger.probabilities(picture[None])[0]
        if not np.isfinite(probabilities_T).all():
            raise RunFailed("safety: the tagger's numbers for a picture are not finite, so it is not handed out")
        found = [(name, float(probabilities_T[place])) for name, place in self.wanted]
        return tuple(f"{name} {chance:.2f}" for name, chance in found if chance >= self.probability)


def check(part: SafetyPart) -> None:
    """Raises what `Looker.of` would for the files and tags, without loading the network."""
    folder = _folder(part)
    if folder is not None:
        taggers.check(folder)
        _places(taggers.read_labels(folder / taggers.LABELS), part)


def _folder(part: SafetyPart) -> Path | None:
    if part.tagger is None:
        return None
    return weights.locate(part.tagger, field=FIELD, layouts=weights.tagger_layouts("auto"))


def _places(labels: tuple[Label, ...], part: SafetyPart) -> tuple[tuple[str, int], ...]:
    """Each withheld tag (a rating is one too) with its place among the tagger's outputs."""
    known = {_normal(label.name): place for place, label in reversed(list(enumerate(labels)))}
    if missing := [tag for tag in part.withheld_tags if _normal(tag) not in known]:
        raise UserError(
            f"safety.withheld_tags: the tagger knows no {missing[0]!r}; take names from its {taggers.LABELS}"
        )
    return tuple((tag, known[_normal(tag)]) for tag in part.withheld_tags)


def _normal(text: str) -> tuple[str, ...]:
    """The tags of a text as they are compared."""
    seen = "".join(mark for mark in text if unicodedata.category(mark) != "Cf")
    plain = (" ".join(BRACKETS.sub(" ", each).split()) for each in prompts.tags_of(seen))
    return tuple(each for each in plain if each)
