import pytest
import torch
from torch import nn

from sote.cluster.errors import CheckpointError
from sote.train import optimizer
from sote.train.recipe import OptimizerPart

PART = OptimizerPart(prior_learning_rate=1e-2, text_encoder_learning_rate=1e-3, warmup_steps=4)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prior, self.text_encoder = nn.Conv2d(3, 4, 3), nn.Linear(5, 2)


def _step(model: Two, adafactor: torch.optim.Optimizer, *, seed: int) -> None:
    torch.manual_seed(seed)
    for tensor in model.parameters():
        tensor.grad = torch.randn_like(tensor)
    adafactor.step()


def test_each_module_has_its_own_learning_rate_after_a_linear_warm_up() -> None:
    adafactor = optimizer.make(Two(), PART)
    rates = []
    for step in (1, 2, 4, 9):
        optimizer.set_rates(adafactor, PART, step=step)
        rates.append([group["lr"] for group in adafactor.param_groups])
    assert rates == [[2.5e-3, 2.5e-4], [5e-3, 5e-4], [1e-2, 1e-3], [1e-2, 1e-3]]


def test_adafactor_does_not_scale_by_itself() -> None:
    model = Two()
    with torch.no_grad():
        model.prior.weight.mul_(100)  # with scale_parameter a large tensor would take large steps
    before = model.prior.weight.clone()
    adafactor = optimizer.make(model, PART)
    _step(model, adafactor, seed=1)
    moved = (model.prior.weight - before).square().mean().sqrt()
    assert float(moved.detach()) == pytest.approx(1e-2, rel=0.1)  # the update's RMS is 1 at most: clip_threshold


def test_a_module_without_learning_rate_is_not_in_the_optimizer() -> None:
    adafactor = optimizer.make(Two(), OptimizerPart())
    assert [group["name"] for group in adafactor.param_groups] == ["prior"]


def test_training_goes_on_to_the_bit_from_a_saved_state() -> None:
    whole, cut = Two(), Two()
    one, two = optimizer.make(whole, PART), optimizer.make(cut, PART)
    for seed in range(3):
        _step(whole, one, seed=seed)
        _step(cut, two, seed=seed)
    fresh = optimizer.make(cut, PART)
    saved = {name: tensor.clone() for name, tensor in optimizer.state_by_name(two, cut).items()}
    optimizer.load_state(fresh, cut, tensors=saved, step=3)
    _step(whole, one, seed=9)
    _step(cut, fresh, seed=9)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))


def test_the_state_is_named_by_tensor_and_factored() -> None:
    model = Two()
    adafactor = optimizer.make(model, PART)
    _step(model, adafactor, seed=0)
    shapes = {name: tuple(tensor.shape) for name, tensor in optimizer.state_by_name(adafactor, model).items()}
    assert shapes["prior.weight/exp_avg_sq_row"] == (4, 3, 3)
    assert shapes["prior.weight/exp_avg_sq_col"] == (4, 3, 3)
    assert shapes["text_encoder.bias/exp_avg_sq"] == (2,)


def test_a_state_that_does_not_fit_is_refused_by_name() -> None:
    model = Two()
    adafactor = optimizer.make(model, PART)
    _step(model, adafactor, seed=0)
    state = optimizer.state_by_name(adafactor, model)
    missing = {name: tensor for name, tensor in state.items() if name != "prior.bias/exp_avg_sq"}
    with pytest.raises(CheckpointError, match=r"prior\.bias/exp_avg_sq: missing"):
        optimizer.load_state(adafactor, model, tensors=missing, step=1)
    with pytest.raises(CheckpointError, match="belongs to no tensor"):
        optimizer.load_state(adafactor, model, tensors=state | {"other/exp_avg_sq": torch.ones(1)}, step=1)
    reshaped = state | {"prior.bias/exp_avg_sq": torch.ones(9)}
    with pytest.raises(CheckpointError, match=r"of shape \(9,\), should have shape \(4,\)"):
        optimizer.load_state(adafactor, model, tensors=reshaped, step=1)
