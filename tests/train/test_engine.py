import pytest
import torch
from torch import nn

from sote.train.engine import Plain
from sote.train.recipe import BatchPart, OptimizerPart, WorkersPart


def _engine(*, micro: int, precision: str = "float32", clipping: float = 1e9) -> Plain:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return Plain(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        part=OptimizerPart(gradient_clipping=clipping),
        batch=BatchPart(effective_batch=8, micro_batch=micro),
        work=WorkersPart.model_validate({"precision": precision}),
    )


def _step(engine: Plain, *, micro: int) -> float:
    inputs = torch.arange(24.0).reshape(8, 3) / 24
    for part in inputs.split(micro):
        engine.backward(engine(part).square().mean())
    norm = engine.clip()
    engine.update()
    return norm


def test_micro_batches_add_up_to_the_mean_over_the_whole_batch() -> None:
    whole, parts = _engine(micro=8), _engine(micro=2)
    assert _step(whole, micro=8) == pytest.approx(_step(parts, micro=2), rel=1e-6)
    torch.testing.assert_close(whole.model.weight, parts.model.weight)


def test_gradients_are_gone_after_an_update() -> None:
    engine = _engine(micro=8)
    _step(engine, micro=8)
    assert all(tensor.grad is None for tensor in engine.model.parameters())


def test_clipping_scales_all_gradients_together_and_gives_the_norm_before() -> None:
    free, clipped = _engine(micro=8), _engine(micro=8, clipping=0.01)
    before = free.model.weight.clone()
    norm = _step(free, micro=8)
    assert _step(clipped, micro=8) == norm
    moved = [engine.model.weight - before for engine in (free, clipped)]
    torch.testing.assert_close(moved[1], moved[0] * 0.01 / norm, rtol=1e-3, atol=1e-8)


def test_bfloat16_is_for_the_arithmetic_only() -> None:
    engine = _engine(micro=8, precision="bfloat16")
    assert engine(torch.ones(2, 3)).dtype == torch.bfloat16
    assert engine.model.weight.dtype == torch.float32
