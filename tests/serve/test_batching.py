"""Pictures that step together, on a small network that is given a number for a prompt."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sote.cluster.errors import NoMemory, RunFailed
from sote.serve import batching, noise, schedules
from sote.serve.batching import Stepper
from sote.serve.rows import Request, Row, Seen
from sote.serve.sampling import Plan
from sote.serve.schedules import Sampler
from sote.serve.settings import StageName

CHANNELS = 4


@dataclass(frozen=True)
class Word:
    """A condition: a number, and how many tokens it is long."""

    values: tuple[float, ...]
    tokens: int = 1


@dataclass
class Net:
    """Finds noise with one convolution. `most` is how many pictures fit into it, `broken` what it stumbles over."""

    name: StageName = "prior"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    most: int | None = None
    broken: Callable[[Tensor], None] | None = None
    passes: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    weight: Tensor = field(
        default_factory=lambda: 0.2 * torch.randn(CHANNELS, CHANNELS, 3, 3, generator=torch.Generator().manual_seed(0))
    )

    def joined(self, given: Sequence[Any]) -> Word:
        assert len({each.tokens for each in given}) == 1
        return Word(tuple(value for each in given for value in each.values), given[0].tokens)

    def predict(self, x_FCHW: Tensor, *, r_F: Tensor, given: Any) -> Tensor:
        self.passes.append((tuple(x_FCHW.shape), given.tokens))
        if self.most is not None and len(x_FCHW) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        word_F = torch.tensor(given.values)
        if self.broken is not None:
            self.broken(word_F)
        offset_F = (word_F * 0.3 + r_F + 0.1 * given.tokens)[:, None, None, None]
        found: Tensor = (functional.conv2d(x_FCHW, self.weight, padding=1) + offset_F).tanh()
        return torch.where(word_F[:, None, None, None] == NAN_WORD, torch.nan, found)

    def look(self, x0_CHW: Tensor) -> Tensor:
        return x0_CHW[:, ::2, ::2]


NAN_WORD = 13.0


def asked(
    *words: float,
    seed: int = 0,
    sampler: Sampler = "ddpm",
    steps: int = 4,
    guidance: float = 1.0,
    side: int = 6,
    tokens: tuple[int, int] = (1, 1),
    rescale: float = 0.0,
    seen: Callable[[Seen], None] | None = None,
) -> Request:
    """A request for one picture of each word."""
    sigmas = schedules.grid("sgm_uniform", steps, shift=2.0)
    rows = []
    for place, word in enumerate(words):
        stream = noise.Own(seed + place, (CHANNELS, side, side))
        plan = Plan("prior", sampler, sigmas, guidance=guidance, rescale=rescale)
        without = Word((-1.0,), tokens[1]) if guidance > 1 else None
        rows.append(Row(stream.draw(), plan, stream, Word((word,), tokens[0]), without, pixels=side * side))
    return Request(rows=rows, arrived=time.monotonic(), seen=seen)


def ended(stepper: Stepper) -> list[Request]:
    over = []
    while not stepper.is_idle:
        over += stepper.step()
    return over


def assert_same(found: Tensor | None, expected: Tensor) -> None:
    """To 1e-5 of the picture's largest value: what float32 rounds differently in batches of other sizes."""
    assert found is not None
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def alone(**fields: Any) -> Tensor:
    request = asked(1.0, **fields)
    batching.run(Net(), request)
    assert request.rows[0].end is not None
    return request.rows[0].end


MIXED: list[dict[str, Any]] = [
    {"seed": 1, "sampler": "dpmpp_2m", "guidance": 7.0, "steps": 8},
    {"seed": 2, "sampler": "ddpm", "guidance": 1.0, "steps": 5},
    {"seed": 3, "sampler": "euler", "guidance": 7.0, "steps": 6, "side": 8},
    {"seed": 4, "sampler": "euler_a", "guidance": 3.0, "steps": 7, "tokens": (2, 1)},
    {"seed": 5, "sampler": "ddim", "guidance": 2.0, "steps": 4, "tokens": (2, 2), "rescale": 0.7},
    {"seed": 6, "sampler": "dpmpp_2m", "guidance": 1.0, "steps": 3, "side": 8},
]


