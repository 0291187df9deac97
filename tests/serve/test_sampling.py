"""Samplers against k-diffusion's and diffusers' own numbers, against the exact solution for a Gaussian, and rows
against rows."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMWuerstchenScheduler
from torch import Tensor

from sote.serve import sampling, schedules
from sote.serve.sampling import Plan
from sote.serve.settings import Stage

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "samplers.json").read_text())
SHAPE = (1, 2, 2, 3)
Network = Callable[[Tensor, Tensor], Tensor]
CASES = [
    pytest.param(grid, sampler, id=f"{grid['scheduler']}-{sampler}")
    for grid in GOLDEN["grids"]
    for sampler in grid["samplers"]
]


def golden_network(x: Tensor, sigma_B: Tensor) -> Tensor:
    """The network of samplers.json."""
    a = (1 / (1 + sigma_B**2))[:, None, None, None]
    r = torch.tensor([schedules.r_at(sigma) for sigma in sigma_B.tolist()], dtype=x.dtype)[:, None, None, None]
    picture = 0.8 * torch.sin(1.6 * x + r + 0.7 * x.roll(1, -1))
    return (x - a.sqrt() * picture) / (1 - a).sqrt()


def golden_noise(dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """The noise of samplers.json, from the start on."""
    for draw in range(99):
        places = torch.arange(12, dtype=torch.float64) + 12 * draw
        yield (math.sqrt(2) * torch.sin(12.9898 * places + 1)).reshape(SHAPE).to(dtype)


class Row:
    """One picture on its way, as a stepper keeps it."""

    def __init__(self, plan: Plan, noise: Iterator[Tensor]) -> None:
        self.plan, self.noise, self.at = plan, noise, 0
        self.x = next(noise)
        self.x0 = torch.zeros_like(self.x)
        self.seen: list[Tensor] = []


def advance(rows: list[Row], network: Network) -> None:
    """One step of all rows side by side."""

    def numbers(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=rows[0].x.dtype)

    x_BCHW = torch.cat([row.x for row in rows])
    sigma_B = numbers([row.plan.sigmas[row.at] for row in rows])
    noise = [next(row.noise) if sampling.draws(row.plan, row.at) else torch.zeros_like(row.x) for row in rows]
    x_BCHW, x0_BCHW = sampling.step(
        x_BCHW,
        network(x_BCHW, sigma_B),
        sigma_B=sigma_B,
        next_B=numbers([row.plan.sigmas[row.at + 1] for row in rows]),
        before_B=numbers([row.plan.sigmas[row.at - 1] if row.at else 0.0 for row in rows]),
        x0_before_BCHW=torch.cat([row.x0 for row in rows]),
        eta_B=numbers([row.plan.eta for row in rows]),
        is_multistep_B=torch.tensor([row.plan.is_multistep for row in rows]),
        noise_BCHW=torch.cat(noise),
    )
    for row, x, x0 in zip(rows, x_BCHW.split(1), x0_BCHW.split(1), strict=True):
        row.x, row.x0, row.at = x, x0, row.at + 1
        row.seen.append(x)


def sample(plan: Plan, network: Network, noise: Iterator[Tensor]) -> Row:
    row = Row(plan, noise)
    for _ in range(plan.steps):
        advance([row], network)
    return row


def kept(row: Row) -> Tensor:
    """What samplers.json keeps of a path."""
    return torch.stack([row.seen[at].flatten() for at in (0, 1, row.plan.steps // 2 - 1, -1)])


@pytest.mark.parametrize(("grid", "sampler"), CASES)
def test_steps_are_those_of_comfyuis_samplers(grid: dict[str, Any], sampler: schedules.Sampler) -> None:
    row = sample(Plan("prior", sampler, tuple(grid["sigmas"])), golden_network, golden_noise())
    expected = torch.tensor(grid["samplers"][sampler], dtype=torch.float64)
    torch.testing.assert_close(kept(row), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("grid", "sampler"), CASES)
def test_the_whole_plan_in_float32_stays_near_comfyuis(grid: dict[str, Any], sampler: schedules.Sampler) -> None:
    stage = Stage(grid["steps"], 1.0, sampler, grid["scheduler"], grid["shift"])
    row = sample(Plan.of("prior", stage), golden_network, golden_noise(torch.float32))
    assert row.x.dtype == torch.float32
    expected = torch.tensor(grid["samplers"][sampler])
    torch.testing.assert_close(kept(row), expected, rtol=1e-4, atol=1e-4)


def test_rows_of_all_samplers_and_steps_go_side_by_side() -> None:
    """One batch that rows enter at different times and leave when they are done, no matter who is beside them."""
    waiting = [
        Row(Plan("prior", sampler, tuple(grid["sigmas"])), golden_noise())
        for grid in GOLDEN["grids"]
        for sampler in grid["samplers"]
    ]
    expected = [rows for grid in GOLDEN["grids"] for rows in grid["samplers"].values()]
    all_rows, running = list(waiting), []
    sizes = set()
    while waiting or running:
        running += [waiting.pop(0) for _ in range(min(2, len(waiting)))]
        sizes.add(len({(row.at, row.plan.sampler) for row in running}))
        advance(running, golden_network)
        running = [row for row in running if row.at < row.plan.steps]
    assert max(sizes) > 15
    for row, numbers in zip(all_rows, expected, strict=True):
        torch.testing.assert_close(kept(row), torch.tensor(numbers, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [12, 20, 30])
def test_ddpm_on_the_plain_grid_is_diffusers_own_sampler(steps: int) -> None:
    oracle = DDPMWuerstchenScheduler()
    oracle.set_timesteps(steps)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SHAPE, generator=generator)
    for t in oracle.timesteps[:-1]:
        eps = golden_network(x, torch.tensor([schedules.sigma_at(t.item())]))
        x = oracle.step(eps, t.expand(1), x, generator=generator).prev_sample
    again = torch.Generator().manual_seed(3)
    noise = iter(lambda: torch.randn(SHAPE, generator=again), None)
    ours = sample(Plan.of("prior", Stage(steps, 1.0, "ddpm", "wuerstchen", 1.0)), golden_network, noise).x
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)  # its constants are float32


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("dpmpp_2m", 2)])
def test_a_sampler_converges_with_its_order(sampler: schedules.Sampler, order: int) -> None:
    """The error against the exact solution for normal pictures of spread 0.6 falls with steps ** -order."""
    spread, high, low = 0.6, 20.0, 0.05
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def best(x: Tensor, sigma_B: Tensor) -> Tensor:
        a = (1 / (1 + sigma_B**2))[:, None, None, None]
        return (1 - a).sqrt() / (a * spread**2 + 1 - a) * x

    def error(steps: int) -> float:
        sigmas = tuple(torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=torch.float64).tolist())
        found = sample(Plan("prior", sampler, sigmas), best, iter([start])).x
        widths = [(spread**2 + sigma**2) / (1 + sigma**2) for sigma in (low, high)]
        return (found - start * math.sqrt(widths[0] / widths[1])).abs().max().item()

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.1)
    assert error(128) < 0.02


@pytest.mark.parametrize("sampler", schedules.SAMPLERS)
def test_a_gaussian_is_sampled_with_its_spread(sampler: schedules.Sampler) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = iter(lambda: torch.randn((1, 1, 200, 200), generator=generator), None)

    def best(x: Tensor, sigma_B: Tensor) -> Tensor:
        a = (1 / (1 + sigma_B**2))[:, None, None, None]
        return (1 - a).sqrt() / (a * 0.36 + 1 - a) * x

    x = sample(Plan.of("prior", Stage(60, 1.0, sampler, "simple", 1.0)), best, noise).x
    assert x.std().item() == pytest.approx(0.6, rel=0.05)
    assert x.mean().item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("one", "other"), [("ddpm", "euler_a"), ("ddim", "euler")])
def test_two_names_are_one_sampler(one: schedules.Sampler, other: schedules.Sampler) -> None:
    stages = [Stage(6, 1.0, sampler, "karras", 1.0) for sampler in (one, other)]
    results = [sample(Plan.of("decoder", stage), golden_network, golden_noise()).x for stage in stages]
    assert torch.equal(*results)


def test_noise_is_drawn_by_ancestral_steps_but_the_last() -> None:
    for sampler in schedules.SAMPLERS:
        plan = Plan.of("prior", Stage(5, 1.0, sampler, "karras", 1.0))
        is_ancestral = sampler in ("ddpm", "euler_a")
        assert [sampling.draws(plan, at) for at in range(5)] == [is_ancestral] * 4 + [False]


def test_a_last_step_to_sigma_zero_gives_the_picture_that_the_network_says() -> None:
    for sampler in schedules.SAMPLERS:
        row = sample(Plan("prior", sampler, (3.0, 1.0, 0.0)), golden_network, golden_noise())
        torch.testing.assert_close(row.x, row.x0)


def test_a_first_step_of_dpmpp_2m_is_that_of_euler() -> None:
    firsts = [
        sample(Plan("prior", sampler, (3.0, 1.5)), golden_network, golden_noise()).x
        for sampler in ("euler", "dpmpp_2m")
    ]
    torch.testing.assert_close(*firsts)


def test_a_plan_has_the_stages_grid_and_guidance() -> None:
    stage = Stage(30, 7.0, "dpmpp_2m", "sgm_uniform", 2.0, rescale=0.7)
    plan = Plan.of("prior", stage)
    assert plan == Plan("prior", "dpmpp_2m", schedules.grid("sgm_uniform", 30, shift=2.0), guidance=7.0, rescale=0.7)
    assert (plan.steps, plan.eta, plan.is_multistep) == (30, 0.0, True)
    assert Plan.of("prior", replace(stage, sampler="euler_a")).eta == 1.0


@pytest.mark.parametrize(("strength", "whole"), [(0.5, 20), (0.3, 33), (0.95, 10), (1.0, 10)])
def test_strength_keeps_the_end_of_a_finer_grid(strength: float, whole: int) -> None:
    """ComfyUI's denoise: int(steps / denoise) steps, of which the last are kept."""
    for scheduler in schedules.SCHEDULERS:
        plan = Plan.of("prior", Stage(10, 1.0, "euler", scheduler, 2.0), strength=strength)
        assert plan.sigmas == schedules.grid(scheduler, whole, shift=2.0)[-11:]


