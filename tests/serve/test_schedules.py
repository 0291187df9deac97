import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDPMWuerstchenScheduler

from sote.serve import schedules

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "sigmas.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["grids"], ids=lambda case: f"{case['scheduler']}-{case['steps']}")
def test_grids_are_those_that_comfyui_computes(case: dict) -> None:
    sigmas = schedules.grid(case["scheduler"], case["steps"], shift=case["shift"])
    assert sigmas == pytest.approx(case["sigmas"], rel=2e-4, abs=1e-5)
    if "r" in case:
        assert [schedules.r_at(sigma) for sigma in sigmas[:-1]] == pytest.approx(case["r"], rel=2e-4, abs=2e-6)


def test_limits_are_those_of_training() -> None:
    limits = GOLDEN["limits"]
    assert limits["sigma_min"] == pytest.approx(schedules.SIGMA_MIN, rel=1e-5)
    assert limits["sigma_max"] == pytest.approx(schedules.SIGMA_MAX, rel=1e-6)
    assert schedules.r_at(schedules.SIGMA_MIN) == pytest.approx(limits["r_min"], rel=1e-3)  # float32 there
    assert schedules.r_at(schedules.SIGMA_MAX) == pytest.approx(limits["r_max"], rel=1e-6)


def test_the_plain_grid_is_that_of_diffusers() -> None:
    oracle = DDPMWuerstchenScheduler()
    oracle.set_timesteps(30)
    abar = oracle._alpha_cumprod(oracle.timesteps, torch.device("cpu")).double()
    expected = ((1 - abar) / abar).sqrt().tolist()
    assert schedules.grid("wuerstchen", 30) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("scheduler", schedules.SCHEDULERS)
@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_every_grid_falls_from_the_top_within_the_limits(
    scheduler: schedules.Scheduler, shift: float, steps: int
) -> None:
    sigmas = schedules.grid(scheduler, steps, shift=shift)
    assert len(sigmas) == steps + 1
    assert list(sigmas) == sorted(set(sigmas), reverse=True)
    assert sigmas[0] <= schedules.SIGMA_MAX * (1 + 1e-12)
    assert sigmas[-1] == (schedules.SIGMA_MIN if scheduler == "wuerstchen" else 0.0)


def test_r_gives_back_the_time_of_the_unshifted_schedule() -> None:
    for t in (0.1, 0.5, 0.9):
        assert schedules.r_at(schedules.sigma_at(t)) == pytest.approx(t, abs=1e-12)


def test_shift_lowers_the_log_snr_by_twice_its_logarithm() -> None:
    one, two = schedules.sigma_at(0.5), schedules.sigma_at(0.5, shift=2.0)
    assert -2 * math.log(one) - -2 * math.log(two) == pytest.approx(2 * math.log(2))
