import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMWuerstchenScheduler

from sote.train import diffusion
from sote.train.recipe import DiffusionPart

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "diffusion.json").read_text())


def _golden(name: str) -> torch.Tensor:
    return torch.tensor(GOLDEN[name])


def test_schedule_noise_condition_and_weight_are_stabilitys() -> None:
    log_snr = diffusion.log_snr(_golden("t"))
    # alpha bar near 1 has float32 steps of 6e-8, which log(x / (1 - x)) makes 1e-4 where 1 - x is 6e-4
    torch.testing.assert_close(log_snr, _golden("log_snr"), atol=2e-4, rtol=0)
    torch.testing.assert_close(diffusion.noise_condition(log_snr), _golden("noise_condition"), atol=1e-5, rtol=0)
    torch.testing.assert_close(diffusion.p2_weight(log_snr), _golden("p2_weight"), atol=1e-6, rtol=0)


def test_noised_latents_are_stabilitys_and_the_target_is_the_noise() -> None:
    latents, noise = (_golden(name)[:, None, None, None] for name in ("latents", "noise"))
    found = diffusion.noised(latents, noise_BCHW=noise, log_snr_B=_golden("log_snr"))
    torch.testing.assert_close(found.flatten(), _golden("noised"), atol=1e-6, rtol=0)
    torch.testing.assert_close(_golden("target"), _golden("noise"))


def test_the_model_never_sees_a_time_outside_of_the_clamped_range() -> None:
    told = diffusion.noise_condition(diffusion.log_snr(torch.linspace(0, 1, 1001)))
    # Limits: gdf with clamp_range [0.0001, 0.9999]
    assert float(told.min()) == pytest.approx(0.00226, abs=1e-5)
    assert float(told.max()) == pytest.approx(0.99358, abs=1e-5)


def test_times_are_drawn_as_stability_draws_them() -> None:
    drawn = diffusion.times(torch.tensor([0.0, 0.5, 0.9999999]), DiffusionPart())
    assert drawn.tolist() == pytest.approx([1.0, 0.501, 0.001], abs=1e-6)


def test_alpha_bar_is_that_of_the_scheduler_that_serving_uses() -> None:
    times = torch.linspace(0.01, 0.99, 50)
    theirs = DDPMWuerstchenScheduler()._alpha_cumprod(times, "cpu")
    torch.testing.assert_close(diffusion.log_snr(times).sigmoid(), theirs, atol=1e-6, rtol=0)


def test_half_precision_goes_in_and_float32_comes_out() -> None:
    latents = torch.ones(1, 16, 2, 2, dtype=torch.float16)
    found = diffusion.noised(latents, noise_BCHW=latents, log_snr_B=torch.zeros(1))
    assert found.dtype == torch.float32
    assert float(found[0, 0, 0, 0]) == pytest.approx(2 * 0.5**0.5)
