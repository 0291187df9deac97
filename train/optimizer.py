"""Adafactor over two groups (prior and text encoder, each with its own learning rate), its state by tensor name.

Kind: actor.
"""

from torch import Tensor, nn
from transformers.optimization import Adafactor

from sote.cluster.errors import CheckpointError
from sote.train.recipe import OptimizerPart

STEP = "step"  # number of updates, kept once for all tensors
# What Adafactor keeps for a tensor: rows and columns where it has two axes or more, else everything
MOMENTS = ("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq")


def make(model: nn.Module, part: OptimizerPart) -> Adafactor:
    """Adafactor over `model.prior` and `model.text_encoder`, as the seed has it: no scaling of its own.

    Tensors that do not require a gradient are left out; a module without learning rate is expected to be frozen.
    """
    groups = []
    for name, rate in base_rates(part).items():
        tensors = [tensor for tensor in model.get_submodule(name).parameters() if tensor.requires_grad]
        groups.append({"params": tensors, "lr": rate, "name": name})
    # eps, clip threshold and decay are transformers' defaults, which the seed's trainer left as they are
    return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False)  # type: ignore[no-untyped-call]


def base_rates(part: OptimizerPart) -> dict[str, float]:
    """Learning rate of each trained module after the warm-up."""
    rates = {"prior": part.prior_learning_rate, "text_encoder": part.text_encoder_learning_rate}
    return {name: rate for name, rate in rates.items() if rate is not None}


def warmth(step: int, part: OptimizerPart) -> float:
    """What the learning rates are multiplied with at `step` (from 1): linear up to 1 at `warmup_steps`."""
    return min(1.0, step / part.warmup_steps) if part.warmup_steps else 1.0


def set_rates(optimizer: Adafactor, part: OptimizerPart, *, step: int) -> None:
    """Give each group its learning rate at `step`."""
    rates = base_rates(part)
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]] * warmth(step, part)


def state_by_name(optimizer: Adafactor, model: nn.Module) -> dict[str, Tensor]:
    """Adafactor's moments as `<tensor's name>/<moment>`; the number of updates is the run's step and not in here."""
    found: dict[str, Tensor] = {}
    for name, tensor in _trained(model).items():
        state = optimizer.state.get(tensor, {})
        found |= {f"{name}/{moment}": state[moment] for moment in MOMENTS if moment in state}
    return found


def load_state(optimizer: Adafactor, model: nn.Module, *, tensors: dict[str, Tensor], step: int) -> None:
    """Put moments saved by `state_by_name` after `step` updates back. Raises CheckpointError if they do not fit."""
    left = dict(tensors)
    for name, tensor in _trained(model).items():
        shapes = _shapes(tensor)
        state: dict[str, object] = {STEP: step, "RMS": 0}
        for moment, shape in shapes.items():
            saved = left.pop(f"{name}/{moment}", None)
            if saved is None or tuple(saved.shape) != shape:
                was = "missing" if saved is None else f"of shape {tuple(saved.shape)}"
                raise CheckpointError(f"optimizer state {name}/{moment}: {was}, should have shape {shape}")
            state[moment] = saved.to(tensor.device)
        optimizer.state[tensor] = state
    if left:
        raise CheckpointError(f"optimizer state {min(left)}: belongs to no tensor that this recipe trains")


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def _shapes(tensor: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of Adafactor's moments for a tensor: it factors the last two axes wherever there are two."""
    shape = tuple(tensor.shape)
    if len(shape) < 2:
        return {"exp_avg_sq": shape}
    return {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:]}
