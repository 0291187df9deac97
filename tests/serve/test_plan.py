import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from sote.cluster.errors import CheckpointError, WeightsError
from sote.serve import plan
from sote.serve.recipe import ModelPart, ServeRecipe
from sote.train import names


def recipe(part: ModelPart, **fields: object) -> ServeRecipe:
    return ServeRecipe.model_validate({"run": "r", "model": part, **fields})


def test_a_sound_recipe_gives_a_plan_that_people_can_read(part: ModelPart) -> None:
    made = plan.plan(recipe(part))
    screen = Console(file=io.StringIO(), width=200)
    screen.print(plan.render(made))
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "http://127.0.0.1:8000" in shown
    assert "1024x1536" in shown
    assert made.bytes_cpu == 4 * sum(made.parameters.values())
    assert made.bytes_gpu == 0


def test_work_is_that_of_the_seeds_settings(part: ModelPart) -> None:
    # 1024x1536, 30 + 10 steps, no guidance in the decoder: 471.4 TFLOP by torch's FlopCounter on the full models;
    # here in proportion to pixels, and with compression 42 for 42.67
    assert plan.plan(recipe(part)).tflop == pytest.approx(471.4, rel=0.03)


def test_on_a_gpu_auto_is_two_bytes_a_value(part: ModelPart) -> None:
    made = plan.plan(recipe(part, prior_replicas={"gpus": 0.5}, decoder_replicas={"gpus": 0.5}))
    assert made.bytes_gpu == 2 * sum(made.parameters.values())


def test_missing_weights_say_how_to_fetch_them(part: ModelPart) -> None:
    with pytest.raises(WeightsError, match=r"model\.prior: .*fetch it with"):
        plan.check(recipe(part.model_copy(update={"prior": "sotediffusion-wuerstchen3"})))
    with pytest.raises(WeightsError, match=r"model\.decoder: 'nowhere/here' is neither"):
        plan.check(recipe(part.model_copy(update={"decoder": "nowhere/here"})))


def test_the_decoder_in_place_of_the_prior_is_named(part: ModelPart) -> None:
    swapped = part.model_copy(update={"prior": part.decoder, "decoder": part.prior})
    with pytest.raises(WeightsError, match=r"model\.prior: this is Stage B, the decoder; Stage C is missing"):
        plan.check(recipe(swapped))


def test_a_single_file_of_another_stage_is_named_by_its_content(part: ModelPart, tmp_path: Path) -> None:
    tensors = load_file(Path(part.decoder) / "decoder" / "diffusion_pytorch_model.safetensors")
    path = tmp_path / "checkpoint.safetensors"
    save_file({names.COMFY_UNET + name: tensor for name, tensor in tensors.items()}, path)
    with pytest.raises(
        WeightsError, match=r"checkpoint\.safetensors: model\.prior: this is Stage B, the decoder; Stage C is missing"
    ):
        plan.check(recipe(part.model_copy(update={"prior": str(path)})))


def test_a_decoder_without_stage_a_is_said(part: ModelPart, tmp_path: Path) -> None:
    shutil.copytree(Path(part.decoder) / "decoder", tmp_path / "decoder" / "decoder")
    with pytest.raises(WeightsError, match=r"model\.decoder: has no Stage A; put stage_a\.safetensors beside it"):
        plan.check(recipe(part.model_copy(update={"decoder": str(tmp_path / "decoder")})))


def test_a_file_cut_short_is_found(part: ModelPart, tmp_path: Path) -> None:
    shutil.copytree(part.decoder, tmp_path / "decoder")
    path = tmp_path / "decoder" / "decoder" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="fetch it again"):
        plan.check(recipe(part.model_copy(update={"decoder": str(tmp_path / "decoder")})))


@pytest.mark.parametrize(
    "change", [{"conditioning_dim": 32}, {"down_num_layers_per_block": [1, 1]}, {"block_out_channels": [64, 32]}]
)
def test_weights_of_another_shape_than_their_config_are_refused(
    part: ModelPart, tmp_path: Path, change: dict[str, object]
) -> None:
    shutil.copytree(part.prior, tmp_path / "prior")
    path = tmp_path / "prior" / "prior" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=r"the config is of another model .* than the weights .* take both from one"):
        plan.check(recipe(part.model_copy(update={"prior": str(tmp_path / "prior")})))


def test_prior_and_decoder_of_two_families_are_refused(part: ModelPart, tmp_path: Path) -> None:
    shutil.copytree(part.decoder, tmp_path / "decoder")
    path = tmp_path / "decoder" / "decoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clip_text_pooled_in_channels": 1280}))
    weights = path.with_name("diffusion_pytorch_model.safetensors")
    save_file(load_file(weights) | {"clip_txt_pooled_mapper.weight": torch.zeros(128, 1280)}, weights)
    with pytest.raises(CheckpointError, match="takes pooled text of width 1280"):
        plan.check(recipe(part.model_copy(update={"decoder": str(tmp_path / "decoder")})))
