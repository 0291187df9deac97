"""Words: what a score, a year and a rating become in a caption.

Scores are compared as float32, the type they are stored in: a stored 0.8 (0.800000012 as a double) is on the bound
0.80, not above it.

Kind: pure.
"""

import math
import struct
from collections.abc import Sequence

from sote.data.caption_profile import Profile, Scale

_FLOAT32 = struct.Struct("f")


def aesthetic_word(score: float | None, profile: Profile) -> str | None:
    """The word of an aesthetic score (0..1); None if there is no score (None, NaN)."""
    return _on_scale(score, profile.aesthetic)


def quality_word(score: float | None, profile: Profile) -> str | None:
    """The word of a quality score (0..1); None if there is no score (None, NaN)."""
    return _on_scale(score, profile.quality)


def date_word(year: int | None, profile: Profile) -> str | None:
    """The word of the year of the post; None if it is unknown or in no range of the profile."""
    if year is None:
        return None
    return next((years.word for years in profile.years if years.first <= year <= years.last), None)


def rating_word(probabilities: Sequence[float] | None, profile: Profile) -> str | None:
    """The word of the most probable rating (order of schema.RATINGS); a tie takes the first; None if one is missing."""
    if probabilities is None or any(is_missing(probability) for probability in probabilities):
        return None
    highest = max(range(4), key=probabilities.__getitem__)
    return profile.rating.in_order[highest]


def is_missing(score: float | None) -> bool:
    """Whether there is no score: None or NaN."""
    return score is None or math.isnan(score)


def float32(value: float) -> float:
    """`value` rounded to float32, as a Python float."""
    return float(_FLOAT32.unpack(_FLOAT32.pack(value))[0])


def _on_scale(score: float | None, scale: Scale) -> str | None:
    if score is None or math.isnan(score):
        return None
    stored = float32(score)
    return next((word for bound, word in scale.stored_steps if stored > bound), scale.rest)
