"""What every row says."""

from typing import Any

import pytest

from sote.data import index_row
from sote.data.recipe import Source
from sote.data.sidecar_facts import Sidecar


@pytest.mark.parametrize(
    ("names", "year"),
    [
        (["2019"], "2019"),
        (["2019-05"], "2019"),
        (["2019_summer"], "2019"),
        (["2019 05 03"], "2019"),
        (["2019年"], "2019"),
        (["2019-00012"], "2019"),
        (["2019-0012"], "2019"),
        (["deep", "2018", "2017"], "2018"),
        (["2000-2999", "2011"], "2011"),
        (["1989", "2101", "20190503", "2019a", "x2019", "019", ""], None),
    ],
)
def test_a_year_is_a_name_or_begins_one(names: list[str], year: str | None) -> None:
    assert index_row.year_in(names) == year


@pytest.mark.parametrize(
    ("rule", "date", "year", "found"),
    [
        (("sidecar", "folder"), "2012-01-02", "2019", "2012-01-02"),
        (("folder", "sidecar"), "2012-01-02", "2019", "2019"),
        (("sidecar", "folder"), None, "2019", "2019"),
        (("folder", "sidecar"), "2012-01-02", None, "2012-01-02"),
        (("sidecar",), None, "2019", None),
        (("folder",), "2012-01-02", None, None),
        ((), "2012-01-02", "2019", None),
    ],
)
def test_a_date_is_what_the_first_rule_knows(rule: Any, date: str | None, year: str | None, found: str | None) -> None:
    source = Source(name="x", path="/x", date=rule)
    assert index_row.described({}, source, Sidecar(date=date), year=year)["post_date"] == found


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.JPG", ".jpg"), ("x.y/a", ""), (".jpg", ""), ("a.", ""), ("deep/a.b.png", ".png")]
)
def test_suffixes(name: str, suffix: str) -> None:
    assert index_row.suffix(name) == suffix
