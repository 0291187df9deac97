"""The first rows of many, however they are cut; rows fetched by their places."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sote.data import examples
from sote.data.examples import First, Order


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("cut", [1, 7, 100])
def test_the_first_rows_do_not_depend_on_how_rows_come(order: Order, cut: int) -> None:
    draw = np.random.Generator(np.random.Philox(1))
    scores, ids = draw.integers(0, 9, 100) / 8, [f"{number:02}" for number in draw.integers(0, 30, 100)]
    table = pa.table({"score": scores, "id": ids, "at": np.arange(100)})
    first = First(12, by="score", order=order)
    for start in range(0, 100, cut):
        first.add(table.slice(start, cut))
    sign = 1 if order == "ascending" else -1
    assert first.places() == sorted(range(100), key=lambda at: (sign * scores[at], ids[at], at))[:12]


def test_nothing_asked_for_and_nothing_there_are_no_rows() -> None:
    table = pa.table({"id": ["b", "a"], "at": [0, 1]})
    none, empty = First(0, by="id"), First(3, by="id")
    none.add(table)
    empty.add(table.slice(0, 0))
    assert none.places() == empty.places() == []


def test_rows_are_fetched_by_their_places_from_whichever_row_group(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": [str(number) for number in range(10)], "other": range(10)}), path, row_group_size=3)
    found = examples.fetch(path, {9, 0, 4, 5}, columns=("id",))
    assert found == {at: {"id": str(at), "at": at} for at in (0, 4, 5, 9)}
    assert examples.fetch(path, set()) == {}
