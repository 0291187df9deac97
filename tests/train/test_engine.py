import ast
import inspect
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as Original

from sote.cluster.errors import CheckpointError
from sote.train.engine import Plain
from sote.train.recipe import BatchPart, OptimizerPart, WorkersPart

INPUTS = torch.arange(24.0).reshape(8, 3) / 24


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prior = nn.Linear(3, 1)
        self.frozen = nn.Linear(3, 3).to(torch.bfloat16).requires_grad_(False)
        self.unused = nn.Linear(1, 1).requires_grad_(False)

    def forward(self, inputs_BD: Tensor) -> Tensor:
        return self.prior(inputs_BD + self.frozen(inputs_BD.to(torch.bfloat16)).float())


def _engine(*, precision: str = "float32", **settings: object) -> Plain:
    part = {"prior_learning_rate": 0.1, "warmup_steps": 0, "gradient_clipping": 1e9} | settings
    return Plain(
        Model(),
        part=OptimizerPart.model_validate(part),
        batch=BatchPart(effective_batch=8, micro_batch=2),
        work=WorkersPart.model_validate({"precision": precision}),
    )


def _backward(engine: Plain, *, micro: int = 2) -> None:
    for part in INPUTS.split(micro):
        engine.backward(engine(part).square().mean() * (micro / len(INPUTS)))


def _step(engine: Plain, number: int = 1, *, micro: int = 2) -> float:
    _backward(engine, micro=micro)
    norm = engine.clip()
    engine.update(step=number, updates=number)
    return norm


def _weights(engine: Plain) -> dict[str, Tensor]:
    return engine.assemble(engine.pieces())


def test_shares_of_micro_batches_add_up_to_the_mean_over_the_whole_batch() -> None:
    whole, parts = _engine(), _engine()
    assert _step(whole, micro=8) == pytest.approx(_step(parts, micro=2), rel=1e-6)
    torch.testing.assert_close(_weights(whole), _weights(parts))


def test_gradients_are_gone_after_an_update_and_after_a_skipped_step() -> None:
    engine, once = _engine(), _engine()
    _backward(engine)
    engine.skip()
    assert all(tensor.grad is None for tensor in engine.model.parameters())
    assert _step(engine) == _step(once)
    assert all(tensor.grad is None for tensor in engine.model.parameters())
    assert torch.equal(_weights(engine)["prior.weight"], _weights(once)["prior.weight"])


def test_clipping_scales_all_gradients_together_and_gives_the_norm_before() -> None:
    free, clipped = _engine(), _engine(gradient_clipping=0.01)
    for engine in (free, clipped):
        _backward(engine)
    gradients = [tensor.grad.clone() for tensor in free.model.parameters() if tensor.grad is not None]
    norm = clipped.clip()
    assert norm == free.clip() == pytest.approx(math.sqrt(sum(float(grad.square().sum()) for grad in gradients)))
    for grad, tensor in zip(gradients, clipped.model.prior.parameters(), strict=True):
        torch.testing.assert_close(tensor.grad, grad * 0.01 / norm, rtol=1e-3, atol=1e-8)


def test_a_gradient_that_is_not_finite_shows_in_the_norm() -> None:
    engine = _engine()
    engine.backward(engine(INPUTS).mean() * math.inf)
    assert not math.isfinite(engine.clip())


def test_bfloat16_is_for_the_arithmetic_only() -> None:
    engine = _engine(precision="bfloat16")
    assert engine(torch.ones(2, 3)).dtype == torch.bfloat16
    assert _weights(engine)["prior.weight"].dtype == torch.float32


def test_only_what_is_trained_leaves_and_as_copies() -> None:
    engine = _engine()
    found = _weights(engine)
    assert list(found) == ["prior.weight", "prior.bias"]
    found["prior.weight"].zero_()
    assert engine.model.prior.weight.any()


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_training_goes_on_to_the_bit_from_what_was_saved(name: str) -> None:
    whole, fresh = _engine(name=name), _engine(name=name)
    for number in (1, 2, 3):
        _step(whole, number)
    weights, state = _weights(whole), whole.state()
    fresh.load(weights.__getitem__, state.__getitem__, updates=3)
    for engine in (whole, fresh):
        _step(engine, 4)
    assert torch.equal(_weights(whole)["prior.weight"], _weights(fresh)["prior.weight"])
    assert all(torch.equal(tensor, fresh.state()[name]) for name, tensor in whole.state().items())


