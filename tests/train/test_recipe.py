from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from sote.cluster import recipe as recipes
from sote.cluster.errors import RecipeError
from sote.train.recipe import MAY_DIFFER, TrainRecipe


def test_the_defaults_are_the_seeds_base_stage(recipe: Callable[..., TrainRecipe]) -> None:
    made = TrainRecipe.model_validate({"run": "r", "data": {"curated": "c"}, "length": {"epochs": 3}})
    assert made.optimizer.prior_learning_rate == 1e-5
    assert made.optimizer.warmup_steps == 100
    assert (made.batch.effective_batch, made.batch.micro_batch) == (128, 16)
    assert made.optimizer.text_encoder_learning_rate is None


def test_a_run_without_an_end_is_refused(recipe: Callable[..., TrainRecipe]) -> None:
    with pytest.raises(ValidationError, match="set epochs or max_steps"):
        recipe(length={"max_steps": None})


def test_a_recipe_survives_being_written_and_read(recipe: Callable[..., TrainRecipe], tmp_path: Path) -> None:
    made = recipe(length={"epochs": 2}, checkpoint={"keep": 5})
    (tmp_path / "train.toml").write_text(recipes.dumps(made))
    assert recipes.load(tmp_path / "train.toml", TrainRecipe) == made


def test_a_learning_rate_of_zero_is_refused_because_off_is_leaving_it_out(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        'run = "r"\n[data]\ncurated = "c"\n[length]\nepochs = 1\n[optimizer]\ntext_encoder_learning_rate = 0.0\n'
    )
    with pytest.raises(RecipeError, match=r"optimizer\.text_encoder_learning_rate: input should be greater than 0"):
        recipes.load(tmp_path / "r.toml", TrainRecipe)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ("decay_steps = 10", r'optimizer: no rate falls without decay; set it to "cosine" or "linear"'),
        ("decay_to = 0.0", "optimizer: no rate falls without decay"),
        ('decay = "cosine"', "optimizer: decay needs decay_steps"),
        ('decay = "cosine"\ndecay_steps = 10\ndecay_start = 99', "optimizer: decay_start lies within the warm-up; 100"),
        ('decay = "linear"\ndecay_steps = 899', r"optimizer\.decay_steps: from step 1,000 on the rates are 0"),
    ],
)
def test_rates_that_would_not_fall_as_written_are_refused(tmp_path: Path, optimizer: str, said: str) -> None:
    text = f'run = "r"\n[data]\ncurated = "c"\n[length]\nmax_steps = 1000\n[optimizer]\n{optimizer}\n'
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        recipes.load(tmp_path / "r.toml", TrainRecipe)


@pytest.mark.parametrize("optimizer", ["decay_steps = 900", "decay_steps = 10\ndecay_to = 0.1"])
def test_rates_that_fall_to_the_end_or_not_to_zero_are_taken(tmp_path: Path, optimizer: str) -> None:
    text = f'run = "r"\n[data]\ncurated = "c"\n[length]\nmax_steps = 1000\n[optimizer]\ndecay = "linear"\n{optimizer}\n'
    (tmp_path / "r.toml").write_text(text)
    assert recipes.load(tmp_path / "r.toml", TrainRecipe).optimizer.decay == "linear"


def test_what_may_differ_are_tables_of_the_recipe() -> None:
    assert set(MAY_DIFFER) <= TrainRecipe.model_fields.keys()
    assert not {"data", "model", "optimizer", "batch"} & set(MAY_DIFFER)
