"""What a row's tags become each time it is seen. Tags are a list; a caption is never split again.

Kind: pure.
"""

from collections.abc import Sequence

import numpy as np

from sote.train.recipe import CaptionsPart

SEPARATOR = ", "  # between the tags of a caption


def caption(tags: Sequence[str], groups: Sequence[int], *, part: CaptionsPart, random: np.random.Generator) -> str:
    """The caption of one row at one place of a run, or nothing at all for the share of the recipe's dropout.

    `groups` has a number for each tag: tags of the same number stay together and in their order. The first
    `keep_first` tags are neither dropped nor moved; what belongs to one of them follows them.
    """
    if random.random() < part.dropout:
        return ""
    first, rest = list(range(len(tags)))[: part.keep_first], list(range(len(tags)))[part.keep_first :]
    if part.tag_dropout:
        stays = random.random(len(tags)) >= part.tag_dropout
        rest = [at for at in rest if stays[at]]
    if not part.shuffle:
        return SEPARATOR.join(tags[at] for at in (*first, *rest))
    units: dict[int, list[int]] = {}
    for at in rest:
        units.setdefault(groups[at] if part.keep_groups else at, []).append(at)
    if part.keep_groups:
        for group in dict.fromkeys(groups[at] for at in first):
            first += units.pop(group, [])
    mixed = list(units.values())
    order = [at for unit in random.permutation(len(mixed)) for at in mixed[unit]]
    return SEPARATOR.join(tags[at] for at in (*first, *order))