def test_a_running_mean_is_filled_as_it_was_taken() -> None:
    engine = _engine()
    mean = [torch.zeros_like(piece) for piece in engine.pieces()]
    engine.fill(mean, _weights(engine).__getitem__)
    assert all(torch.equal(one, other) for one, other in zip(mean, engine.pieces(), strict=True))


def test_weights_and_state_that_do_not_fit_are_refused_by_name() -> None:
    engine = _engine()
    weights, state = _weights(engine), engine.state()
    weights["prior.weight"] = torch.ones(2, 2)
    with pytest.raises(CheckpointError, match=r"^prior.weight: of shape \(2, 2\), should have shape \(1, 3\)$"):
        engine.load(weights.__getitem__, None, updates=0)
    state["prior.weight/exp_avg_sq_row"] = torch.ones(9)
    with pytest.raises(CheckpointError, match=r"^prior.weight/exp_avg_sq_row: of shape \(9,\), should have shape \(1,"):
        engine.load(None, state.__getitem__, updates=0)


class Lone(nn.Module):
    """One matrix that gets the gradient it is told to."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.prior = nn.Linear(*weight.shape, bias=False)
        self.prior.weight.data.copy_(weight)

    def forward(self, gradient: Tensor) -> Tensor:
        return (self.prior.weight * gradient).sum()


@pytest.mark.parametrize(("deviation", "kept"), [(0.01, (0.1, 0.3)), (0.02, (0.05, 0.2)), (0.035, (0.02, 0.12))])
def test_bfloat16_weights_lose_most_of_the_movement_that_float32_masters_keep(
    deviation: float, kept: tuple[float, float]
) -> None:
    """facts/training.md 1.6: 200 steps at 4e-6, a steady direction and noise; the text encoder's weights are of 0.02.

    Measured there: 23, 11 and 7 % of the true movement are left.
    """
    random = torch.Generator().manual_seed(0)
    start, steady = (torch.randn(128, 128, generator=random) for _ in range(2))
    start = (start * deviation).to(torch.bfloat16)  # what both begin with
    part = OptimizerPart(prior_learning_rate=4e-6, warmup_steps=0, gradient_clipping=1e9)
    ours = Plain(Lone(start.float()), part=part, batch=BatchPart(), work=WorkersPart())
    true, low = start.double().requires_grad_(), start.clone().requires_grad_()
    settings = {"lr": 4e-6, "scale_parameter": False, "relative_step": False, "warmup_init": False}
    theirs = [Original([weights], **settings) for weights in (true, low)]  # type: ignore[no-untyped-call]
    for number in range(1, 201):
        gradient = steady + torch.randn(128, 128, generator=random)
        ours.backward(ours(gradient))
        ours.update(step=number, updates=number)
        for weights, original in zip((true, low), theirs, strict=True):
            weights.grad = gradient.to(weights.dtype)
            original.step()
    moved = (true - start).detach()
    left = [
        float(((end - start).double() * moved).sum() / moved.square().sum()) for end in (low.detach(), *ours.pieces())
    ]
    print(f"\nweights of {deviation}: bfloat16 keeps {left[0]:.1%} of the movement, float32 masters {left[1]:.3%}")
    assert kept[0] < left[0] < kept[1]
    assert left[1] == pytest.approx(1, abs=1e-3)


def _imported(module: str, seen: set[str]) -> set[str]:
    """All that a module of ours imports when it is imported, through others of ours."""
    seen.add(module)
    path = Path(inspect.getfile(Plain)).parents[1] / f"{module.removeprefix('sote.').replace('.', '/')}.py"
    for node in ast.parse(path.read_text()).body if path.exists() else ():
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{name}" if node.module == "sote.train" else str(node.module) for name in found]
        for name in set(found) - seen:
            _imported(name, seen)
    return seen


def test_the_plain_engine_needs_no_deepspeed() -> None:
    found = {name.split(".")[0] for name in _imported("sote.train.engine", set())}
    assert {"torch", "sote"} < found
    assert not found & {"deepspeed", "transformers", "ray"}
