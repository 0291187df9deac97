"""Putting facts together."""

import datetime
from typing import Any

import pytest

from sote.data import sidecar_facts
from sote.data.sidecar_facts import Sidecar


def test_the_first_that_knows_a_fact_is_believed_and_names_are_gathered() -> None:
    first = Sidecar(date="2012", characters=("a",), tags=("x", "y"))
    second = Sidecar(date="2013-01-01", artist="b", characters=("c", "a"), series=("s",), tags=("y", "z"))
    assert sidecar_facts.merged([first, second]) == Sidecar(
        date="2012", artist="b", characters=("a", "c"), series=("s",), tags=("x", "y", "z")
    )
    assert sidecar_facts.merged([]) == Sidecar()


@pytest.mark.parametrize(
    ("value", "date"),
    [
        ("2021-05-03T23:10:11.123-04:00", "2021-05-03T23:10:11.123-04:00"),
        (" 2021-05-04 03:10:11 ", "2021-05-04 03:10:11"),
        ("2012", "2012"),
        (2012, "2012"),
        (datetime.date(2012, 3, 4), "2012-03-04"),
        (datetime.datetime(2012, 3, 4, 5), "2012-03-04T05:00:00"),
        *[
            (none, None)
            for none in ("", "0000", "1789", 1_600_000_000, True, None, "yesterday", "2012-13-01", ["2012"])
        ],
    ],
)
def test_a_date_is_iso_or_a_bare_year(value: Any, date: str | None) -> None:
    assert sidecar_facts.date(value) == date


def test_half_a_letter_can_be_stored() -> None:
    assert sidecar_facts.text(" a\ud800 ") == "a\ufffd"
