import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from sote.cluster.devices import Device
from sote.cluster.errors import CheckpointError, UserError, WeightsError
from sote.serve import keys, memory, plan
from sote.serve.memory import Need
from sote.serve.plan import Machine
from sote.serve.recipe import ModelPart, ServeRecipe
from sote.train import names

CARD = Device("cuda", "NVIDIA GeForce RTX 4090", 0, 24_000_000_000)
# UNets of the full-size models (stabilityai/stable-cascade, prior/config.json and decoder/config.json)
RES_TIME_ATTENTION = ["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]
STAGE_C = {
    "block_out_channels": [2048, 2048],
    "down_num_layers_per_block": [8, 24],
    "up_num_layers_per_block": [24, 8],
    "block_types_per_layer": [RES_TIME_ATTENTION] * 2,
    "switch_level": [False],
    "clip_text_in_channels": 1280,
}
STAGE_B = {
    "block_out_channels": [320, 640, 1280, 1280],
    "patch_size": 2,
    "down_num_layers_per_block": [2, 6, 28, 6],
    "up_num_layers_per_block": [6, 28, 6, 2],
    "block_types_per_layer": [RES_TIME_ATTENTION[:2]] * 2 + [RES_TIME_ATTENTION] * 2,
    "switch_level": None,
    "clip_text_in_channels": None,
}


def recipe(part: ModelPart, **fields: object) -> ServeRecipe:
    return ServeRecipe.model_validate({"run": "r", "model": part, **fields})


def machine(*gpus: Device, cores: int = 16, gigabytes: float = 64) -> Machine:
    return Machine(cores, int(gigabytes * 1e9), gpus)


def needs(prior: float, decoder: float) -> dict[str, Need]:
    """Of so many gigabytes."""
    return {"prior": Need(prior * 1e9, 0, 0), "decoder": Need(decoder * 1e9, 0, 0)}


def test_a_sound_recipe_gives_a_plan_that_people_can_read(part: ModelPart) -> None:
    made = plan.plan(recipe(part))
    screen = Console(file=io.StringIO(), width=200)
    screen.print(plan.render(made))
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "http://127.0.0.1:8000" in shown
    assert "1024x1536" in shown
    assert "of hosts" in plan.summary(made)
    assert "on this machine" in plan.summary(made)
    assert sum(need.weights for need in made.memory.values()) == 4 * sum(made.parameters.values())
    assert made.bytes_cpu == sum(need.total for need in made.memory.values())
    assert made.bytes_gpu == 0


def test_work_is_that_of_the_seeds_settings(part: ModelPart, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1024x1536, 30 + 10 steps, no guidance in the decoder: 471.4 TFLOP by torch's FlopCounter on the full models;
    # here in proportion to pixels, and with compression 42 for 42.67
    sizes = {"prior": plan.PRIOR_VALUES, "decoder": plan.DECODER_VALUES}
    monkeypatch.setattr(memory, "values", lambda source: sizes.get(source.what, 0))
    assert plan._tflop(recipe(part), plan._models(recipe(part))) == pytest.approx(471.4, rel=0.03)


def test_on_a_gpu_auto_is_two_bytes_a_value_and_stage_a_keeps_four(part: ModelPart) -> None:
    wanted = recipe(part, prior_replicas={"gpus": 0.5}, decoder_replicas={"gpus": 0.5})
    made = plan.plan(wanted, address="ray://head:10001")
    counts = made.parameters
    vqgan = counts["model.decoder: vqgan"]
    assert sum(need.weights for need in made.memory.values()) == 2 * sum(counts.values()) + 2 * vqgan
    assert made.bytes_gpu == sum(need.total for need in made.memory.values())
    assert made.bytes_cpu == 0
    assert "ray://head:10001, which cannot be seen from here" in plan.summary(made)


def test_steps_of_the_full_models_take_more_memory_with_slots_and_pixels() -> None:
    # 2048x1152 at compression 32: 64x36 cells of 2048 channels; Stage B: 256x144 cells of 320 channels at the top
    one, other = memory._steps(STAGE_C, 64 * 36), memory._steps(STAGE_B, 512 * 288)
    assert one == (memory.BLOCK + 2 * memory.KEPT) * 64 * 36 * 2048
    cells = 256 * 144
    levels = [cells * 320, cells / 4 * 640, cells / 16 * 1280, cells / 64 * 1280]
    assert other == memory.BLOCK * levels[0] + memory.KEPT * sum(levels)


def test_gpus_that_are_not_there_are_named(part: ModelPart) -> None:
    wanted = recipe(part, prior_replicas={"gpus": 0.5})
    with pytest.raises(UserError, match=r"prior_replicas\.gpus: 0\.5, and this machine shows no GPU .*--address"):
        plan.check_machine(wanted, needs(1, 1), tflop=1, machine=machine())


def test_two_models_that_do_not_fit_one_gpu_together_are_refused(part: ModelPart) -> None:
    wanted = recipe(part, prior_replicas={"gpus": 0.5}, decoder_replicas={"gpus": 0.5})
    plan.check_machine(wanted, needs(12, 10), tflop=471, machine=machine(CARD))
    with pytest.raises(
        UserError, match=r"need about 26\.0 GB on NVIDIA GeForce RTX 4090 .*, which has 24\.0; set fewer"
    ):
        plan.check_machine(wanted, needs(16, 10), tflop=471, machine=machine(CARD))
    apart = recipe(part, prior_replicas={"gpus": 1}, decoder_replicas={"gpus": 1})
    plan.check_machine(apart, needs(16, 10), tflop=471, machine=machine(CARD, CARD))
    with pytest.raises(UserError, match=r"decoder_replicas\.gpus: 1 replicas of 1 GPUs do not fit beside the others"):
        plan.check_machine(apart, needs(16, 10), tflop=471, machine=machine(CARD))


def test_too_little_memory_of_the_host_is_refused(part: ModelPart) -> None:
    with pytest.raises(UserError, match=r"need about 9\.0 GB of memory, this machine has 8\.0"):
        plan.check_machine(recipe(part), needs(6, 3), tflop=1, machine=machine(gigabytes=8))


def test_a_full_size_model_without_a_gpu_must_be_wanted(part: ModelPart) -> None:
    with pytest.raises(UserError, match=r"1024x1536 takes about 1\.6 hours on 2 cores; set gpus, or model\.allow_cpu"):
        plan.check_machine(recipe(part), needs(1, 1), tflop=471.4, machine=machine(cores=2))
    wanted = recipe(part.model_copy(update={"allow_cpu": True}))
    plan.check_machine(wanted, needs(1, 1), tflop=471.4, machine=machine(cores=2))


def test_keys_that_are_not_there_and_a_licence_without_its_source_are_found_at_once(
    part: ModelPart, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no such file of keys"):
        plan.check(recipe(part, access={"keys": str(tmp_path / "keys.toml")}))
    keys.add(tmp_path / "keys.toml", "ada", keys.Limits())
    public = {"host": "0.0.0.0", "access": {"keys": str(tmp_path / "keys.toml")}}
    licence = {"licence": "Fair AI Public License 1.0-SD"}
    with pytest.raises(UserError, match=r"about\.source_url: .* asks who serves it"):
        plan.check(recipe(part, **public, about=licence))
    plan.check(recipe(part, **public, about=licence | {"source_url": "https://example.org/source"}))


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
