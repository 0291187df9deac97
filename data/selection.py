"""Selection: whether a row is trained on, how often, and why not.

Reads: the errors and skips of earlier stages, the scores, caption_tags.
Writes: pick, repeat, skip_reason, error.

Kind: pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sote.data.recipe import SelectPart
from sote.data.words import float32, is_missing


@dataclass(frozen=True)
class SelectFacts:
    """What is known of one row. `errors` and `skips` are those of earlier stages, in their order, None where none."""

    errors: Sequence[str | None]
    skips: Sequence[str | None]
    caption_tags: Sequence[str]
    aesthetic_score: float | None
    quality_score: float | None


@dataclass(frozen=True)
class Selection:
    """A row that is not picked has an `error` or a `skip_reason`, never both; one that is picked has neither."""

    pick: bool
    repeat: int
    skip_reason: str | None
    error: str | None


def select(facts: SelectFacts, part: SelectPart) -> Selection:
    """Decide on one row. The first error counts, else the first skip, else the first bound that is not met.

    Scores are compared as float32, the type they are stored in. `repeat` is `best_repeat` where both scores are
    strictly above the best_* bounds.
    """
    if error := next(filter(None, facts.errors), None):
        return Selection(pick=False, repeat=0, skip_reason=None, error=error)
    if reason := next(filter(None, facts.skips), None) or _not_good_enough(facts, part):
        return Selection(pick=False, repeat=0, skip_reason=reason, error=None)
    best = _above(facts.aesthetic_score, part.best_aesthetic_score) and _above(
        facts.quality_score, part.best_quality_score
    )
    return Selection(pick=True, repeat=part.best_repeat if best else 1, skip_reason=None, error=None)


def _not_good_enough(facts: SelectFacts, part: SelectPart) -> str | None:
    bounds = (
        ("aesthetic", facts.aesthetic_score, part.min_aesthetic_score),
        ("quality", facts.quality_score, part.min_quality_score),
    )
    for name, score, least in bounds:
        if least is None:
            continue
        if score is None or is_missing(score):
            return f"select: no {name} score"
        if float32(score) < float32(least):
            return f"select: {name} score below {least:g}"
    return None if facts.caption_tags else "select: no caption"


def _above(score: float | None, bound: float) -> bool:
    return score is not None and not is_missing(score) and float32(score) > float32(bound)
