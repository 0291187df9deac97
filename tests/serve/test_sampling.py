"""Samplers against diffusers' own step, against the exact solution for a Gaussian, and against each other."""

import math

import pytest
import torch
from diffusers import DDPMWuerstchenScheduler
from torch import Tensor

from sote.cluster.errors import RunFailed
from sote.serve import sampling, schedules

SHAPE = (4, 3, 5)
CPU = torch.device("cpu")


def network(x: Tensor, r: Tensor) -> Tensor:
    """Any smooth function of x and r."""
    return torch.tanh(1.3 * x + r[:, None, None, None]) + 0.1 * x.roll(1, dims=-1)


def gaussian(spread: float) -> sampling.Predict:
    """The best eps for pictures drawn from a normal distribution of standard deviation `spread`."""

    def predict(x: Tensor, r: Tensor) -> Tensor:
        abar = 1 / (1 + sigma_of(r) ** 2)
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        return (noise / (signal**2 * spread**2 + noise**2))[:, None, None, None] * x

    return predict


def sigma_of(r: Tensor) -> Tensor:
    return torch.tensor([schedules.sigma_at(value) for value in r.double().tolist()])


def plan(sampler: schedules.Sampler, steps: int, scheduler: schedules.Scheduler = "karras") -> sampling.Plan:
    return sampling.Plan("prior", sampler, schedules.grid(scheduler, steps))


def test_ddpm_on_the_plain_grid_is_diffusers_own_sampler() -> None:
    oracle = DDPMWuerstchenScheduler()
    oracle.set_timesteps(12)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, *SHAPE, generator=generator)
    for t in oracle.timesteps[:-1]:
        # diffusers tells the network t itself; the model was trained with r of the limited sigma, 0.9936 for t = 1
        eps = network(x, torch.tensor([schedules.r_at(schedules.sigma_at(t.item()))]))
        x = oracle.step(eps, t.expand(1), x, generator=generator).prev_sample
    ours = sampling.sample(network, sampling.noise_of([3], SHAPE, device=CPU), plan=plan("ddpm", 12, "wuerstchen"))
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)  # its constants are float32


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("dpmpp_2m", 2)])
def test_a_sampler_converges_with_its_order(sampler: schedules.Sampler, order: int) -> None:
    """On a uniform grid of log sigma the error against a very fine solution falls with steps ** -order."""
    start = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def solve(steps: int) -> Tensor:
        sigmas = tuple(torch.logspace(math.log10(20), math.log10(0.05), steps + 1, dtype=torch.float64).tolist())
        return sampling.sample(network, lambda: start, plan=sampling.Plan("prior", sampler, sigmas))

    exact = solve(4096)
    coarse, fine = ((solve(steps) - exact).abs().max().item() for steps in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("sampler", schedules.SAMPLERS)
def test_a_gaussian_is_sampled_with_its_spread(sampler: schedules.Sampler) -> None:
    draw = sampling.noise_of([1], (1, 200, 200), device=CPU)
    x = sampling.sample(gaussian(0.6), draw, plan=plan(sampler, 60, "simple"))
    assert x.std().item() == pytest.approx(0.6, rel=0.05)
    assert x.mean().item() == pytest.approx(0, abs=0.02)


def test_the_first_step_from_pure_noise_with_a_perfect_network_gives_the_picture_at_once() -> None:
    picture = torch.randn(2, *SHAPE, dtype=torch.float64)

    def predict(x: Tensor, r: Tensor) -> Tensor:
        abar = (1 / (1 + sigma_of(r).double() ** 2))[:, None, None, None]
        return (x - abar.sqrt() * picture) / (1 - abar).sqrt()

    for sampler in schedules.SAMPLERS:
        noise = iter(torch.randn(99, *picture.shape, dtype=torch.float64))
        x = sampling.sample(predict, lambda noise=noise: next(noise), plan=plan(sampler, 4))
        torch.testing.assert_close(x, picture, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("one", "other"), [("ddpm", "euler_a"), ("ddim", "euler")])
def test_two_names_are_one_sampler(one: schedules.Sampler, other: schedules.Sampler) -> None:
    results = [
        sampling.sample(network, sampling.noise_of([5], SHAPE, device=CPU), plan=plan(name, 6)) for name in (one, other)
    ]
    assert torch.equal(*results)


def test_rows_of_a_step_have_their_own_sigmas() -> None:
    x, x0, before, eps, noise = torch.randn(5, 3, *SHAPE).unbind()
    s, t, last = torch.tensor([9.0, 2.0, 0.5]), torch.tensor([4.0, 1.0, 0.0]), torch.tensor([0.0, 3.0, 1.0])
    together = sampling.dpmpp_2m(x, x0, s, t, x0_before=before, sigma_before=last)
    stepped = sampling.ancestral(x0, eps, s, t, eta=1.0, noise=noise)
    for row in range(3):
        one = slice(row, row + 1)
        alone = sampling.dpmpp_2m(x[one], x0[one], s[one], t[one], x0_before=before[one], sigma_before=last[one])
        torch.testing.assert_close(together[one], alone)
        alone = sampling.ancestral(x0[one], eps[one], s[one], t[one], eta=1.0, noise=noise[one])
        torch.testing.assert_close(stepped[one], alone)


def test_a_first_step_of_dpmpp_2m_is_that_of_euler() -> None:
    x, eps = torch.randn(2, 1, *SHAPE, dtype=torch.float64).unbind()
    s, t, none = (torch.tensor([value], dtype=torch.float64) for value in (3.0, 1.5, 0.0))
    x0 = sampling.denoised(x, eps, s)
    first = sampling.dpmpp_2m(x, x0, s, t, x0_before=None, sigma_before=none)
    torch.testing.assert_close(first, sampling.ancestral(x0, eps, s, t, eta=0.0, noise=None))


def test_an_image_has_the_same_noise_alone_and_in_a_batch() -> None:
    together = sampling.noise_of([7, 8], SHAPE, device=CPU)
    alone = sampling.noise_of([8], SHAPE, device=CPU)
    for _ in range(3):
        assert torch.equal(together()[1], alone()[0])


def test_guidance_one_is_the_conditional_prediction() -> None:
    conditional, unconditional = torch.randn(2, 1, *SHAPE).unbind()
    torch.testing.assert_close(sampling.guided(conditional, unconditional, scale=1.0), conditional)
    torch.testing.assert_close(sampling.guided(conditional, unconditional, scale=0.0), unconditional)


def test_a_broken_network_is_named_with_stage_and_step() -> None:
    calls = iter(range(99))

    def predict(x: Tensor, r: Tensor) -> Tensor:
        return x / 0 if next(calls) == 2 else x

    with pytest.raises(RunFailed, match="prior: step 3 of 5 "):
        sampling.sample(predict, sampling.noise_of([0], SHAPE, device=CPU), plan=plan("euler", 5))


def test_sampling_ends_where_the_caller_gives_up() -> None:
    def give_up(step: int) -> None:
        if step == 2:
            raise InterruptedError(step)

    seen = []
    with pytest.raises(InterruptedError):
        sampling.sample(
            lambda x, r: seen.append(r) or x,
            sampling.noise_of([0], SHAPE, device=CPU),
            plan=plan("euler", 5),
            each_step=give_up,
        )
    assert len(seen) == 2
