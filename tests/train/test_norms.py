from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sote.train import norms


def _three(dtype: torch.dtype, *, seed: int = 0, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """A state [B,3,4,6], and two tensors that fit it, all with gradients."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((2, 3, 4, 6), (batch, 1, 1, 6), (batch, 1, 1, 6))
    return tuple(
        torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    )


def _response(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, gamma, beta: function(x, gamma_111C=gamma, beta_111C=beta)


def _scaled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, scale, shift: function(x, scale_B11C=scale, shift_B11C=shift)


# Each function with the formula that it must be equal to, and whether its weights are the same for all pictures
PAIRS = [
    pytest.param(_response(norms.response_norm), _response(norms.response_norm_plainly), 1, id="response_norm"),
    pytest.param(_scaled(norms.scale_shift), _scaled(norms.scale_shift_plainly), 2, id="scale_shift"),
]


def _results(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    output = function(*inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, weights)]


@pytest.mark.parametrize(("fast", "plainly", "batch"), PAIRS)
def test_gradients_are_right_in_float64(fast: Callable[..., Tensor], plainly: object, batch: int) -> None:
    assert torch.autograd.gradcheck(fast, _three(torch.float64, batch=batch))


@pytest.mark.parametrize(("fast", "plainly", "batch"), PAIRS)
def test_what_is_fast_equals_the_formula(
    fast: Callable[..., Tensor], plainly: Callable[..., Tensor], batch: int
) -> None:
    inputs = _three(torch.float32, batch=batch)
    for found, wanted in zip(_results(fast, inputs), _results(plainly, inputs), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("fast", "plainly", "batch"), PAIRS)
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_a_bfloat16_state_stays_one_and_is_as_near_as_rounding_allows(
    fast: Callable[..., Tensor],
    plainly: Callable[..., Tensor],
    batch: int,
    weights: torch.dtype,
    is_autocast: bool,
) -> None:
    if weights is torch.bfloat16 and batch == 2:
        return  # scale and shift of the time are never bfloat16
    x, first, second = _three(torch.bfloat16, batch=batch)
    inputs = (x, *(part.detach().to(weights).requires_grad_() for part in (first, second)))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        results = _results(fast, inputs)
    assert [found.dtype for found in results] == [torch.bfloat16, torch.bfloat16, weights, weights]
    exact = _results(plainly, tuple(part.detach().double().requires_grad_() for part in inputs))
    for found, wanted in zip(results, exact, strict=True):
        torch.testing.assert_close(found.double(), wanted, atol=0.03, rtol=0.02)


def test_response_norm_of_a_channel_that_is_zero_has_a_gradient() -> None:
    x, gamma, beta = _three(torch.float32, batch=1)
    with torch.no_grad():
        x[..., 2] = 0
    for found, wanted in zip(
        _results(_response(norms.response_norm), (x, gamma, beta)),
        _results(_response(norms.response_norm_plainly), (x, gamma, beta)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_layer_norm_equals_torchs_and_keeps_the_dtype_under_autocast() -> None:
    x, _, _ = _three(torch.float32)
    torch.testing.assert_close(norms.layer_norm(x), functional.layer_norm(x, (6,), eps=norms.EPSILON))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norms.layer_norm(x.bfloat16()).dtype is torch.bfloat16
    assert norms.layer_norm(torch.empty(2, 6, device="meta")).shape == (2, 6)  # meta has no autocast to switch off
