"""What rows that go hand on to their keepers."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from sote.data.inherited import Inheritance, Names

LISTS = pa.list_(pa.string())


def lists(*rows: Sequence[str] | None) -> pa.Array:
    return pa.array(rows, LISTS)


def test_names_of_rows_come_back_as_they_were_added_null_as_nothing() -> None:
    names = Names()
    names.add(lists(["a", "b"], None, ["b, {c}"]))
    names.add(lists())
    names.add(lists([], ["a"]))
    assert [names.of(np.array([row])) for row in range(5)] == [["a", "b"], [], ["b, {c}"], [], ["a"]]
    assert names.of(np.array([4, 0])) == ["a", "a", "b"]
    names.add(lists(["new"]))
    assert names.of(np.array([5, 2])) == ["new", "b, {c}"]


def test_a_slice_of_an_array_is_added_as_it_is_seen() -> None:
    names = Names()
    names.add(lists(["x"], ["a"], None, ["b"])[1:])
    assert names.of(np.arange(3)) == ["a", "b"]


def test_a_keeper_has_its_own_names_first_then_others_in_the_order_of_the_rows_each_once() -> None:
    inheritance = Inheritance(np.array([7, 3, 7, 7]), ("tags", "series"))
    series = lists(None, ["s"], None, None)
    inheritance.add({"tags": lists(["b", "a"], ["z"], ["c", "a"], None), "series": series})
    assert inheritance.merged("tags", 7, ["c", "d"]) == ["c", "d", "b", "a"]
    assert inheritance.merged("tags", 3, None) == ["z"]
    assert inheritance.merged("series", 3, ["s", "t"]) == ["s", "t"]


def test_where_nobody_brings_a_name_the_own_ones_stay_as_they_are() -> None:
    inheritance = Inheritance(np.array([1]), ("tags",))
    inheritance.add({"tags": lists(None)})
    assert inheritance.merged("tags", 1, None) is None
    assert inheritance.merged("tags", 1, []) == []
    assert inheritance.merged("tags", 2, ["a"]) == ["a"]
