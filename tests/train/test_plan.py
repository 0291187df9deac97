import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sote.cluster.errors import RecipeError, SourceError, UserError, WeightsError
from sote.train import plan
from sote.train.recipe import TrainRecipe

Make = Callable[..., TrainRecipe]


@pytest.fixture
def copied(curated: Path, tmp_path: Path) -> Path:
    """A curate run that a test may spoil."""
    return Path(shutil.copytree(curated, tmp_path / "copied"))


def _rewrite(path: Path, **changes: str | None) -> None:
    with safe_open(path, framework="pt") as file:
        facts = dict(file.metadata()) | changes
    save_file(load_file(path), path, metadata={key: value for key, value in facts.items() if value is not None})


def _refused(recipe: TrainRecipe, kind: type[UserError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        plan.check(recipe)
    assert "\n" not in str(caught.value)


def test_a_good_recipe_has_a_plan(recipe: Make) -> None:
    found = plan.plan(recipe(length={"epochs": 2, "max_steps": None}))
    assert (found.images, found.images_an_epoch, found.steps, found.micro_batches) == (22, 24, 12, 2)
    assert found.latents.compression == 32.0
    console = Console(width=200)
    with console.capture() as captured:
        console.print(plan.render(found))
    assert "12, that is 2.00 epochs" in captured.get()


def test_an_effective_batch_that_cannot_be_divided_is_refused_with_ones_that_can(recipe: Make) -> None:
    made = recipe(batch={"effective_batch": 10, "micro_batch": 2}, workers={"count": 2})
    _refused(
        made, RecipeError, r"batch\.effective_batch: 10 cannot be divided by micro_batch 2 x workers\.count 2; 8 or 12"
    )
    small = recipe(batch={"effective_batch": 2, "micro_batch": 2}, workers={"count": 4})
    _refused(small, RecipeError, "; 8 can")


def test_zero_stages_that_break_adafactor_are_refused(recipe: Make) -> None:
    _refused(recipe(workers={"zero_stage": 2}), RecipeError, r"workers\.zero_stage: 2 .* set it to 0")


def test_a_missing_curate_run_is_refused(recipe: Make, tmp_path: Path) -> None:
    _refused(recipe(data={"curated": str(tmp_path / "none")}), SourceError, r"none: data\.curated: has no catalogue")


def test_a_missing_latent_file_is_refused(recipe: Make, copied: Path) -> None:
    (copied / "latents/256x256/00000.safetensors").unlink()
    _refused(recipe(data={"curated": str(copied)}), SourceError, "no such latent file")


def test_a_cut_latent_file_is_refused(recipe: Make, copied: Path) -> None:
    path = copied / "latents/256x256/00000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    _refused(recipe(data={"curated": str(copied)}), SourceError, "bytes long, its header says")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("compression", "42.67", "latents of two kinds"),
        ("encoder_sha256", "ef" * 32, "latents of two kinds"),
        ("bucket", "512x512", "is of bucket 512x512, the catalogue says 256x256"),
        ("dtype", None, "not a latent file of Sote"),
    ],
)
def test_latents_that_do_not_belong_together_are_refused(
    recipe: Make, copied: Path, key: str, value: str | None, says: str
) -> None:
    _rewrite(copied / "latents/256x256/00000.safetensors", **{key: value})
    _refused(recipe(data={"curated": str(copied)}), SourceError, says)


def test_a_catalogue_that_names_more_latents_than_there_are_is_refused(recipe: Make, copied: Path) -> None:
    path = copied / "latents/256x256/00000.safetensors"
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    save_file({"latents": torch.zeros(2, 16, 8, 8, dtype=torch.float16)}, path, metadata=facts)
    _refused(recipe(data={"curated": str(copied)}), SourceError, "holds 2 latents, the catalogue names number 13")


def test_the_decoder_in_place_of_the_prior_is_named(recipe: Make, tiny: Path) -> None:
    _refused(
        recipe(model={"prior": str(tiny / "decoder")}), WeightsError, "this is Stage B, the decoder; here goes the"
    )
    _refused(recipe(export={"decoder": str(tiny / "prior")}), WeightsError, r"this is the prior \(Stage C\); here goes")


def test_weights_of_another_stage_inside_the_right_folder_are_named(recipe: Make, tiny: Path, tmp_path: Path) -> None:
    prior = Path(shutil.copytree(tiny / "prior", tmp_path / "prior"))
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(tiny / "decoder/decoder" / name, prior / "prior" / name)
    _refused(recipe(model={"prior": str(prior)}), WeightsError, "this is Stage B, the decoder, here goes the prior")


def test_a_prior_for_another_text_encoder_is_refused(recipe: Make, tiny: Path, tmp_path: Path) -> None:
    prior = Path(shutil.copytree(tiny / "prior", tmp_path / "prior"))
    path = prior / "text_encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 1280}))
    _refused(recipe(model={"prior": str(prior)}), WeightsError, "takes text of width 40, its text encoder gives 1280")


def test_a_folder_that_lacks_a_part_or_weights_is_refused(recipe: Make, tiny: Path, tmp_path: Path) -> None:
    prior = Path(shutil.copytree(tiny / "prior", tmp_path / "prior"))
    (prior / "prior/diffusion_pytorch_model.safetensors").unlink()
    _refused(recipe(model={"prior": str(prior)}), WeightsError, "has no weights")
    shutil.rmtree(prior / "tokenizer")
    _refused(recipe(model={"prior": str(prior)}), WeightsError, "has no folder tokenizer")


def test_a_path_that_is_nothing_is_refused(recipe: Make) -> None:
    _refused(recipe(model={"prior": "no/such/folder"}), WeightsError, r"model\.prior: 'no/such/folder' is neither")
