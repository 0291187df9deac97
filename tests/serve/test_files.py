import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sote.cluster.errors import CheckpointError
from sote.serve import files
from sote.train import names


@pytest.mark.parametrize("which", ["prior", "decoder"])
def test_the_right_folder_is_taken(weights: Path, which: files.Which) -> None:
    files.check_folder(weights / which, which, field="model.prior")


def test_the_decoder_in_place_of_the_prior_is_named(weights: Path) -> None:
    with pytest.raises(CheckpointError, match="is Stage B, the decoder; Stage C, the prior, is missing"):
        files.check_folder(weights / "decoder", "prior", field="model.prior")
    with pytest.raises(CheckpointError, match="is Stage C, the prior; Stage B, the decoder, is missing"):
        files.check_folder(weights / "prior", "decoder", field="model.decoder")


def test_the_inner_folder_is_sent_one_up(weights: Path) -> None:
    with pytest.raises(CheckpointError, match="name the folder above it"):
        files.check_folder(weights / "prior" / "prior", "prior", field="model.prior")


def test_a_missing_part_is_named(weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights / "prior" / "prior", tmp_path / "prior")
    with pytest.raises(CheckpointError, match="has no text_encoder/"):
        files.check_folder(tmp_path, "prior", field="model.prior")


def test_a_config_of_the_other_stage_is_found(weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights / "prior", tmp_path / "mixed")
    shutil.copy(weights / "decoder" / "decoder" / "config.json", tmp_path / "mixed" / "prior" / "config.json")
    with pytest.raises(CheckpointError, match=r"is Stage B, the decoder by its config\.json, not Stage C"):
        files.check_folder(tmp_path / "mixed", "prior", field="model.prior")


def test_a_single_file_is_named_by_its_content(weights: Path, tmp_path: Path) -> None:
    for which, stage in files.STAGE.items():
        tensors = load_file(weights / which / which / "diffusion_pytorch_model.safetensors")
        path = tmp_path / f"{which}.safetensors"
        save_file({names.COMFY_UNET + name: tensor for name, tensor in tensors.items()}, path)
        with pytest.raises(CheckpointError, match=f"is a single file with {stage};"):
            files.check_folder(path, "prior", field="model.prior")


def test_a_file_cut_short_is_found(weights: Path, tmp_path: Path) -> None:
    whole = next((weights / "decoder" / "vqgan").glob("*.safetensors"))
    assert files.header(whole, field="x").values > 1000
    for name, data in (("cut", whole.read_bytes()[:-1]), ("empty", b""), ("text", b"<html>404</html>" * 9)):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
            files.header(path, field="model.decoder")


def test_the_plain_file_comes_before_its_variant(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        files.weight_files(tmp_path, field="x")
    (tmp_path / "model.bf16.safetensors").touch()
    assert files.weight_files(tmp_path, field="x").variant == "bf16"
    (tmp_path / "model.fp16.safetensors").touch()
    with pytest.raises(CheckpointError, match="variants bf16, fp16"):
        files.weight_files(tmp_path, field="x")
    (tmp_path / "model.safetensors").touch()
    found = files.weight_files(tmp_path, field="x")
    assert (found.variant, [path.name for path in found.paths]) == (None, ["model.safetensors"])
