import threading
from collections.abc import Iterator

import pytest

from sote.data.ahead import in_order


def test_results_come_in_the_items_order_whoever_is_ready_first() -> None:
    second_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_done.wait(timeout=10)
        second_done.set()
        return item * item

    assert list(in_order(work, range(5), threads=2, ahead=3)) == [0, 1, 4, 9, 16]


def test_no_more_is_begun_than_asked_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            taken.append(item)
            yield item

    results = in_order(str, items(), threads=1, ahead=3)
    assert taken == []
    assert next(results) == "0"
    assert taken == [0, 1, 2]
    assert next(results) == "1"
    assert taken == [0, 1, 2, 3]
    results.close()


def test_an_error_is_raised_at_its_place_and_ends_it() -> None:
    done: list[int] = []

    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        done.append(item)
        return item

    results = in_order(work, range(1000), threads=1, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert len(done) < 10
    assert list(results) == []
