"""The optimizer of a recipe: a group for each trained module, with its own learning rate.

Kind: actor.
"""

import math
from typing import Any

from torch import nn

from sote.train.adafactor import Adafactor
from sote.train.adamw import AdamW
from sote.train.piecewise import Piecewise
from sote.train.recipe import OptimizerPart


def make(model: nn.Module, part: OptimizerPart) -> Piecewise:
    """Adafactor or AdamW over the tensors of `model` that require a gradient. What has no learning rate is frozen.

    The model's modules are called as in `base_rates`. Raises ValueError if a tensor outside of these is trained.
    """
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    groups: list[dict[str, Any]] = []
    for module, rate in base_rates(part).items():
        names = [name for name in trained if name.split(".")[0] == module]
        if names:
            tensors = [trained.pop(name) for name in names]
            decay = {"weight_decay": part.weight_decay, "betas": part.betas}
            groups.append({"params": tensors, "names": names, "name": module, "lr": rate} | decay)
    if trained:
        raise ValueError(f"{min(trained)} requires a gradient, but the recipe gives it no learning rate")
    return Adafactor(groups) if part.name == "adafactor" else AdamW(groups)


def base_rates(part: OptimizerPart) -> dict[str, float]:
    """Learning rate of each trained module after the warm-up, and before it falls."""
    rates = {
        "prior": part.prior_learning_rate,
        "text_encoder": part.text_encoder_learning_rate,
        "decoder": part.decoder_learning_rate,
    }
    return {name: rate for name, rate in rates.items() if rate is not None}


def share(step: int, part: OptimizerPart) -> float:
    """What the learning rates are multiplied with at `step` (from 1): linear up to 1 at `warmup_steps`, and with
    `decay` down to `decay_to`, which the step after `decay_end` has. A function of these alone: a run that goes on, or
    is made longer, has the rates that it would have had.
    """
    if step < part.warmup_steps:
        return step / part.warmup_steps
    if part.decay_end is None or part.decay_steps is None:
        return 1.0
    left = min(max((part.decay_end - step + 1) / part.decay_steps, 0.0), 1.0)
    if part.decay == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    least = part.decay_to or 0.0
    return least + (1 - least) * left


def rates(part: OptimizerPart, *, step: int) -> dict[str, float]:
    """Learning rate of each trained module at `step`."""
    return {name: rate * share(step, part) for name, rate in base_rates(part).items()}


def prepare(optimizer: Piecewise, part: OptimizerPart, *, step: int, updates: int) -> None:
    """Ready the optimizer for update number `updates` (from 1), which is made at `step` of the run."""
    found = rates(part, step=step)
    for group in optimizer.param_groups:
        group["lr"] = found[group["name"]]
    optimizer.updates = updates
