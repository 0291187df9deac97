"""Norms of the UNet that take and give their input's dtype, with float32 inside whatever that is (float64 stays).

Autocast on a GPU would make them float32 (layer_norm, norm and addcmul are on its lists), and so the state and all that
is kept for the backward pass would be twice as large; it is switched off for them. Eager, each keeps its input alone
for the backward pass; inside of torch.compile the plain formulas are used, which the compiler fuses with what stands
around them.

Shapes: B batch, H and W cells, C channels.

Kind: actor.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

EPSILON = 1e-6  # Stability-AI/StableCascade 7a7d341 modules/common.py: of each LayerNorm and of GlobalResponseNorm


def layer_norm(x: Tensor) -> Tensor:
    """Layer norm of the last axis, without weights."""
    with without_autocast(x):
        return functional.layer_norm(x, x.shape[-1:], eps=EPSILON)


def scale_shift(x_BHWC: Tensor, *, scale_B11C: Tensor, shift_B11C: Tensor) -> Tensor:
    """x * scale + shift, in the dtype of x. Scale and shift are float32 (float64 for a float64 x)."""
    with without_autocast(x_BHWC):
        if torch.compiler.is_compiling():
            return scale_shift_plainly(x_BHWC, scale_B11C=scale_B11C, shift_B11C=shift_B11C)
        if not torch.is_grad_enabled():
            return _scaled(x_BHWC, scale_B11C, shift_B11C)
        return cast(Tensor, _ScaleShift.apply(x_BHWC, scale_B11C, shift_B11C))  # type: ignore[no-untyped-call]


def scale_shift_plainly(x_BHWC: Tensor, *, scale_B11C: Tensor, shift_B11C: Tensor) -> Tensor:
    """The formula of `scale_shift`."""
    return (x_BHWC.to(wide(x_BHWC)) * scale_B11C + shift_B11C).to(x_BHWC.dtype)


def response_norm(x_BHWC: Tensor, *, gamma_111C: Tensor, beta_111C: Tensor) -> Tensor:
    """Global response norm (ConvNeXt V2): each channel by its norm over the picture, relative to the other channels."""
    with without_autocast(x_BHWC):
        if torch.compiler.is_compiling():
            return response_norm_plainly(x_BHWC, gamma_111C=gamma_111C, beta_111C=beta_111C)
        if not torch.is_grad_enabled():
            return _responded(x_BHWC, gamma_111C, beta_111C)[0]
        return cast(Tensor, _ResponseNorm.apply(x_BHWC, gamma_111C, beta_111C))  # type: ignore[no-untyped-call]


def response_norm_plainly(x_BHWC: Tensor, *, gamma_111C: Tensor, beta_111C: Tensor) -> Tensor:
    """The formula of `response_norm`: gamma * x * n / (mean of n + epsilon) + beta + x."""
    dtype = wide(x_BHWC)
    wide_BHWC = x_BHWC.to(dtype)
    norm_B11C: Tensor = torch.linalg.vector_norm(wide_BHWC, dim=(1, 2), keepdim=True)
    relative_B11C = norm_B11C / (norm_B11C.mean(dim=-1, keepdim=True) + EPSILON)
    scale_B11C = 1 + gamma_111C.to(dtype) * relative_B11C
    return (wide_BHWC * scale_B11C + beta_111C.to(dtype)).to(x_BHWC.dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Within, operations on the device of x take the dtypes that they are given. Meta tensors have no autocast."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # to enter and leave costs the host more than a norm
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def wide(x: Tensor) -> torch.dtype:
    """The dtype that is computed in: float32, or float64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)


