import pytest

from sote.train import memory, published
from sote.train.memory import Models
from sote.train.recipe import TrainRecipe

FULL = Models(published.PRIOR, published.TEXT)
CELLS = (32, 32)


def make(**tables: dict[str, object]) -> TrainRecipe:
    """The seed's base run, on eight workers with ZeRO 1."""
    values: dict[str, dict[str, object]] = {
        "data": {"curated": "c"},
        "text": {"tokens": 227},
        "optimizer": {"text_encoder_learning_rate": 4e-6},
        "length": {"epochs": 3},
        "workers": {"count": 8, "use_gpu": True, "zero_stage": 1},
    }
    for name, table in tables.items():
        values[name] = values.get(name, {}) | table
    return TrainRecipe.model_validate({"run": "r"} | values)


def test_the_base_run_on_eight_workers_with_zero_1_fits_80_gb_at_16_images_a_gpu() -> None:
    found = memory.of(make(model={"gradient_checkpointing": 0.5}), FULL, cells=CELLS)
    assert make().batch.micro_batch == 16
    assert found.total < 80e9
    # facts, arithmetic: about 23.5 GB without activations
    assert found.state / 1e9 == pytest.approx(23.5, abs=1)


# facts: memory for each GPU, in GB, without activations; 8 GPUs
@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "masters"),
    [(0, 17.1, 17.1, 0.0), (1, 8.57, 8.57 + 2.14, 2.14), (2, 8.57, 2.14, 2.14)],
)
def test_each_stage_shares_what_it_says(stage: int, weights: float, gradients: float, masters: float) -> None:
    found = memory.of(make(workers={"zero_stage": stage}), FULL, cells=CELLS)
    of = (found.weights, found.gradients, found.masters)
    assert [size / 1e9 for size in of] == pytest.approx([weights, gradients, masters], abs=0.05)


def test_the_optimizers_moments_are_small_with_adafactor_and_twice_the_weights_with_adamw() -> None:
    trained = 3_589_103_632 + 694_659_840
    small = memory.learning(make(), FULL)
    assert (small.trained, small.frozen) == (trained, 0)
    assert 4 * small.moments / 1e6 == pytest.approx(98 + 5, abs=1)  # facts: MB of Stage C and of the text encoder
    assert memory.learning(make(optimizer={"name": "adamw"}), FULL).moments == 2 * trained


def test_a_frozen_text_encoder_takes_the_arithmetics_type_and_no_activations() -> None:
    frozen = memory.of(make(optimizer={"text_encoder_learning_rate": None}), FULL, cells=CELLS)
    assert frozen.frozen == 2 * 694_659_840
    assert frozen.activations.text == 0
    assert memory.of(make(), FULL, cells=CELLS).activations.text > 0


def test_a_running_mean_is_shared_like_the_masters() -> None:
    found = memory.of(make(ema={"decay": 0.999}), FULL, cells=CELLS)
    assert found.averages == found.masters > 0


def test_an_elastic_run_is_planned_for_its_fewest_workers() -> None:
    few, many = (memory.of(make(workers={"min_count": count}), FULL, cells=CELLS) for count in (2, 8))
    assert few.masters == 4 * many.masters


def test_float32_arithmetic_keeps_twice_the_activations() -> None:
    low, high = (
        memory.of(make(workers={"precision": precision}), FULL, cells=CELLS) for precision in ("bfloat16", "float32")
    )
    assert high.activations.total == 2 * low.activations.total
    assert high.weights == 2 * low.weights


def test_the_nearest_that_fits_changes_one_setting_and_costs_the_least_first() -> None:
    made = make(workers={"zero_stage": 0})
    found = memory.nearest(made, FULL, cells=CELLS, limit=80e9)
    names = [words.split(" = ")[0] for words, _ in found]
    assert names == ["model.gradient_checkpointing", "batch.micro_batch"]
    assert all(size <= 80e9 for _, size in found)
    smaller = memory.nearest(made, FULL, cells=CELLS, limit=100e9)
    assert smaller[0][0] == "workers.zero_stage = 1"


def test_where_one_setting_is_not_enough_several_are_changed() -> None:
    (words, size), *_ = memory.nearest(make(), FULL, cells=CELLS, limit=24e9)
    assert words == "model.gradient_checkpointing = 1 with workers.zero_stage = 2"
    assert size < 24e9
    assert memory.nearest(make(), FULL, cells=CELLS, limit=10e9) == []
