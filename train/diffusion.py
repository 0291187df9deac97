"""The mathematics of Stable Cascade's diffusion: schedule, noise, condition, weight. All in float32.

Time t runs from 0 (clean) to 1 (noise). Formulas: Stability-AI/StableCascade 7a7d341, gdf/, with the settings of
train/train_c.py: CosineSchedule(clamp_range=[0.0001, 0.9999]), VPScaler, EpsilonTarget, CosineTNoiseCond, P2LossWeight.

Shapes: B batch, C channels, H and W latent cells.

Kind: actor.
"""

import math

import torch
from torch import Tensor

OFFSET = 0.008  # s of the cosine schedule
CLAMP = (0.0001, 0.9999)  # of alpha bar
FIRST_COSINE_SQUARED = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2) ** 2
SMALLEST_TIME = 0.001  # gdf schedulers.py, sampling of t


def times(uniform_B: Tensor) -> Tensor:
    """Times in [0.001, 1] from uniform numbers in [0, 1)."""
    return (1 - uniform_B.float()).add(SMALLEST_TIME).clamp(SMALLEST_TIME, 1.0)


def log_snr(time_B: Tensor) -> Tensor:
    """Natural logarithm of the signal-to-noise ratio at each time, in [-9.2102, 9.2102]."""
    cosine_B = torch.cos((OFFSET + time_B.float()) / (1 + OFFSET) * math.pi / 2).clamp(0, 1)
    alpha_bar_B = (cosine_B**2 / FIRST_COSINE_SQUARED).clamp(*CLAMP)
    return (alpha_bar_B / (1 - alpha_bar_B)).log()


def noised(latents_BCHW: Tensor, *, noise_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
    """Latents with noise at the given ratio: sqrt(alpha bar) x + sqrt(1 - alpha bar) e. The model is to find e."""
    signal_B = log_snr_B.sigmoid()
    signal_B111, noise_B111 = (part[:, None, None, None] for part in (signal_B.sqrt(), (1 - signal_B).sqrt()))
    return latents_BCHW.float() * signal_B111 + noise_BCHW.float() * noise_B111


def noise_condition(log_snr_B: Tensor) -> Tensor:
    """The time that the model is told: t again, but within [0.00226, 0.99358] because alpha bar is clamped."""
    signal_B = log_snr_B.sigmoid().clamp(0, 1)
    return (signal_B * FIRST_COSINE_SQUARED).sqrt().acos() / (math.pi / 2) * (1 + OFFSET) - OFFSET


def p2_weight(log_snr_B: Tensor) -> Tensor:
    """Weight of the loss, 1 / (1 + SNR): in (0, 1), heavy where there is much noise."""
    return 1 / (1 + log_snr_B.exp())
