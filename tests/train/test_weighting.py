import json
from pathlib import Path

import pytest
import torch

from sote.cluster.errors import CheckpointError
from sote.train import diffusion, weighting

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "adaptive_weight.json").read_text())


def test_the_adaptive_weight_is_gdfs_to_the_bit() -> None:
    adaptive = weighting.make("adaptive")
    for step in GOLDEN["steps"]:
        log_snr, loss = torch.tensor(step["log_snr"]), torch.tensor(step["loss"])
        assert adaptive.weights(log_snr).tolist() == step["weights_before"]
        adaptive.update(log_snr, loss)
        assert adaptive.weights(log_snr).tolist() == step["weights_after"]
    assert adaptive.state() == GOLDEN["bucket_losses"]


def test_it_starts_with_ones_in_300_buckets() -> None:
    adaptive = weighting.make("adaptive")
    assert adaptive.state() == [1.0] * 300
    assert adaptive.weights(torch.tensor([-9.21, 0.0, 9.21])).tolist() == [1.0] * 3


def test_a_touched_bucket_moves_by_a_hundredth_once_in_a_step() -> None:
    adaptive = weighting.make("adaptive")
    adaptive.update(torch.zeros(3), torch.tensor([5.0, 4.0, 3.0]))
    assert float(1 / adaptive.weights(torch.zeros(1))) == pytest.approx(0.99 + 0.03)
    assert sum(loss != 1 for loss in adaptive.state() or []) == 1


def test_the_weight_is_clamped() -> None:
    adaptive = weighting.make("adaptive")
    adaptive.load([1e-9] * 150 + [1e9] * 150)
    assert adaptive.weights(torch.tensor([-5.0, 5.0])).tolist() == pytest.approx([1e7, 1e-7])


def test_it_goes_through_json_to_the_bit_and_on_alike() -> None:
    one, other = weighting.make("adaptive"), weighting.make("adaptive")
    random = torch.Generator().manual_seed(0)
    draw = [(torch.randn(64, generator=random) * 3, torch.rand(64, generator=random)) for _ in range(20)]
    for log_snr, loss in draw:
        one.update(log_snr, loss)
    other.load(json.loads(json.dumps(one.state())))
    for log_snr, loss in draw:
        one.update(log_snr, loss)
        other.update(log_snr, loss)
    assert one.state() == other.state()


def test_p2_and_none_keep_nothing() -> None:
    log_snr = torch.tensor([-3.0, 0.0, 3.0])
    p2, none = weighting.make("p2"), weighting.make("none")
    assert torch.equal(p2.weights(log_snr), diffusion.p2_weight(log_snr))
    assert none.weights(log_snr).tolist() == [1.0] * 3
    for fixed in (p2, none):
        fixed.update(log_snr, torch.ones(3))
        fixed.load(fixed.state())
        assert fixed.state() is None


@pytest.mark.parametrize(
    ("name", "state", "found"),
    [("adaptive", [1.0] * 299, "299 numbers"), ("adaptive", None, "none"), ("p2", [1.0] * 300, "adaptive weight")],
)
def test_the_state_of_another_weight_is_refused(name: str, state: list[float] | None, found: str) -> None:
    with pytest.raises(CheckpointError, match=found):
        weighting.make(name).load(state)  # type: ignore[arg-type]