@pytest.mark.parametrize("sampler", schedules.SAMPLERS)
@pytest.mark.parametrize("scheduler", schedules.SCHEDULERS)
def test_hardly_any_strength_leaves_the_picture_as_it_is(
    sampler: schedules.Sampler, scheduler: schedules.Scheduler
) -> None:
    """The finest grids hold sigma to its limits, so that some of their steps go nowhere."""
    plan = Plan.of("prior", Stage(6, 1.0, sampler, scheduler, 0.5), strength=1e-300)
    picture = torch.full(SHAPE, 0.7, dtype=torch.float64)

    def perfect(x: Tensor, sigma_B: Tensor) -> Tensor:
        a = (1 / (1 + sigma_B**2))[:, None, None, None]
        return (x - a.sqrt() * picture) / (1 - a).sqrt()

    noise = golden_noise()
    start = sampling.started(picture, next(noise), plan.sigmas[0])
    found = sample(plan, perfect, chain([start], noise)).x
    assert plan.steps == 6
    torch.testing.assert_close(found, picture, rtol=0, atol=0.03)


def test_a_picture_is_started_from_at_the_noise_of_sigma() -> None:
    z, noise = torch.randn(2, *SHAPE, dtype=torch.float64).unbind()
    abar = 1 / (1 + 2.5**2)
    torch.testing.assert_close(sampling.started(z, noise, 2.5), abar**0.5 * z + (1 - abar) ** 0.5 * noise)
    torch.testing.assert_close(sampling.started(z, noise, 0.0), z)


