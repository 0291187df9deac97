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
    assert names.lengths.tolist() == [2, 0, 1, 0, 1]


def test_a_slice_of_an_array_is_added_as_it_is_seen() -> None:
    names = Names()
    names.add(lists(["x"], ["a"], None, ["b"])[1:])
    assert names.of(np.arange(3)) == ["a", "b"]


def test_a_keeper_has_its_own_names_first_then_others_in_the_order_of_the_rows_each_once() -> None:
    inheritance = Inheritance(np.array([7, 3, 7, 7]), ("tags", "series"))
    series = lists(None, ["s"], None, None)
    inheritance.add({"tags": lists(["b", "a"], ["z"], ["c", "a"], None), "series": series})
    assert inheritance.merged("tags", np.array([3, 7]), [None, ["c", "d"]]) == [["z"], ["c", "d", "b", "a"]]
    assert inheritance.merged("series", np.array([3]), [["s", "t"]]) == [["s", "t"]]


def test_heirs_are_those_to_whom_somebody_brings_a_name() -> None:
    inheritance = Inheritance(np.array([9, 1, 4, 9]), ("tags",))
    inheritance.add({"tags": lists(None, [], ["a"], ["b"])})
    assert inheritance.heirs("tags", np.array([1, 4, 5, 9])).tolist() == [False, True, False, True]


def test_where_nobody_goes_nobody_inherits() -> None:
    inheritance = Inheritance(np.empty(0, np.int32), ("tags",))
    assert inheritance.heirs("tags", np.array([3])).tolist() == [False]
    assert inheritance.merged("tags", np.empty(0, np.int64), []) == []
