import pytest
import torch
from torch import nn
from transformers import SchedulerType, get_scheduler

from sote.train import optimizer
from sote.train.adafactor import Adafactor
from sote.train.adamw import AdamW
from sote.train.recipe import OptimizerPart

PART = OptimizerPart(prior_learning_rate=1e-2, text_encoder_learning_rate=1e-3, warmup_steps=4)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prior, self.text_encoder = nn.Conv2d(3, 4, 3), nn.Linear(5, 2)


def test_each_module_has_its_own_learning_rate_after_a_linear_warm_up() -> None:
    made = optimizer.make(Two(), PART)
    found = []
    for step in (1, 2, 4, 9):
        optimizer.prepare(made, PART, step=step, updates=step)
        found.append([group["lr"] for group in made.param_groups])
    assert found == [[2.5e-3, 2.5e-4], [5e-3, 5e-4], [1e-2, 1e-3], [1e-2, 1e-3]]
    assert optimizer.rates(PART, step=2) == {"prior": 5e-3, "text_encoder": 5e-4, "decoder": 5e-6}


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_rates_fall_as_transformers_schedules_let_them(kind: SchedulerType) -> None:
    part = PART.model_copy(update={"decay": kind, "decay_steps": 10})
    plainly = get_scheduler(
        kind, torch.optim.SGD(Two().parameters(), lr=1.0), num_warmup_steps=4, num_training_steps=14
    )
    # theirs counts from 0, warms up from a rate of 0, and its cosine rises again after the end
    wanted = [plainly.lr_lambdas[0](step - 1) for step in range(5, 16)]
    assert [optimizer.share(step, part) for step in range(5, 16)] == pytest.approx(wanted, abs=1e-12)
    assert [optimizer.share(step, part) for step in (1, 4, 15)] == [0.25, 1.0, 0.0]
    assert 0 < optimizer.share(14, part) < 0.11


def test_rates_fall_from_a_later_step_to_a_share_of_themselves() -> None:
    update = {"decay": "linear", "decay_start": 100, "decay_steps": 50, "decay_to": 0.2}
    part = PART.model_copy(update=update)
    found = [optimizer.share(step, part) for step in (3, 100, 101, 126, 151, 1000)]
    assert found == pytest.approx([0.75, 1.0, 1.0, 0.6, 0.2, 0.2])
    assert optimizer.rates(part, step=126)["prior"] == pytest.approx(6e-3)


def test_skipped_steps_count_for_the_warm_up_and_not_for_the_moments() -> None:
    made = optimizer.make(Two(), PART)
    optimizer.prepare(made, PART, step=3, updates=1)
    assert (made.param_groups[0]["lr"], made.updates) == (7.5e-3, 1)


def test_the_recipe_names_the_optimizer() -> None:
    assert isinstance(optimizer.make(Two(), PART), Adafactor)
    assert isinstance(optimizer.make(Two(), PART.model_copy(update={"name": "adamw"})), AdamW)


def test_adafactor_does_not_scale_by_itself() -> None:
    model = Two()
    with torch.no_grad():
        model.prior.weight.mul_(100)  # with scale_parameter a large tensor would take large steps
    before = model.prior.weight.clone()
    model.prior.weight.grad = torch.randn_like(model.prior.weight)
    optimizer.make(model, PART).step()
    moved = (model.prior.weight - before).square().mean().sqrt()
    assert float(moved.detach()) == pytest.approx(1e-2, rel=0.1)  # the update's RMS is 1 at most: clip_threshold


def test_what_is_frozen_is_not_in_the_optimizer() -> None:
    model = Two()
    model.text_encoder.requires_grad_(False)
    model.prior.bias.requires_grad_(False)
    made = optimizer.make(model, OptimizerPart())
    assert [(group["name"], group["names"]) for group in made.param_groups] == [("prior", ["prior.weight"])]


def test_a_trained_tensor_without_learning_rate_is_named() -> None:
    with pytest.raises(ValueError, match=r"text_encoder\.bias requires a gradient"):
        optimizer.make(Two(), OptimizerPart())


def test_adamw_moves_as_torchs_does() -> None:
    part = PART.model_copy(update={"name": "adamw", "weight_decay": 0.1, "betas": (0.8, 0.95), "warmup_steps": 0})
    ours, theirs = Two(), Two()
    made = optimizer.make(ours, part)
    groups = [{"params": theirs.prior.parameters(), "lr": 1e-2}, {"params": theirs.text_encoder.parameters()}]
    reference = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1, betas=(0.8, 0.95))
    for step in range(1, 6):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = other.grad = torch.randn_like(one)
        optimizer.prepare(made, part, step=step, updates=step)
        made.step()
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
