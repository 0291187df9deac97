"""The noise levels of sampling: cosine schedule, shift, step grids, and the names users know them by.

sigma is noise over signal, sqrt((1 - abar) / abar); abar is the signal's share of the variance. r in [0, 1] is the
time that the network is told. A grid of n steps has n + 1 sigmas, falling; its last one is where sampling ends.
All of it is float64 of the standard library.

Source: cosine schedule and its limits: Stability-AI/StableCascade 7a7d341 gdf/schedulers.py; grids and shift as
ComfyUI a125cd8 computes them (read for facts); the plain grid: diffusers 0.42.1 DDPMWuerstchenScheduler.

Kind: pure.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal

Scheduler = Literal["sgm_uniform", "simple", "karras", "normal", "exponential", "wuerstchen"]
Sampler = Literal["ddpm", "euler", "euler_a", "dpmpp_2m", "ddim"]

SCHEDULERS: Final[dict[Scheduler, str]] = {  # name -> name as AUTOMATIC1111 writes it
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "karras": "Karras",
    "normal": "Normal",
    "exponential": "Exponential",
    "wuerstchen": "Wuerstchen",
}
SAMPLERS: Final[dict[Sampler, str]] = {
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "ddim": "DDIM",
}
# Two step rules behind five names: on one grid and for one noise, DDPM is Euler a and DDIM (eta 0) is Euler.
ETA: Final[dict[Sampler, float]] = {"ddpm": 1.0, "euler_a": 1.0, "euler": 0.0, "ddim": 0.0}

COSINE_S = 0.008  # Nichol & Dhariwal 2021, eq. 17
ABAR_MIN, ABAR_MAX = 1e-4, 0.9999  # gdf/schedulers.py clamp_range
SIGMA_MAX = math.sqrt((1 - ABAR_MIN) / ABAR_MIN)
SIGMA_MIN = math.sqrt((1 - ABAR_MAX) / ABAR_MAX)
TABLE_ENTRIES = 10_000  # ComfyUI tabulates sigma at t = 1/10000 ... 1 and picks from the table
KARRAS_RHO = 7.0  # Karras et al. 2022, table 1

_START = math.cos(COSINE_S / (1 + COSINE_S) * math.pi / 2) ** 2  # abar at t = 0 before it is divided to 1


def sigma_at(t: float, *, shift: float = 1.0) -> float:
    """sigma at time `t` in [0, 1], multiplied by `shift` (log SNR less 2 ln shift) and then held to the limits."""
    abar = math.cos((t + COSINE_S) / (1 + COSINE_S) * math.pi / 2) ** 2 / _START
    if abar >= 1.0:
        return SIGMA_MIN
    sigma = shift * math.sqrt((1 - abar) / abar) if abar > 0.0 else SIGMA_MAX
    return min(max(sigma, SIGMA_MIN), SIGMA_MAX)


def r_at(sigma: float) -> float:
    """The time r that the network is told for `sigma`: the inverse of the unshifted schedule, whatever the shift."""
    return math.acos(math.sqrt(_START / (1 + sigma * sigma))) / (math.pi / 2) * (1 + COSINE_S) - COSINE_S


def grid(scheduler: Scheduler, steps: int, *, shift: float = 1.0) -> tuple[float, ...]:
    """The `steps` + 1 sigmas of a grid. All end at 0 but `wuerstchen`, which ends at SIGMA_MIN."""
    match scheduler:
        case "wuerstchen":
            return tuple(sigma_at(t, shift=shift) for t in _line(1.0, 0.0, steps + 1))
        case "sgm_uniform":
            times: Sequence[float] = _line(r_at(SIGMA_MAX), r_at(SIGMA_MIN), steps + 1)[:-1]
        case "normal":
            times = _line(r_at(SIGMA_MAX), r_at(SIGMA_MIN), steps)
        case "simple":
            times = [1 - int(step * TABLE_ENTRIES / steps) / TABLE_ENTRIES for step in range(steps)]
        case "karras":
            low, high = SIGMA_MIN ** (1 / KARRAS_RHO), SIGMA_MAX ** (1 / KARRAS_RHO)
            return (*(root**KARRAS_RHO for root in _line(high, low, steps)), 0.0)
        case "exponential":
            return (*map(math.exp, _line(math.log(SIGMA_MAX), math.log(SIGMA_MIN), steps)), 0.0)
    return (*(sigma_at(t, shift=shift) for t in times), 0.0)


def _line(start: float, end: float, count: int) -> list[float]:
    """`count` evenly spaced numbers from `start` to `end`; a single one is `start`."""
    return [start + (end - start) * place / max(count - 1, 1) for place in range(count)]
