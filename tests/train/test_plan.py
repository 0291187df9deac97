import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sote.cluster import recipe as recipes
from sote.cluster.errors import RecipeError, SourceError, UserError, WeightsError
from sote.train import plan, shapes, standins
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


TEXT = shapes.text_shapes(standins.TEXT_CONFIG)


def _full_size(curated: Path, **tables: dict[str, object]) -> TrainRecipe:
    """The seed's base run on eight GPUs, on latents that are still to come."""
    values: dict[str, dict[str, object]] = {
        "data": {"curated": str(curated / "none"), "compression": 32, "expected_images": 1000},
        "text": {"tokens": 227},
        "optimizer": {"text_encoder_learning_rate": 4e-6},
        "length": {"epochs": 3},
        "workers": {"count": 8, "use_gpu": True, "zero_stage": 1},
    }
    for name, table in tables.items():
        merged = values.get(name, {}) | table
        values[name] = {key: value for key, value in merged.items() if value is not None}
    return TrainRecipe.model_validate({"run": "runs/full-size"} | values)


def _refused(recipe: TrainRecipe, kind: type[UserError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        plan.check(recipe)
    assert "\n" not in str(caught.value)


def test_a_good_recipe_has_a_plan(recipe: Make) -> None:
    found = plan.plan(recipe(length={"epochs": 2, "max_steps": None}))
    assert (found.data.images, found.data.images_an_epoch, found.steps) == (22, 24, 12)
    assert (found.images_seen, found.missing) == (48, ())
    assert found.latents.compression == 32.0
    # 24 images: 15 of the square bucket, and 9 of the other with the one that is seen three times
    assert found.data.buckets == {(8, 8): 14 / 24, (6, 10): 10 / 24}
    unet, text = (sum(map(math.prod, each.values())) for each in (shapes.unet_shapes(standins.PRIOR_CONFIG), TEXT))
    assert (found.learning.trained, found.learning.frozen) == (unet + text, 0)


def test_an_effective_batch_that_cannot_be_divided_is_refused_with_ones_that_can(recipe: Make) -> None:
    made = recipe(batch={"effective_batch": 10, "micro_batch": 4})
    _refused(made, RecipeError, r"batch\.effective_batch: 10 cannot be divided by micro_batch 4; 8 or 12 can")
    small = recipe(batch={"effective_batch": 2, "micro_batch": 4})
    _refused(small, RecipeError, "; 4 can")


def test_any_number_of_workers_up_to_the_micro_batches_of_a_step_will_do(recipe: Make) -> None:
    batch = {"effective_batch": 12, "micro_batch": 2}
    assert [plan.micro_batches(recipe(batch=batch, workers={"count": count})) for count in (1, 2, 4, 5, 6)] == [
        6,
        3,
        2,
        2,
        1,
    ]
    _refused(
        recipe(batch=batch, workers={"count": 7}),
        RecipeError,
        r"workers\.count: a step of 12 images has 6 micro-batches of 2, too few for 7 workers; take at most 6",
    )


def test_a_sharded_run_has_a_plan(recipe: Make) -> None:
    whole, shared = (plan.plan(recipe(workers={"zero_stage": stage, "count": 2})).memory for stage in (0, 2))
    assert shared.weights == whole.weights / 2
    assert shared.gradients == whole.gradients / 2


def test_a_worker_that_does_not_fit_its_gpu_is_refused_with_settings_that_fit(recipe: Make, curated: Path) -> None:
    made = _full_size(curated, workers={"gpu": "A100-80GB"}, model={"gradient_checkpointing": 0.0})
    with pytest.raises(
        RecipeError, match=r"workers\.gpu: 98 GB of a worker do not fit the 80 GB of A100-80GB"
    ) as caught:
        plan.outline(made)
    said = str(caught.value)
    assert "this fits: model.gradient_checkpointing = 0.3 (79 GB), or batch.micro_batch = 8 (61 GB)" in said
    assert "\n" not in said
    plan.outline(_full_size(curated, workers={"gpu": "A100-80GB"}, model={"gradient_checkpointing": 0.3}))
    plan.outline(_full_size(curated, workers={"gpu": "A100-80GB", "use_gpu": False}))


def test_where_no_setting_fits_a_larger_gpu_and_adapters_are_named(curated: Path) -> None:
    made = _full_size(curated, workers={"gpu": "RTX4090-24GB", "count": 1, "zero_stage": 0})
    with pytest.raises(RecipeError, match=r"no setting of this run does; take L40S-48GB, or train adapters"):
        plan.outline(made)


def test_adapters_of_the_full_size_fit_a_card_of_24_gb(curated: Path) -> None:
    made = _full_size(
        curated,
        lora={"rank": 16},
        optimizer={"text_encoder_learning_rate": None},
        workers={"gpu": "RTX4090-24GB", "count": 1, "zero_stage": 0},
        batch={"effective_batch": 16, "micro_batch": 2},
    )
    found = plan.outline(made)
    assert found.learning.trained == 16_777_216  # 64 x 4 layers of 2048, rank 16 both ways
    assert found.learning.frozen == 3_589_103_632 + 694_659_840
    assert found.memory.total < 24e9
    # of the three passes, that for the weights' own gradients is spared
    assert found.flop == pytest.approx((2 * 7.707 + 0.294) * 1e12, rel=0.01)


def test_adapters_for_layers_that_there_are_not_are_refused(recipe: Make) -> None:
    made = recipe(lora={"targets": ["to_query"]}, optimizer={"text_encoder_learning_rate": None})
    _refused(made, RecipeError, r"lora\.targets: no linear layer's name ends with 'to_query'")


def test_a_curate_run_that_is_still_to_come_is_named_in_the_outline(recipe: Make, tmp_path: Path) -> None:
    made = recipe(data={"curated": str(tmp_path / "none")}, length={"epochs": 3, "max_steps": None})
    found = plan.outline(made)
    assert found.missing == (f"data.curated: {tmp_path / 'none'} is still to be curated",)
    assert (found.data.steps, found.images_seen, found.data.largest) == (None, None, (32, 32))
    with pytest.raises(SourceError, match="has no catalogue yet"):
        _ = found.steps
    known = plan.outline(recipe(data=dict(made.data, expected_images=10), length={"epochs": 3, "max_steps": None}))
    assert known.data.steps == 8  # 30 images, 4 in a step
    assert plan.outline(recipe(data=dict(made.data), length={"max_steps": 5})).data.steps == 5


def test_weights_known_by_key_that_are_not_here_are_named_in_the_outline_and_refused_by_the_training(
    recipe: Make,
) -> None:
    made = recipe(model={"prior": "stable-cascade-prior"}, export={"decoder": "stable-cascade-decoder"})
    found = plan.outline(made)
    assert found.learning.trained == 3_589_103_632 + 694_659_840
    assert ["hf download stabilityai/" in line for line in found.missing] == [True, True]
    _refused(made, WeightsError, r"model\.prior: .* of stable-cascade-prior is not on this machine")


def test_a_base_run_is_still_to_come_if_a_recipe_beside_makes_it(recipe: Make, tmp_path: Path, tiny: Path) -> None:
    base, made = recipe(), recipe(model={"prior": "runs/to-come"})
    (tmp_path / "broken.toml").write_text("run = ")
    (tmp_path / "first.toml").write_text(recipes.dumps(base.model_copy(update={"run": "runs/to-come"})))
    found = plan.outline(made, beside=tmp_path)
    assert found.missing == ("model.prior: runs/to-come is still to be trained, by first.toml",)
    assert found.learning == plan.plan(base).learning
    for beside in (None, tiny):
        with pytest.raises(WeightsError, match=r"model\.prior: 'runs/to-come' is neither a path here"):
            plan.outline(made, beside=beside)


def test_a_base_run_without_a_checkpoint_is_still_to_come_and_none_goes_on_from_itself(
    recipe: Make, tmp_path: Path
) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    (run / "run.json").write_text("{}")
    made = recipe(model={"prior": str(run)})
    (tmp_path / "first.toml").write_text(recipes.dumps(recipe().model_copy(update={"run": str(run)})))
    assert plan.outline(made, beside=tmp_path).missing == (f"model.prior: {run} is still to be trained, by first.toml",)
    (tmp_path / "first.toml").write_text(recipes.dumps(made.model_copy(update={"run": str(run)})))
    with pytest.raises(RecipeError, match=r"first\.toml: model: .*begun goes on from itself"):
        plan.outline(made, beside=tmp_path)


def test_what_is_there_and_wrong_is_refused_by_the_outline_too(recipe: Make, tiny: Path) -> None:
    with pytest.raises(WeightsError, match="Stage C is missing"):
        plan.outline(recipe(model={"prior": str(tiny / "decoder")}))


def test_a_missing_curate_run_is_refused(recipe: Make, tmp_path: Path) -> None:
    _refused(recipe(data={"curated": str(tmp_path / "none")}), SourceError, r"none: data\.curated: has no catalogue")


def test_a_missing_latent_file_is_refused(recipe: Make, copied: Path) -> None:
    (copied / "latents/256x256/00000.safetensors").unlink()
    _refused(recipe(data={"curated": str(copied)}), SourceError, "no such latent file")


def test_a_cut_latent_file_is_refused(recipe: Make, copied: Path) -> None:
    path = copied / "latents/256x256/00000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    _refused(recipe(data={"curated": str(copied)}), SourceError, "is cut off")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("compression", "42.67", "bucket 256x256 at compression 42.67 has 6x6"),
        ("encoder_sha256", "ef" * 32, "latents of two kinds"),
        ("bucket", "512x512", "is of bucket 512x512, the catalogue says 256x256"),
        ("dtype", None, "does not say its dtype"),
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
        recipe(model={"prior": str(tiny / "decoder")}), WeightsError, "this is Stage B, the decoder; Stage C is missing"
    )
    _refused(recipe(export={"decoder": str(tiny / "prior")}), WeightsError, "Stage B is missing")


def test_weights_of_another_stage_inside_the_right_folder_are_named(recipe: Make, tiny: Path, tmp_path: Path) -> None:
    prior = Path(shutil.copytree(tiny / "prior", tmp_path / "prior"))
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(tiny / "decoder/decoder" / name, prior / "prior" / name)
    _refused(recipe(model={"prior": str(prior)}), WeightsError, "this is Stage B, the decoder; Stage C is missing")


def test_a_folder_without_the_weights_of_the_prior_is_refused(recipe: Make, tiny: Path, tmp_path: Path) -> None:
    prior = Path(shutil.copytree(tiny / "prior", tmp_path / "prior"))
    (prior / "prior/diffusion_pytorch_model.safetensors").unlink()
    _refused(recipe(model={"prior": str(prior)}), WeightsError, "holds no model of Stable Cascade")


def test_a_path_that_is_nothing_is_refused(recipe: Make) -> None:
    _refused(recipe(model={"prior": "no/such/folder"}), WeightsError, r"model\.prior: 'no/such/folder' is neither")


def test_stage_b_on_latents_has_a_plan_in_cells_of_stage_a(recipe: Make, tiny: Path) -> None:
    found = plan.plan(recipe(**_decoder(tiny), diffusion={"least_encoder_scale": 1.0}))
    assert found.data.buckets == {(64, 64): 14 / 24, (48, 80): 10 / 24}
    assert found.latents.compression == 32.0  # of the encoder's latents, which it is shown
    unet = sum(map(math.prod, shapes.unet_shapes(standins.DECODER_CONFIG).values()))
    assert (found.learning.trained, found.learning.frozen) == (unet, sum(map(math.prod, TEXT.values())))


def test_stage_b_on_pictures_needs_the_encoder(recipe: Make, tiny: Path, pictured: Path) -> None:
    made = recipe(**_decoder(tiny), data={"curated": str(pictured), "encode": True})
    _refused(made, WeightsError, r"data\.encoder: effnet_encoder\.safetensors of stable-cascade-effnet is not on this")
    found = plan.outline(made)
    assert ["data.encoder" in line for line in found.missing] == [True]
    assert (found.data.images, found.data.latents) == (8, None)
    assert found.learning.frozen > sum(map(math.prod, TEXT.values())) + 38_000_000  # the encoder and Stage A


def test_stage_c_in_place_of_the_decoder_is_named(recipe: Make, tiny: Path) -> None:
    tables = _decoder(tiny) | {"model": {"stage": "decoder", "decoder": str(tiny / "prior")}}
    _refused(recipe(**tables), WeightsError, r"model\.decoder: this is the prior \(Stage C\); Stage B is missing")


def _decoder(tiny: Path) -> dict[str, dict[str, object]]:
    return {
        "model": {"stage": "decoder", "decoder": str(tiny / "decoder")},
        "optimizer": {"text_encoder_learning_rate": None},
    }