@pytest.mark.parametrize("slots", [2, 8])
def test_a_picture_is_that_of_the_lone_run_whoever_shares_its_batch_joins_or_leaves(slots: int) -> None:
    net = Net()
    stepper = Stepper(net, slots=slots)
    requests = [asked(1.0, **fields) for fields in MIXED]
    leaving = asked(1.0, 2.0, seed=90, steps=20)
    over = []
    for place, request in enumerate(requests):
        stepper.add(request)
        if place == 1:
            stepper.add(leaving)
        over += stepper.step()
    stepper.drop(leaving)
    over += ended(stepper)
    assert sorted(map(id, over)) == sorted(map(id, requests))
    for request, fields in zip(requests, MIXED, strict=True):
        assert_same(request.rows[0].end, alone(**fields))
    assert max(shape[0] for shape, _ in net.passes) > 2


def test_the_noise_of_a_picture_is_exactly_its_own() -> None:
    drawn: list[tuple[int, Tensor]] = []

    class Watched(noise.Own):
        def draw(self) -> Tensor:
            made = super().draw()
            drawn.append((self.seed, made))
            return made

    requests = [asked(1.0, seed=seed, steps=4 + seed) for seed in (1, 2)]
    stepper = Stepper(Net(), slots=4)
    for request in requests:
        request.rows[0].stream = Watched(request.rows[0].stream.seed, (CHANNELS, 6, 6))  # type: ignore[attr-defined]
        stepper.add(request)
        stepper.step()
    ended(stepper)
    for seed, steps in ((1, 5), (2, 6)):
        mine = [made for each, made in drawn if each == seed]
        expected = noise.Own(seed, (CHANNELS, 6, 6))
        assert len(mine) == steps - 1  # the last step draws none
        assert all(torch.equal(made, expected.draw()) for made in mine)


def test_what_can_be_stacked_is_one_pass_and_without_guidance_there_is_no_second() -> None:
    net = Net()
    stepper = Stepper(net, slots=8)
    for fields in ({"guidance": 7.0}, {"guidance": 1.0}, {"guidance": 2.0, "tokens": (2, 1)}):
        stepper.add(asked(1.0, **fields))
    stepper.step()
    # two conditional of one token and two unconditional; the conditional of two tokens apart
    assert sorted(net.passes) == [((1, 4, 6, 6), 2), ((4, 4, 6, 6), 1)]


def test_a_request_joins_at_the_next_step_and_a_dropped_one_leaves_at_the_next() -> None:
    net = Net()
    stepper = Stepper(net, slots=8)
    first, second = asked(1.0, steps=10), asked(1.0, 2.0, steps=10)
    stepper.add(first)
    stepper.step()
    stepper.add(second)
    stepper.step()
    stepper.drop(first)
    stepper.step()
    assert [shape[0] for shape, _ in net.passes] == [1, 3, 2]
    assert ended(stepper) == [second]


def test_rows_beyond_the_slots_wait_in_the_order_of_arrival() -> None:
    net = Net()
    stepper = Stepper(net, slots=2)
    requests = [asked(1.0, seed=seed, steps=3) for seed in range(4)]
    for request in requests:
        stepper.add(request)
    assert ended(stepper) == requests
    assert [shape[0] for shape, _ in net.passes] == [2] * 6
    assert requests[3].began is not None
    assert requests[0].began is not None
    assert requests[3].began > requests[0].began


def test_big_pictures_that_have_all_slots_do_not_keep_a_small_one_waiting() -> None:
    stepper = Stepper(Net(), slots=2)
    big, small = asked(1.0, 1.0, steps=50, side=24), asked(1.0, steps=20, side=6)
    stepper.add(big)
    stepper.step()
    assert stepper.has_room
    stepper.add(small)
    over: list[Request] = []
    while small not in over:
        over += stepper.step()
    assert big.rows[0].step <= 4
    stepper.add(asked(1.0, 1.0, steps=50, side=24))
    assert not stepper.has_room


def test_sizes_share_the_device_by_work_so_that_none_waits_for_another() -> None:
    stepper = Stepper(Net(), slots=8)
    big, small = asked(1.0, 1.0, 1.0, steps=50, side=24), asked(1.0, steps=50, side=6)
    stepper.add(big)
    stepper.step()
    stepper.add(small)
    over: list[Request] = []
    while small not in over:
        over += stepper.step()
    # 48 times the pixels a step: the small one is through its 50 while the big ones step once or twice
    assert big.rows[0].step <= 4
    late = asked(1.0, steps=50, side=4)
    stepper.add(late)
    before = late.rows[0].step
    for _ in range(4):
        stepper.step()
    assert late.rows[0].step > before
    steps = big.rows[0].step
    for _ in range(200):
        stepper.step()
    assert big.rows[0].step > steps


