import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sote.train import noise
from sote.train.recipe import DiffusionPart

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "stage_b.json").read_text())
OFFSET = json.loads((Path(__file__).parents[1] / "golden" / "diffusion.json").read_text())["offset"]


def _random() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[1, 2], counter=[0, 0, 3, 0]))


def test_without_offset_and_pyramid_it_is_the_generators_normal_numbers() -> None:
    found = noise.draw(_random(), (16, 3, 5), DiffusionPart())
    assert np.array_equal(found.numpy(), _random().standard_normal((16, 3, 5), np.float32))


def test_pyramid_noise_is_stabilitys() -> None:
    golden = GOLDEN["pyramid"]
    coarse = [torch.tensor(one) for one in golden["coarse"]]
    weights = [0.75**level for level in golden["levels"]]
    found = noise.pyramid(torch.tensor(golden["noise"]), coarse=coarse, weights=weights)
    torch.testing.assert_close(found, torch.tensor(golden["result"]))


@pytest.mark.parametrize("golden", GOLDEN["pyramid_sizes"], ids=lambda golden: str(golden["side"]))
def test_coarser_noise_has_stabilitys_sizes_and_divisor(golden: dict[str, object]) -> None:
    side = int(str(golden["side"]))
    levels = noise.coarse_levels(side, side)
    assert [level for level, _ in levels] == golden["levels"]
    assert [sides for _, sides in levels] == [(one, one) for one in golden["sides"]]
    flat = noise.pyramid(
        torch.ones(1, side, side),
        coarse=[torch.zeros(1, *sides) for _, sides in levels],
        weights=[0.75**level for level, _ in levels],
    )
    assert float(1 / flat[0, 0, 0]) == pytest.approx(golden["divisor"], rel=1e-6)


def test_a_picture_of_1024_pixels_has_five_levels_and_a_divisor_of_1_1027() -> None:
    levels = noise.coarse_levels(256, 256)
    assert [level for level, _ in levels] == [4, 5, 6, 7, 8]
    assert (1 + sum(0.75 ** (2 * level) for level, _ in levels)) ** 0.5 == pytest.approx(1.1027, abs=1e-5)


def test_the_coarse_noise_of_a_wide_picture_is_wide() -> None:
    assert noise.coarse_levels(192, 320)[0] == (4, (12, 20))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_the_smallest_pictures_get_noise_too(size: tuple[int, int]) -> None:
    assert noise.draw(_random(), (4, *size), DiffusionPart(pyramid_noise=0.75)).isfinite().all()


def test_pyramid_noise_keeps_the_deviation_and_joins_neighbours() -> None:
    found = noise.draw(_random(), (64, 64, 64), DiffusionPart(pyramid_noise=0.75))
    assert float(found.std()) == pytest.approx(1, abs=0.05)
    near = (found[:, :, 1:] * found[:, :, :-1]).mean()
    # at 64 cells the levels are 2 to 6: sum of 0.75 ** (2 i) over 1 + that sum, less the cells' edges
    assert 0.2 < float(near) < 0.41


def test_offset_noise_moves_whole_channels_as_gdf_does() -> None:
    gdf = torch.tensor(OFFSET["noise"]) + OFFSET["offset_noise"] * torch.tensor(OFFSET["offset"])
    torch.testing.assert_close(gdf, torch.tensor(OFFSET["result"]))
    random = _random()
    plain = random.standard_normal((16, 4, 4), np.float32)
    shift = random.standard_normal((16, 1, 1), np.float32)
    found = noise.draw(_random(), (16, 4, 4), DiffusionPart(offset_noise=0.1))
    torch.testing.assert_close(found, torch.from_numpy(plain + np.float32(0.1) * shift))
