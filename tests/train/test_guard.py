import math

import pytest

from sote.cluster.errors import RunFailed
from sote.train import guard
from sote.train.guard import Guard
from sote.train.recipe import GuardPart


def test_a_loss_or_gradient_that_is_not_finite_is_bad() -> None:
    guarded = Guard(GuardPart())
    assert guarded.of_loss(math.nan) == "loss: not finite"
    assert guarded.of_loss(math.inf) == "loss: not finite"
    assert guarded.of_loss(1e30) is None
    assert guarded.of_gradient(math.nan) == "gradient: not finite"
    assert guarded.of_gradient(1e30) is None


def test_a_spike_is_measured_against_the_median_of_the_last_hundred_good_losses() -> None:
    guarded = Guard(GuardPart(loss_spike=10.0), recent=[0.1] * 19)
    assert guarded.of_loss(100.0) is None  # too few to judge by
    guarded.passed(0.1)
    assert guarded.of_loss(1.0) is None
    assert guarded.of_loss(1.01) == "loss: spike"
    for _ in range(100):
        guarded.passed(10.0)
    assert list(guarded.recent) == [10.0] * 100
    assert guarded.of_loss(99.0) is None


def test_without_a_bound_there_is_no_spike() -> None:
    assert Guard(GuardPart(loss_spike=None), recent=[0.1] * 100).of_loss(1e6) is None


def test_bad_steps_in_a_row_end_the_run_and_name_the_rows() -> None:
    guarded = Guard(GuardPart(max_bad_steps=2))
    guarded.skipped(["a", "b"])
    guarded.passed(0.1)  # not in a row
    guarded.skipped(["c", "d"])
    guarded.check(9, "loss: spike")
    guarded.skipped(["d", "e"])
    guarded.check(9, None)
    with pytest.raises(RunFailed, match=r"^step 10: loss: not finite; 2 bad steps in a row .* rows c, d, e; the last"):
        guarded.check(10, "loss: not finite")


def test_at_most_eight_rows_are_named() -> None:
    guarded = Guard(GuardPart(max_bad_steps=1))
    guarded.skipped([str(number) for number in range(11)])
    with pytest.raises(RunFailed, match=r"rows 0, 1, 2, 3, 4, 5, 6, 7 and 3 more; the last checkpoint is good"):
        guarded.check(1, "loss: spike")


def test_it_goes_on_where_a_checkpoint_left_it() -> None:
    guarded = Guard(GuardPart(max_bad_steps=2), recent=[0.5] * 20, bad=1)
    assert guarded.of_loss(5.1) == "loss: spike"
    guarded.skipped(["a"])
    with pytest.raises(RunFailed, match="2 bad steps in a row"):
        guarded.check(3, "loss: spike")


def test_rows_under_suspicion_are_the_broken_ones_or_those_with_the_highest_loss() -> None:
    ids = ["a", "b", "c"]
    assert guard.suspects(ids, [0.1, math.nan, math.inf], reason=guard.LOSS_NOT_FINITE) == ["b", "c"]
    assert guard.suspects(ids, [0.1, 0.3, 0.2], reason=guard.LOSS_SPIKE) == ["b", "c", "a"]
    assert guard.suspects(ids, [0.1, 0.3, 0.2], reason=guard.GRADIENT_NOT_FINITE) == ["b", "c", "a"]
    assert len(guard.suspects(ids * 5, [0.1] * 15, reason=guard.LOSS_SPIKE)) == 8
