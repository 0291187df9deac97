"""Samplers of the cascade: stateless step rules in variance-preserving scale, and the loop that applies them.

A step goes from sigma s to sigma t < s: x = sqrt(a) x0 + sqrt(1 - a) eps with a = 1 / (1 + s^2), likewise b for t. The
network predicts eps. Each row of a batch has its own s and t, so rows at different steps can share a batch.

State is float32. Suffixes: B rows, C channels, H and W cells.
Source: Karras et al. 2022 (Euler, ancestral), Lu et al. 2022 (DPM-Solver++ 2M), Ho et al. 2020 (DDPM).

Kind: actor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sote.cluster.errors import RunFailed
from sote.serve import schedules
from sote.serve.schedules import ETA, Sampler

Predict = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[], Tensor]


@dataclass(frozen=True)
class Plan:
    """How one stage is sampled: `stage` names it in errors, `sigmas` is its grid (`schedules.grid`)."""

    stage: str
    sampler: Sampler
    sigmas: tuple[float, ...]


def sample(predict: Predict, draw: Draw, *, plan: Plan, each_step: Callable[[int], None] | None = None) -> Tensor:
    """Sample one batch from noise; returns x at the last sigma, [B, C, H, W] float32.

    `predict(x, r)` gives eps for x [B, C, H, W] and r [B], float32, guidance done. `draw()` gives standard noise
    [B, C, H, W] on the device of the model: first the start, then one for each step of a rule that adds noise.
    `each_step(i)` is called before step i; what it raises ends the sampling.
    Raises RunFailed with stage and step if a value is not finite.
    """
    x, x0_before, sigma_before = draw(), None, 0.0
    finite = []
    for step, (sigma, following) in enumerate(zip(plan.sigmas, plan.sigmas[1:], strict=False)):
        if each_step is not None:
            each_step(step)
        s, t, before = (x.new_full((len(x),), value) for value in (sigma, following, sigma_before))
        eps = predict(x, x.new_full((len(x),), schedules.r_at(sigma)))
        x0 = denoised(x, eps, s)
        if plan.sampler == "dpmpp_2m":
            x = dpmpp_2m(x, x0, s, t, x0_before=x0_before, sigma_before=before)
            x0_before, sigma_before = x0, sigma
        else:
            eta = ETA[plan.sampler]
            is_last = step == len(plan.sigmas) - 2
            noise = draw() if eta > 0 and not is_last else None
            x = ancestral(x0, eps, s, t, eta=eta, noise=noise)
        finite.append(torch.isfinite(x).all())
    _refuse_broken(torch.stack(finite).tolist(), plan.stage)
    return x


def denoised(x_BCHW: Tensor, eps_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """x0, the picture that `eps` says is under the noise: (x - sqrt(1 - a) eps) / sqrt(a) = x sqrt(1 + s^2) - s eps."""
    s = _column(sigma_B)
    return x_BCHW * (1 + s * s).sqrt() - s * eps_BCHW


def ancestral(
    x0_BCHW: Tensor, eps_BCHW: Tensor, sigma_B: Tensor, next_B: Tensor, *, eta: float, noise: Tensor | None
) -> Tensor:
    """One step of Euler (eta 0, which is DDIM) or Euler ancestral (eta 1, which is DDPM). Karras et al. 2022, app. B.

    Without `noise` none is added, but the mean is still that of `eta`: the last step of DDPM.
    """
    s, t = _column(sigma_B), _column(next_B)
    up = torch.minimum(t, eta * t * (s * s - t * t).clamp(min=0).sqrt() / s)
    down = (t * t - up * up).clamp(min=0).sqrt()
    x = x0_BCHW + down * eps_BCHW
    if noise is not None:
        x = x + up * noise
    return x / (1 + t * t).sqrt()


def dpmpp_2m(
    x_BCHW: Tensor,
    x0_BCHW: Tensor,
    sigma_B: Tensor,
    next_B: Tensor,
    *,
    x0_before: Tensor | None,
    sigma_before: Tensor,
) -> Tensor:
    """One step of DPM-Solver++(2M), Lu et al. 2022, algorithm 2. A row with `sigma_before` 0 has no step before.

    A step to sigma 0 gives x0 itself (first order), as ComfyUI and k-diffusion end it.
    """
    s, t, before = _column(sigma_B), _column(next_B), _column(sigma_before)
    best = x0_BCHW
    if x0_before is not None:
        is_second = (before > 0) & (t > 0)
        h, h_before = torch.log(s / t), torch.log(before / s)
        half = torch.where(is_second, h / (2 * h_before), torch.zeros_like(h))
        best = x0_BCHW + half * (x0_BCHW - x0_before)
    # (t / s) x sqrt(1 + s^2) + (1 - t / s) D, for exp(-h) = t / s
    ratio = t / s
    return (ratio * x_BCHW * (1 + s * s).sqrt() + (1 - ratio) * best) / (1 + t * t).sqrt()


def guided(eps_conditional: Tensor, eps_unconditional: Tensor, *, scale: float) -> Tensor:
    """Classifier-free guidance, Ho & Salimans 2022: u + scale (c - u). Done in float32."""
    return eps_unconditional + scale * (eps_conditional - eps_unconditional)


def noise_of(seeds: Sequence[int], shape: tuple[int, int, int], *, device: torch.device) -> Draw:
    """A `Draw` of standard noise [B, C, H, W], float32: one stream for each row, whatever rows are beside it.

    Drawn on the CPU, so that it is the same on every device.
    """
    streams = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(shape, generator=stream) for stream in streams]).to(device)


def _refuse_broken(finite: list[bool], stage: str) -> None:
    if not all(finite):
        raise RunFailed(
            f"{stage}: step {finite.index(False) + 1} of {len(finite)} gave values that are not finite (NaN or "
            "infinite); no picture was made. Broken weights or too narrow a number format do this"
        )


def _column(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]
