import pytest

from sote.serve import names, schedules
from sote.serve.schedules import Sampler, Scheduler

SAMPLERS: dict[Sampler, tuple[str, ...]] = {
    "ddpm": ("ddpm", "DDPM", "DDPMWuerstchenScheduler", "DDPMScheduler", "Wuerstchen"),
    "euler": ("euler", "Euler", "K_EULER", "k_euler", "EulerDiscreteScheduler"),
    "euler_a": (
        "euler_a",
        "Euler a",
        "Euler A",
        "euler_ancestral",
        "Euler Ancestral",
        "euler-ancestral",
        "k_euler_a",
        "K_EULER_ANCESTRAL",
        "EulerAncestralDiscreteScheduler",
    ),
    "dpmpp_2m": (
        "dpmpp_2m",
        "DPM++ 2M",
        "DPM++2M",
        "dpmpp2m",
        "k_dpmpp_2m",
        "DPMSolverMultistepScheduler",
        "DPMSolverMultistep",
        "dpm_solver_multistep",
        "DPMSolver++",
        " dpm++_2m ",
    ),
    "ddim": ("ddim", "DDIM", "DDIMScheduler"),
}
SCHEDULERS: dict[Scheduler, tuple[str, ...]] = {
    "sgm_uniform": ("sgm_uniform", "SGM Uniform", "sgm uniform", "SGM", "Automatic"),
    "simple": ("simple", "Simple"),
    "karras": ("karras", "Karras"),
    "normal": ("normal", "Normal", "Uniform"),
    "exponential": ("exponential", "Exponential", "Polyexponential"),
    "wuerstchen": ("wuerstchen", "Wuerstchen", "ddpm_linear", "DDPMWuerstchen"),
}


@pytest.mark.parametrize("sampler", schedules.SAMPLERS)
def test_a_sampler_goes_by_every_name_that_people_know(sampler: Sampler) -> None:
    assert {names.sampler_named(name) for name in SAMPLERS[sampler]} == {sampler}


@pytest.mark.parametrize("scheduler", schedules.SCHEDULERS)
def test_a_scheduler_goes_by_every_name_that_people_know(scheduler: Scheduler) -> None:
    assert {names.scheduler_named(name) for name in SCHEDULERS[scheduler]} == {scheduler}


def test_no_alias_is_left_out_above() -> None:
    for known, tested in ((names.MORE_SAMPLERS, SAMPLERS), (names.MORE_SCHEDULERS, SCHEDULERS)):
        plain = {names._plain(name) for all_names in tested.values() for name in all_names}
        assert known.keys() <= plain
        assert not any(short in known for short in tested)


@pytest.mark.parametrize("sampler", schedules.SAMPLERS)
@pytest.mark.parametrize("scheduler", schedules.SCHEDULERS)
def test_a_name_may_hold_sampler_and_scheduler(sampler: Sampler, scheduler: Scheduler) -> None:
    for first in SAMPLERS[sampler]:
        assert names.both_named(first) == (sampler, None)
        for second in SCHEDULERS[scheduler]:
            assert names.both_named(f"{first.strip()} {second}") == (sampler, scheduler)


@pytest.mark.parametrize(("name", "both"), names.BOTH.items())
def test_some_words_mean_both(name: str, both: tuple[Sampler, Scheduler]) -> None:
    assert names.both_named(name) == both
    assert names.both_named(name.upper()) == both


@pytest.mark.parametrize("name", ["unipc", "DPM++ SDE", "", 3, None, ["euler"]])
def test_an_unknown_sampler_is_told_the_known(name: object) -> None:
    with pytest.raises(ValueError, match=r"is no sampler here; known: ddpm, euler, euler_a, dpmpp_2m, ddim$"):
        names.sampler_named(name)


def test_an_unknown_scheduler_is_told_the_known() -> None:
    known = "sgm_uniform, simple, karras, normal, exponential, wuerstchen"
    for name in ("beta", "kl_optimal", "", 1):
        with pytest.raises(ValueError, match=f"is no scheduler here; known: {known}$"):
            names.scheduler_named(name)


def test_an_unknown_scheduler_behind_a_sampler_is_named() -> None:
    with pytest.raises(ValueError, match="'Euler Beta' is no sampler here; known: ddpm"):
        names.both_named("Euler Beta")
