"""Samplers and schedulers by the names that people bring along: diffusers', ComfyUI's, AUTOMATIC1111's.

Kind: pure.
"""

import re
from typing import Final

from sote.serve.schedules import SAMPLERS, SCHEDULERS, Sampler, Scheduler

# Beyond the tables of schedules.py: class names of diffusers, ComfyUI's, AUTOMATIC1111's, InvokeAI's and Replicate's
MORE_SAMPLERS: Final[dict[str, Sampler]] = {
    "ddpmwuerstchenscheduler": "ddpm",
    "ddpmscheduler": "ddpm",
    "wuerstchen": "ddpm",
    "eulerdiscretescheduler": "euler",
    "k_euler": "euler",
    "eulerancestraldiscretescheduler": "euler_a",
    "euler_ancestral": "euler_a",
    "k_euler_a": "euler_a",
    "k_euler_ancestral": "euler_a",
    "dpmsolvermultistepscheduler": "dpmpp_2m",
    "dpmsolvermultistep": "dpmpp_2m",
    "dpm_solver_multistep": "dpmpp_2m",
    "dpmsolver++": "dpmpp_2m",
    "k_dpmpp_2m": "dpmpp_2m",
    "dpm++_2m": "dpmpp_2m",
    "dpm++2m": "dpmpp_2m",
    "dpmpp2m": "dpmpp_2m",
    "ddimscheduler": "ddim",
}
MORE_SCHEDULERS: Final[dict[str, Scheduler]] = {
    "automatic": "sgm_uniform",
    "sgm": "sgm_uniform",
    "uniform": "normal",
    "polyexponential": "exponential",  # AUTOMATIC1111's, whose rho is 1
    "ddpm_linear": "wuerstchen",
    "ddpmwuerstchen": "wuerstchen",
}
# Sampler and scheduler in one word
BOTH: Final[dict[str, tuple[Sampler, Scheduler]]] = {
    "k_dpmpp_2m_ka": ("dpmpp_2m", "karras"),
    "dpmpp_2m_k": ("dpmpp_2m", "karras"),
    "euler_k": ("euler", "karras"),
}


def sampler_named(name: object) -> Sampler:
    """The sampler of a name. Raises ValueError that lists the known."""
    found = _samplers().get(_plain(name))
    if found is None:
        raise ValueError(f"{name!r} is no sampler here; known: {', '.join(SAMPLERS)}")
    return found


def scheduler_named(name: object) -> Scheduler:
    """The scheduler of a name. Raises ValueError that lists the known."""
    found = _schedulers().get(_plain(name))
    if found is None:
        raise ValueError(f"{name!r} is no scheduler here; known: {', '.join(SCHEDULERS)}")
    return found


def both_named(name: str) -> tuple[Sampler, Scheduler | None]:
    """Sampler and scheduler of a name that may hold both, such as "DPM++ 2M Karras". Raises ValueError."""
    plain = _plain(name)
    if plain in BOTH:
        return BOTH[plain]
    for ending, scheduler in _schedulers().items():
        before = plain.removesuffix(f"_{ending}")
        if before != plain and before in _samplers():
            return _samplers()[before], scheduler
    return sampler_named(name), None


def _samplers() -> dict[str, Sampler]:
    return {**{_plain(long): short for short, long in SAMPLERS.items()}, **{s: s for s in SAMPLERS}, **MORE_SAMPLERS}


def _schedulers() -> dict[str, Scheduler]:
    return {
        **{_plain(long): short for short, long in SCHEDULERS.items()},
        **{s: s for s in SCHEDULERS},
        **MORE_SCHEDULERS,
    }


def _plain(name: object) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower()) if isinstance(name, str) else ""
