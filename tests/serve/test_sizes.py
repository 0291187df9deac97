import math

import pytest

from sote.serve import sizes


def test_all_three_ways_to_count_latent_cells_agree_on_every_allowed_side() -> None:
    for side in range(sizes.MIN_SIDE, sizes.MAX_SIDE + 1, sizes.SIDE_STEP):
        assert sizes.check_side(side) == side
        cells = sizes.latent_side(side, 42)
        assert cells == math.ceil(side / 42.67) == side * 3 // 128 == sizes.latent_side(side, 42.67)
        assert int(cells * 10.67) == sizes.vq_side(side)


def test_beyond_2560_they_part() -> None:
    assert sizes.latent_side(2688, 42) != sizes.latent_side(2688, 42.67)


def test_compression_32_is_that_of_training_at_full_resolution() -> None:
    assert sizes.latent_side(1024, 32) == 32


@pytest.mark.parametrize(
    ("side", "near"),
    [(1000, "896 and 1024"), (1025, "1024 and 1152"), (100, "256"), (128, "256"), (3000, "2560"), (2688, "2560")],
)
def test_a_wrong_side_is_refused_with_the_nearest_right_ones(side: int, near: str) -> None:
    with pytest.raises(ValueError, match=f"nearest: {near}$"):
        sizes.check_side(side)


def test_every_preset_is_an_allowed_size_of_the_shape_that_its_name_says() -> None:
    for name, (width, height) in sizes.PRESETS.items():
        assert sizes.check_side(width)
        assert sizes.check_side(height)
        if name.startswith("square"):
            assert width == height
        else:
            _, long, short = name.split("_")
            assert max(width, height) / min(width, height) == pytest.approx(
                int(max(long, short, key=int)) / int(min(long, short, key=int))
            )
            assert (height > width) == name.startswith("portrait")