def test_each_row_has_its_own_guidance() -> None:
    conditional, unconditional = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    unconditional[1] = math.nan  # not looked at
    scale, rescale = torch.tensor([7.0, 1.0, 4.0, 4.0]), torch.tensor([0.0, 0.0, 0.7, 1.0])
    found = sampling.guided(conditional, unconditional, scale_B=scale, rescale_B=rescale)
    torch.testing.assert_close(found[0], torch.lerp(unconditional[0], conditional[0], 7.0))
    assert torch.equal(found[1], conditional[1])
    for row, rho in ((2, 0.7), (3, 1.0)):
        # gdf/__init__.py, for a batch of one picture
        plain = torch.lerp(unconditional[row], conditional[row], 4.0)
        expected = rho * (plain * conditional[row].std() / (plain.std() + 1e-9)) + plain * (1 - rho)
        torch.testing.assert_close(found[row], expected)
    assert found[3].std().item() == pytest.approx(conditional[3].std().item(), rel=1e-5)


def test_values_that_are_not_finite_stay_in_their_row() -> None:
    broken = Row(Plan("prior", "dpmpp_2m", (3.0, 1.0, 0.0)), golden_noise())
    sound = Row(Plan("prior", "euler_a", (9.0, 2.0, 0.0)), golden_noise())
    alone = Row(Plan("prior", "euler_a", (9.0, 2.0, 0.0)), golden_noise())
    broken.x = torch.full_like(broken.x, math.nan)
    for _ in range(2):
        advance([broken, sound], golden_network)
        advance([alone], golden_network)
    assert not torch.isfinite(broken.x).any()
    torch.testing.assert_close(sound.x, alone.x)