class _ScaleShift(torch.autograd.Function):
    """Keeps x in its own dtype; autograd's own formula would keep a float32 copy."""

    @staticmethod
    def forward(ctx: Any, x_BHWC: Tensor, scale_B11C: Tensor, shift_B11C: Tensor) -> Tensor:
        ctx.save_for_backward(x_BHWC, scale_B11C)
        return _scaled(x_BHWC, scale_B11C, shift_B11C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BHWC, scale_B11C = ctx.saved_tensors
        x_gradient_BHWC = torch.mul(gradient_BHWC, scale_B11C, out=torch.empty_like(x_BHWC))
        return x_gradient_BHWC, _sum(gradient_BHWC * x_BHWC), _sum(gradient_BHWC)


class _ResponseNorm(torch.autograd.Function):
    """Keeps x in its own dtype, and one number for each channel of each picture."""

    @staticmethod
    def forward(ctx: Any, x_BHWC: Tensor, gamma_111C: Tensor, beta_111C: Tensor) -> Tensor:
        found_BHWC, norm_B11C = _responded(x_BHWC, gamma_111C, beta_111C)
        ctx.save_for_backward(x_BHWC, gamma_111C, norm_B11C)
        return found_BHWC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BHWC, gamma_111C, norm_B11C = ctx.saved_tensors
        gamma_wide_111C = gamma_111C.to(norm_B11C.dtype)
        mean_B111 = norm_B11C.mean(dim=-1, keepdim=True) + EPSILON
        product_B11C = _sum(gradient_BHWC * x_BHWC)
        # relative = norm / mean(norm): its gradient, then that of norm, then norm's by x, which is x / norm (0 at 0)
        relative_gradient_B11C = gamma_wide_111C * product_B11C
        shared_B111 = (relative_gradient_B11C * norm_B11C).mean(dim=-1, keepdim=True) / mean_B111
        norm_gradient_B11C = (relative_gradient_B11C - shared_B111) / mean_B111
        factor_B11C = torch.where(norm_B11C > 0, norm_gradient_B11C / norm_B11C, 0)
        # The smaller of the two terms is the one that is rounded to the dtype of x in between
        x_gradient_BHWC = torch.mul(x_BHWC, factor_B11C, out=torch.empty_like(x_BHWC))
        scale_B11C = 1 + gamma_wide_111C * norm_B11C / mean_B111
        x_gradient_BHWC = _scaled(gradient_BHWC, scale_B11C, x_gradient_BHWC)
        gamma_gradient_111C = (product_B11C * norm_B11C / mean_B111).sum(dim=0, keepdim=True)
        beta_gradient_111C = _sum(gradient_BHWC).sum(dim=0, keepdim=True)
        return x_gradient_BHWC, gamma_gradient_111C.to(gamma_111C), beta_gradient_111C.to(gamma_111C)


def _responded(x_BHWC: Tensor, gamma_111C: Tensor, beta_111C: Tensor) -> tuple[Tensor, Tensor]:
    """The response norm of x, and the norm of each channel, [B,1,1,C]."""
    dtype = wide(x_BHWC)
    norm_B11C = _norm(x_BHWC)
    relative_B11C = norm_B11C / (norm_B11C.mean(dim=-1, keepdim=True) + EPSILON)
    return _scaled(x_BHWC, 1 + gamma_111C.to(dtype) * relative_B11C, beta_111C.to(dtype)), norm_B11C


def _scaled(x_BHWC: Tensor, scale_B11C: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift, computed in the widest dtype of the three and written in that of x, without a copy between."""
    return torch.addcmul(shift, x_BHWC, scale_B11C, out=torch.empty_like(x_BHWC))


def _norm(x_BHWC: Tensor) -> Tensor:
    """The norm of each channel over the picture, [B,1,1,C]. On a CPU vector_norm over these axes takes 7 to 20 times as
    long as what it stands for (torch 2.13); on a GPU it reads x once and writes no squares.
    """
    if x_BHWC.device.type == "cpu":
        return _sum(x_BHWC.to(wide(x_BHWC)).square()).sqrt()
    norm_B11C: Tensor = torch.linalg.vector_norm(x_BHWC, dim=(1, 2), keepdim=True, dtype=wide(x_BHWC))
    return norm_B11C


def _sum(x_BHWC: Tensor) -> Tensor:
    """The sum over the picture, [B,1,1,C], added up in float32."""
    return x_BHWC.sum(dim=(1, 2), keepdim=True, dtype=wide(x_BHWC))
