import numpy as np
import pytest

from sote.cluster.errors import RunFailed
from sote.data import gate


@pytest.mark.parametrize("side", [8, 96])
def test_the_sample_is_four_pictures_that_are_always_the_same_and_all_differ(side: int) -> None:
    first, again = gate.sample(width=side, height=side), gate.sample(width=side, height=side)
    assert first.shape == (gate.PICTURES, side, side, 3)
    assert first.dtype == np.uint8
    assert first.tobytes() == again.tobytes()
    assert len({picture.tobytes() for picture in first}) == gate.PICTURES
    spreads = first.reshape(gate.PICTURES, -1).std(axis=1)
    assert (spreads > 15).all()


def test_the_sample_has_smooth_areas_hard_edges_and_noise() -> None:
    steps = np.abs(np.diff(gate.sample(width=128, height=128).astype(int), axis=2))
    soft, hard, noise, _ = (np.percentile(picture, (50, 100)) for picture in steps)
    assert soft[1] < 40 < hard[1]
    assert hard[0] < 10 < noise[0]


def test_the_largest_difference_is_told_and_one_above_the_limit_ends_the_run() -> None:
    reference = np.array([[0.1, 0.5], [0.9, 0.2]], np.float32)
    near = reference + np.array([[0, 0.01], [-0.015, 0]], np.float32)
    assert gate.difference(near, reference, limit=0.02, what="x") == pytest.approx(0.015, abs=1e-6)
    with pytest.raises(
        RunFailed, match=r"^tag: engine y: differs by 0\.015 from float32 .*max_difference \(0\.01\)"
    ) as raised:
        gate.difference(near, reference, limit=0.01, what="tag: engine y")
    assert "\n" not in str(raised.value)


def test_numbers_that_are_not_finite_never_pass() -> None:
    reference = np.full((1, 2), 0.5, np.float32)
    for bad in (np.nan, np.inf):
        with pytest.raises(RunFailed, match="differs by"):
            gate.difference(np.array([[0.5, bad]], np.float32), reference, limit=1, what="x")
    with pytest.raises(RunFailed, match=r"gives \(1, 1\) for the numeric gate's sample, float32 gives \(1, 2\)"):
        gate.difference(reference[:, :1], reference, limit=1, what="x")
