from typing import get_args

import pytest

from sote.train import arithmetic, gpus, published
from sote.train.recipe import GpuName


def test_every_gpu_that_a_recipe_may_name_is_known_with_memory_as_its_name_says() -> None:
    assert set(gpus.BY_NAME) == set(get_args(GpuName))
    for name, gpu in gpus.BY_NAME.items():
        assert name.endswith(f"-{gpu.memory_gb:.0f}GB")


def test_the_authors_share_gives_the_authors_rate_and_hours() -> None:
    flop = arithmetic.training_flop(published.PRIOR, cells=(32, 32), tokens=227, text=published.TEXT, trains_text=True)
    a100 = gpus.BY_NAME["A100-80GB"]
    seconds = 3600 * a100.hours(flop, share=gpus.AUTHORS_SHARE)
    assert 1 / seconds == pytest.approx(3.24, rel=0.01)  # facts: images/s on one A100
    # facts: 220 hours of eight A100s for 18.6M images of the base run and 1.92M of the final one
    assert a100.hours(flop * 20.52e6, share=gpus.AUTHORS_SHARE) == pytest.approx(1760, rel=0.02)


def test_twice_the_share_takes_half_the_hours() -> None:
    gpu = gpus.BY_NAME["H200-141GB"]
    assert gpu.hours(1e18, share=gpus.GOAL_SHARE) == gpu.hours(1e18, share=gpus.AUTHORS_SHARE) / 2