def test_work_counts_each_step_of_a_batch_once() -> None:
    net = Net()
    stepper = Stepper(net, slots=8)
    requests = [asked(1.0, steps=4), asked(1.0, 1.0, steps=6), asked(NAN_WORD, steps=6)]
    for request in requests:
        stepper.add(request)
    ended(stepper)
    works = [request.work("prior") for request in requests[:2]]
    counted = sum(sum(work.occupancy.values()) for work in works)
    assert counted == len(net.passes)
    assert works[0].megapixel_steps == pytest.approx(36 * 4 / 1e6)
    assert works[1].megapixel_steps == pytest.approx(2 * 36 * 6 / 1e6)
    pictures = sum(rows * steps for work in works for rows, steps in work.occupancy.items())
    assert pictures == sum(shape[0] for shape, _ in net.passes)
    assert 0 <= works[0].waited_seconds <= works[0].seconds


def test_values_that_are_not_finite_fail_their_request_alone_with_stage_and_step() -> None:
    stepper = Stepper(Net(), slots=8)
    good, bad = asked(1.0), asked(2.0, NAN_WORD)
    stepper.add(good)
    stepper.step()
    stepper.add(bad)
    assert set(ended(stepper)) == {good, bad}
    assert good.error is None
    assert isinstance(bad.error, RunFailed)
    assert "prior: step 1 of 4 gave values that are not finite" in str(bad.error)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_step_that_does_not_fit_is_repeated_with_fewer_at_a_time(most: int) -> None:
    net = Net(most=most)
    stepper = Stepper(net, slots=8)
    requests = [asked(1.0, seed=seed, guidance=guidance) for seed, guidance in ((0, 7.0), (1, 1.0), (2, 3.0))]
    for request in requests:
        stepper.add(request)
    ended(stepper)
    for request, guidance in zip(requests, (7.0, 1.0, 3.0), strict=True):
        assert request.error is None
        assert_same(request.rows[0].end, alone(seed=requests.index(request), guidance=guidance))
    tried = [shape[0] for shape, _ in net.passes]
    assert tried[0] == 5
    assert sum(size > most for size in tried) <= 3


def test_a_picture_that_does_not_fit_alone_says_so_and_the_others_go_on() -> None:
    def too_much(word_F: Tensor) -> None:
        if (word_F == 5.0).any():
            raise torch.OutOfMemoryError("CUDA out of memory")

    stepper = Stepper(Net(broken=too_much), slots=8)
    good, big, other = asked(1.0, seed=3), asked(5.0), asked(1.0, seed=4)
    for request in (good, big, other):
        stepper.add(request)
    assert set(ended(stepper)) == {good, big, other}
    assert isinstance(big.error, NoMemory)
    assert "ask for a smaller one" in str(big.error)
    assert good.error is None
    assert_same(good.rows[0].end, alone(seed=3))
    assert other.error is None


def test_another_error_fails_the_requests_of_its_step_and_not_those_of_other_sizes() -> None:
    def stumble(word_F: Tensor) -> None:
        if (word_F == 5.0).any():
            raise ValueError("something else")

    stepper = Stepper(Net(broken=stumble), slots=8)
    wrong, beside, apart = asked(5.0), asked(1.0), asked(1.0, side=8)
    for request in (wrong, beside, apart):
        stepper.add(request)
    assert set(ended(stepper)) == {wrong, beside, apart}
    assert isinstance(wrong.error, ValueError)
    assert isinstance(beside.error, ValueError)
    assert apart.error is None
    assert not stepper.is_broken
    again = asked(1.0)
    stepper.add(again)
    ended(stepper)
    assert again.error is None


def test_a_device_that_failed_is_known_as_broken() -> None:
    def die(_: Tensor) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    stepper = Stepper(Net(broken=die), slots=8)
    stepper.add(asked(1.0))
    ended(stepper)
    assert stepper.is_broken


def test_a_watched_request_sees_some_steps_and_the_last() -> None:
    seen: list[Seen] = []
    watched = asked(1.0, 2.0, steps=300, seen=seen.append)
    stepper = Stepper(Net(), slots=8)
    stepper.add(watched)
    stepper.add(asked(1.0, steps=300))
    start = time.monotonic()
    ended(stepper)
    assert seen[0].step == 1
    assert [(each.step, each.steps) for each in seen][-1] == (300, 300)
    assert len(seen) <= 3 + batching.SEEN_PER_SECOND * (time.monotonic() - start)
    assert seen[0].x0.shape == (CHANNELS, 3, 3)


def test_what_each_step_raises_ends_a_lone_run() -> None:
    steps: list[int] = []

    def each_step(step: int) -> None:
        steps.append(step)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batching.run(Net(), asked(1.0), each_step=each_step)
    assert steps == [0, 1, 2]
