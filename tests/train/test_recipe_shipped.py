"""The shipped recipes against the model card's tables, and each through `sote check` as it comes."""

from pathlib import Path

import pytest

from sote.cluster import recipe as recipes
from sote.data.recipe import CurateRecipe
from sote.train.recipe import TrainRecipe
from tests.conftest import Command

TOP = Path(__file__).parents[2]
SHIPPED = TOP / "train" / "recipes"


def load(name: str) -> TrainRecipe:
    return recipes.load(SHIPPED / f"{name}.toml", TrainRecipe)


def test_these_are_shipped_and_no_others() -> None:
    assert sorted(path.stem for path in SHIPPED.iterdir()) == ["base", "decoder", "final", "tiny"]


@pytest.mark.parametrize(
    ("name", "prior_rate", "text_rate", "epochs"), [("base", 1e-5, 4e-6, 3), ("final", 4e-6, None, 16)]
)
def test_a_stage_of_the_prior_has_the_cards_numbers(
    name: str, prior_rate: float, text_rate: float | None, epochs: int
) -> None:
    made = load(name)
    assert made.optimizer.prior_learning_rate == prior_rate
    assert made.optimizer.text_encoder_learning_rate == text_rate
    assert (made.optimizer.name, made.optimizer.warmup_steps) == ("adafactor", 100)
    assert (made.batch.effective_batch, made.batch.micro_batch, made.workers.count) == (128, 16, 8)
    assert (made.length.epochs, made.length.max_steps) == (epochs, None)
    assert (made.workers.precision, made.export.dtype) == ("bfloat16", "float16")
    assert (made.data.compression, made.text.tokens) == (32.0, 227)
    assert (made.captions.dropout, made.captions.shuffle, made.text.mask_padding) == (0.05, True, True)
    assert (made.diffusion.loss_weight, made.ema, made.lora) == ("p2", None, None)


def test_the_final_stage_goes_on_from_the_base_stage_on_the_best_pictures() -> None:
    made = load("final")
    assert made.model.prior == load("base").run
    assert (made.data.set, made.data.expected_images) == ("final", 120_000)


def test_the_decoder_has_the_authors_numbers() -> None:
    made = load("decoder")
    assert (made.model.stage, made.data.set, made.data.expected_images) == ("decoder", "decoder", 98_000)
    assert (made.optimizer.decoder_learning_rate, made.optimizer.warmup_steps) == (1e-5, 100)
    assert (made.batch.effective_batch, made.length.epochs) == (16, 1)
    assert (made.diffusion.pyramid_noise, made.diffusion.loss_weight) == (0.75, "p2")


def test_the_recipes_train_on_sets_of_the_shipped_curation() -> None:
    curation = recipes.load(TOP / "data" / "recipes" / "sote_6m.toml", CurateRecipe)
    for name in ("base", "final", "decoder"):
        made = load(name)
        assert made.data.curated == curation.run
        assert made.data.set is None or made.data.set in curation.select.sets
    best = curation.select.sets["decoder"]
    assert (best.aesthetic_above, best.quality_above) == (0.98, 0.98)


@pytest.mark.parametrize(("name", "trained", "steps"), [
    ("base", "4,283,763,472 trained", "145,313"),
    ("final", "3,589,103,632 trained, 694,659,840 frozen", "15,000"),
    ("decoder", "1,562,941,136 trained", "6,125"),
])  # fmt: skip
def test_check_prints_the_plan_of_a_shipped_recipe_before_anything_is_there(
    name: str, trained: str, steps: str, sote: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no run
    code, out, error = sote("check", str(SHIPPED / f"{name}.toml"))
    assert (code, error) == (0, "")
    for words in (trained, steps, "A100-80GB", "H200-141GB", "RTX4090-24GB", "still to be curated", "hf download"):
        assert words in out
    said = (SHIPPED / f"{name}.toml").read_text()
    total = next(line for line in out.splitlines() if line.strip().startswith("total")).split()[1]
    assert f"{float(total):.0f} GB" in said  # what the heading comment says of memory
    hours = next(line for line in out.splitlines() if line.strip().startswith("A100-80GB")).split()
    assert f"by arithmetic {hours[4]} at" in said.replace("\n#            ", "")


@pytest.mark.skipif(not (TOP / "runs" / "demo").exists(), reason="needs `sote demo` in runs/demo")
def test_check_accepts_the_tiny_recipe_where_the_demo_was_run(sote: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOP)
    assert sote("check", str(SHIPPED / "tiny.toml"))[0] == 0
