import math

import pytest
import torch

from sote.train import figures, standins
from sote.train.figures import Cost


def test_losses_are_told_by_quarter_of_the_time() -> None:
    time_N = torch.tensor([0.0, 0.2, 0.25, 0.8, 1.0])
    found = figures.by_time(torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0]), time_N)
    assert found == {"loss_time_0": 2.0, "loss_time_1": 5.0, "loss_time_2": None, "loss_time_3": 8.0}
    assert figures.by_time(torch.tensor([math.nan]), torch.tensor([0.1]))["loss_time_0"] is None


def test_what_json_has_no_word_for_is_none() -> None:
    assert figures.finite(0.5) == 0.5
    assert [figures.finite(value) for value in (math.nan, math.inf, -math.inf)] == [None, None, None]


def test_the_ceiling_is_measured_once_in_the_arithmetic_of_training() -> None:
    device = torch.device("cpu")
    first = figures.ceiling(device, "float32")
    assert 0 < first < 100
    assert figures.ceiling(device, "float32") == first


def test_memory_is_the_most_that_the_process_has_held() -> None:
    before = figures.memory_gb(torch.device("cpu"))
    held = torch.ones(50_000_000)
    assert figures.memory_gb(torch.device("cpu")) >= max(before, held.nbytes / 1e9)


@pytest.mark.parametrize("has_adapters", [False, True])
def test_training_on_an_image_costs_three_times_the_forward_pass_and_with_adapters_twice(has_adapters: bool) -> None:
    cost = Cost(standins.PRIOR_CONFIG, None, tokens=77, trains_text=False, has_adapters=has_adapters)
    forward = figures.arithmetic.forward_flop(standins.PRIOR_CONFIG, cells=(8, 6), tokens=77)
    assert cost.flop((8, 6)) == (2 if has_adapters else 3) * forward


def test_a_trained_text_encoder_costs_three_times_what_a_frozen_one_does() -> None:
    costs = [
        Cost(standins.PRIOR_CONFIG, text, tokens=227, trains_text=trained, has_adapters=False).flop((8, 8))
        for text, trained in ((None, False), (standins.TEXT_CONFIG, False), (standins.TEXT_CONFIG, True))
    ]
    assert costs[2] - costs[0] == 3 * (costs[1] - costs[0])
