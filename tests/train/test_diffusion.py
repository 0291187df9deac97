import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMWuerstchenScheduler

from sote.train import diffusion
from sote.train.recipe import DiffusionPart

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "diffusion.json").read_text())
EVENLY = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1e6  # a million draws from [0, 1)


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


def test_times_are_drawn_as_stability_draws_them_to_the_bit() -> None:
    draws = GOLDEN["draws"]
    assert diffusion.times(torch.tensor(draws["uniform"]), DiffusionPart()).tolist() == draws["times"]


def test_as_many_draws_are_clamped_and_weigh_as_much_as_stabilitys() -> None:
    draws = GOLDEN["draws"]
    log_snr = diffusion.log_snr(diffusion.times(EVENLY, DiffusionPart()))
    # 0.64 % of the times are beyond the noisy clamp; 0.1 % of the draws, clamped to 1, are as well
    assert float((log_snr <= -9.2101).double().mean()) == pytest.approx(draws["clamped_noisy"], abs=1e-5)
    assert draws["clamped_noisy"] == pytest.approx(0.0064 + 0.001, abs=1e-4)
    assert float((log_snr >= 9.2092).double().mean()) == pytest.approx(draws["clamped_clean"], abs=1e-5)
    assert float(diffusion.p2_weight(log_snr).double().mean()) == pytest.approx(draws["p2_mean"], abs=1e-5)
    assert draws["p2_mean"] == pytest.approx(0.5045, abs=1e-3)


def test_times_of_a_recipes_range_fill_it_evenly() -> None:
    times = diffusion.times(EVENLY, DiffusionPart(min_time=0.2, max_time=0.6))
    assert float(times.min()) == pytest.approx(0.2, abs=1e-6)
    assert float(times.max()) == pytest.approx(0.6, abs=1e-6)
    assert torch.histc(times, bins=4, min=0.2, max=0.6).tolist() == pytest.approx([250_000] * 4, rel=0.005)


def test_alpha_bar_is_that_of_the_scheduler_that_serving_uses() -> None:
    times = torch.linspace(0.01, 0.99, 50)
    theirs = DDPMWuerstchenScheduler()._alpha_cumprod(times, "cpu")
    torch.testing.assert_close(diffusion.log_snr(times).sigmoid(), theirs, atol=1e-6, rtol=0)


def test_half_precision_goes_in_and_float32_comes_out() -> None:
    latents = torch.ones(1, 16, 2, 2, dtype=torch.float16)
    found = diffusion.noised(latents, noise_BCHW=latents, log_snr_B=torch.zeros(1))
    assert found.dtype == torch.float32
    assert float(found[0, 0, 0, 0]) == pytest.approx(2 * 0.5**0.5)


def test_autocast_does_not_touch_the_time() -> None:
    times = torch.linspace(0.001, 1, 1000)
    exact = diffusion.noise_condition(diffusion.log_snr(times))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = diffusion.noise_condition(diffusion.log_snr(times))
    assert torch.equal(found, exact)


def test_bfloat16_would_lose_the_time() -> None:
    told = diffusion.noise_condition(diffusion.log_snr(torch.linspace(0.5, 0.99, 1000)))
    rounded = told.bfloat16().float()
    # The model embeds the time times 10,000: the rounded one is up to three whole turns of its fastest sine away
    assert float((told - rounded).abs().max() * 10_000) > 19
    assert len(told.unique()) == 1000
    assert len(rounded.unique()) <= 128
