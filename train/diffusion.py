"""The mathematics of Stable Cascade's diffusion: schedule, noise, condition, P2 weight. All in float32.

Time t runs from 0 (clean) to 1 (noise). Formulas: Stability-AI/StableCascade 7a7d341, gdf/, with the settings of
train/train_c.py and train/train_b.py: CosineSchedule(clamp_range=[0.0001, 0.9999]), VPScaler, EpsilonTarget,
CosineTNoiseCond, P2LossWeight. Both stages share them; `shift` is 1 in both (that of train_b's config is never read).

float32 whatever comes in: bfloat16 has steps of 0.004 below 1, and the model is told the time times 10,000.

Shapes: B batch, C channels, H and W latent cells.

Kind: actor.
"""

import math

import torch
from torch import Tensor

from sote.train.recipe import DiffusionPart

OFFSET = 0.008  # s of the cosine schedule
CLAMP = (0.0001, 0.9999)  # of alpha bar
FIRST_COSINE_SQUARED = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2) ** 2
# gdf/schedulers.py draws (1 - u) + 0.001, clamped to [0.001, 1]: a range 1/0.999 as wide as what is left of it
DRAWN_SHARE = 0.999


def times(uniform_B: Tensor, part: DiffusionPart) -> Tensor:
    """Times in [min_time, max_time] from uniform numbers u in [0, 1); by default gdf's (1 - u) + 0.001, clamped.

    In any range the last thousandth of the draws is clamped to max_time, as gdf's is to 1.
    """
    width = (part.max_time - part.min_time) / DRAWN_SHARE
    return ((1 - uniform_B.float()) * width).add(part.min_time).clamp(part.min_time, part.max_time)


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


def squared_distance(found_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """The plain loss of each image: the mean over its latents of (found - noise) squared, in float32."""
    return (found_BCHW.float() - noise_BCHW.float()).square().mean(dim=(1, 2, 3))
