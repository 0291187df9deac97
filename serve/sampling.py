"""Samplers of the cascade: one step of a batch whose rows have samplers, sigmas and guidance of their own.

A step goes from sigma s to sigma t < s: x = sqrt(a) x0 + sqrt(1 - a) eps with a = 1 / (1 + s^2), likewise b for t (the
variance-preserving scale). The network predicts eps. Nothing is kept between steps but what is handed in.

State is float32. Suffixes: B rows, C channels, H and W cells.
Source: Karras et al. 2022 (Euler, ancestral), Lu et al. 2022 (DPM-Solver++ 2M), Ho et al. 2020 (DDPM),
Ho & Salimans 2022 (guidance), Stability-AI/StableCascade 57a3d0e gdf/__init__.py (its rescale, there cfg_rho).

Kind: actor.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sote.serve import schedules
from sote.serve.schedules import ETA, Sampler
from sote.serve.settings import Stage, StageName


@dataclass(frozen=True)
class Plan:
    """How one stage of one picture is sampled: `sigmas` is its grid (`schedules.grid`), one more than its steps."""

    stage: StageName
    sampler: Sampler
    sigmas: tuple[float, ...]
    guidance: float = 1.0
    rescale: float = 0.0

    @staticmethod
    def of(name: StageName, stage: Stage, *, strength: float = 1.0) -> "Plan":
        """The plan of a stage. `strength` in (0, 1] below 1 keeps the low end of a finer grid, so that a picture to
        start from is painted anew in part, still in `stage.steps` steps (ComfyUI's denoise). No grid is finer than
        ComfyUI's table: what is less strength than that leaves the picture as it is."""
        steps = stage.steps if strength >= 1 else int(min(stage.steps / strength, schedules.TABLE_ENTRIES))
        sigmas = schedules.grid(stage.scheduler, steps, shift=stage.shift)[-(stage.steps + 1) :]
        return Plan(name, stage.sampler, sigmas, guidance=stage.guidance, rescale=stage.rescale)

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return len(self.sigmas) - 1

    @property
    def eta(self) -> float:
        """Share of the noise that a step takes away and draws anew: 0 none, 1 all that can be."""
        return ETA.get(self.sampler, 0.0)

    @property
    def is_multistep(self) -> bool:
        """Whether its steps look at the step before."""
        return self.sampler == "dpmpp_2m"


def draws(plan: Plan, step: int) -> bool:
    """Whether step `step` (from 0) of a plan takes noise from its row's stream. The last one never does."""
    return plan.eta > 0 and step < plan.steps - 1


def step(  # noqa: PLR0913  # each is of a row, and rows differ in all of them
    x_BCHW: Tensor,
    eps_BCHW: Tensor,
    *,
    sigma_B: Tensor,
    next_B: Tensor,
    before_B: Tensor,
    x0_before_BCHW: Tensor,
    eta_B: Tensor,
    is_multistep_B: Tensor,
    noise_BCHW: Tensor,
) -> tuple[Tensor, Tensor]:
    """x at `next_B`, and x0, the picture that `eps` says is under the noise at `sigma_B`.

    Rows of `is_multistep_B` (bool) take a step of DPM-Solver++(2M), the others one of Euler ancestral with their
    `eta_B`. `before_B` and `x0_before_BCHW` are sigma and x0 of the row's step before; sigma 0: there was none. A row
    that draws no noise has zeros in `noise_BCHW`.
    """
    s, t, before = _column(sigma_B), _column(next_B), _column(before_B)
    x0_BCHW = denoised(x_BCHW, eps_BCHW, sigma_B)
    one = _ancestral(x0_BCHW, eps_BCHW, s, t, eta=_column(eta_B), noise_BCHW=noise_BCHW)
    two = _multistep(x_BCHW, x0_BCHW, s, t, before=before, x0_before_BCHW=x0_before_BCHW)
    return torch.where(_column(is_multistep_B), two, one) / (1 + t * t).sqrt(), x0_BCHW


def denoised(x_BCHW: Tensor, eps_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """x0: (x - sqrt(1 - a) eps) / sqrt(a) = x sqrt(1 + s^2) - s eps."""
    s = _column(sigma_B)
    return x_BCHW * (1 + s * s).sqrt() - s * eps_BCHW


def guided(conditional_BCHW: Tensor, unconditional_BCHW: Tensor, *, scale_B: Tensor, rescale_B: Tensor) -> Tensor:
    """Classifier-free guidance u + scale (c - u); rows of scale 1 are the conditional prediction itself.

    `rescale_B` in [0, 1] moves the deviation over a picture back to the conditional's: 0 not at all, 1 wholly.
    """
    scale, rescale = _column(scale_B), _column(rescale_B)
    guided_BCHW = unconditional_BCHW + scale * (conditional_BCHW - unconditional_BCHW)
    guided_BCHW = torch.where(scale == 1, conditional_BCHW, guided_BCHW)
    ratio = _spread(conditional_BCHW) / (_spread(guided_BCHW) + 1e-9)  # 1e-9 as gdf has it
    return torch.where(rescale > 0, guided_BCHW * (1 + rescale * (ratio - 1)), guided_BCHW)


def started(z_BCHW: Tensor, noise_BCHW: Tensor, sigma: float) -> Tensor:
    """Where sampling from sigma starts if latents `z_BCHW` are there: sqrt(a) z + sqrt(1 - a) noise."""
    return (z_BCHW + sigma * noise_BCHW) / math.sqrt(1 + sigma * sigma)


def _ancestral(x0_BCHW: Tensor, eps_BCHW: Tensor, s: Tensor, t: Tensor, *, eta: Tensor, noise_BCHW: Tensor) -> Tensor:
    """One step in the scale where noise adds up. Karras et al. 2022, appendix B: eta 0 is Euler and DDIM, eta 1 DDPM.

    Where the noise is zeros the mean is still that of `eta`: the last step of DDPM.
    """
    up = torch.minimum(t, eta * t * (s * s - t * t).clamp(min=0).sqrt() / s)
    down = (t * t - up * up).clamp(min=0).sqrt()
    return x0_BCHW + down * eps_BCHW + up * noise_BCHW


def _multistep(
    x_BCHW: Tensor, x0_BCHW: Tensor, s: Tensor, t: Tensor, *, before: Tensor, x0_before_BCHW: Tensor
) -> Tensor:
    """One step in the scale where noise adds up. Lu et al. 2022, algorithm 2.

    First order where no step before came down (there was none, or the limits of sigma held it), and to sigma 0, which
    gives x0 itself, as ComfyUI and k-diffusion end.
    """
    is_second = (before > s) & (t > 0)
    h, h_before = torch.log(s / t), torch.log(before / s)
    second = x0_BCHW + h / (2 * h_before) * (x0_BCHW - x0_before_BCHW)
    best = torch.where(is_second, second, x0_BCHW)
    ratio = t / s  # exp(-h)
    return ratio * x_BCHW * (1 + s * s).sqrt() + (1 - ratio) * best


def _spread(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.std(dim=(1, 2, 3), keepdim=True)


def _column(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]
