"""Words of scores, years and ratings, by the seed's tables."""

import math
from itertools import pairwise

import numpy as np
import pytest

from sote.data.caption_profile import load_profile
from sote.data.words import aesthetic_word, date_word, float32, quality_word, rating_word

CARD = load_profile("sote-v1")
SCRIPT = load_profile("sote-v1-script")

# Model card of SoteDiffusion Wuerstchen3, "Aesthetic Tags" and "Quality Tags".
AESTHETIC = [
    (0.90, "extremely aesthetic"),
    (0.80, "very aesthetic"),
    (0.70, "aesthetic"),
    (0.50, "slightly aesthetic"),
    (0.40, "not displeasing"),
    (0.30, "not aesthetic"),
    (0.25, "slightly displeasing"),
    (0.10, "displeasing"),
    (-1.0, "very displeasing"),
]
QUALITY = [
    (0.980, "best quality"),
    (0.900, "high quality"),
    (0.750, "great quality"),
    (0.500, "medium quality"),
    (0.250, "normal quality"),
    (0.125, "bad quality"),
    (0.025, "low quality"),
    (-1.0, "worst quality"),
]


@pytest.mark.parametrize(
    ("table", "word_of"), [(AESTHETIC, aesthetic_word), (QUALITY, quality_word)], ids=["aesthetic", "quality"]
)
def test_a_score_on_a_bound_takes_the_lower_word(table, word_of) -> None:
    for (bound, word), (_, lower) in pairwise(table):
        just_above = float(np.nextafter(np.float32(bound), np.float32(2)))
        assert word_of(bound, CARD) == lower
        assert word_of(float(np.float32(bound)), CARD) == lower, "as the score is stored"
        assert word_of(just_above, CARD) == word


def test_every_score_has_the_word_of_the_cards_table() -> None:
    for score in np.random.default_rng(0).random(2000):
        for table, word_of in ((AESTHETIC, aesthetic_word), (QUALITY, quality_word)):
            assert word_of(float(score), CARD) == next(word for bound, word in table if score > bound)
    assert [aesthetic_word(score, CARD) for score in (0.0, 1.0)] == ["very displeasing", "extremely aesthetic"]
    assert [quality_word(score, CARD) for score in (0.0, 1.0)] == ["worst quality", "best quality"]


def test_the_scripts_profile_differs_between_a_fifth_and_a_quarter_only() -> None:
    differing = [s / 1000 for s in range(1001) if aesthetic_word(s / 1000, CARD) != aesthetic_word(s / 1000, SCRIPT)]
    assert (min(differing), max(differing)) == (0.201, 0.25)
    assert aesthetic_word(0.22, SCRIPT) == "slightly displeasing"
    assert aesthetic_word(0.22, CARD) == "displeasing"
    assert all(quality_word(s / 1000, CARD) == quality_word(s / 1000, SCRIPT) for s in range(1001))


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_score_has_no_word(missing: float | None) -> None:
    assert aesthetic_word(missing, CARD) is None
    assert quality_word(missing, CARD) is None


def test_every_year_has_the_word_of_the_cards_ranges() -> None:
    # Model card, "Date".
    ranges = {"newest": (2022, 2024), "recent": (2019, 2021), "mid": (2015, 2018), "early": (2011, 2014)}
    ranges["oldest"] = (2005, 2010)
    expected = {year: word for word, (first, last) in ranges.items() for year in range(first, last + 1)}
    assert len(expected) == 20
    for year in range(1990, 2040):
        assert date_word(year, CARD) == expected.get(year)
    assert date_word(None, CARD) is None


def test_the_rating_is_the_most_probable_one_and_a_tie_takes_the_first() -> None:
    words = ["general", "sensitive", "nsfw", "explicit nsfw"]
    for place, word in enumerate(words):
        assert rating_word([0.9 if at == place else 0.1 for at in range(4)], CARD) == word
    assert rating_word([0.1, 0.4, 0.4, 0.1], CARD) == "sensitive"
    assert rating_word([0.0, 0.0, 0.0, 0.0], CARD) == "general"
    assert rating_word(np.array([0.1, 0.1, 0.2, 0.1], np.float32), CARD) == "nsfw"
    assert rating_word(None, CARD) is None
    assert rating_word([0.1, math.nan, 0.2, 0.3], CARD) is None


def test_float32_is_what_numpy_says_it_is() -> None:
    for value in [0.0, 0.1, 0.2, 0.35, 0.8, 0.98, 1.0, *np.random.default_rng(1).random(200)]:
        assert float32(float(value)) == float(np.float32(value))
