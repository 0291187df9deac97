import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sote.cluster.errors import CheckpointError
from sote.serve import load
from sote.serve.recipe import ModelPart

CPU = torch.device("cpu")


def test_auto_is_float32_on_a_cpu() -> None:
    assert load.dtype_for("auto", CPU) == torch.float32
    assert load.dtype_for("bfloat16", CPU) == torch.bfloat16


def test_the_time_embedding_is_made_in_float32_under_bfloat16_weights(part: ModelPart) -> None:
    unet = load.load_prior(part.model_copy(update={"prior_dtype": "bfloat16"}), device=CPU).unet
    near = torch.tensor([0.9101, 0.9116])  # one value in bfloat16
    one, other = unet.get_timestep_ratio_embedding(near)
    assert one.dtype == torch.bfloat16
    assert (one - other).abs().max() > 0.1
    exact = load.load_prior(part, device=CPU).unet.get_timestep_ratio_embedding(near)
    torch.testing.assert_close(torch.stack([one, other]).float(), exact, rtol=0, atol=0.01)


def test_weights_of_another_shape_than_their_config_are_refused(part: ModelPart, tmp_path: Path) -> None:
    shutil.copytree(part.prior, tmp_path / "prior")
    path = tmp_path / "prior" / "prior" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"conditioning_dim": 32}))
    with pytest.raises(CheckpointError, match=r"tensor .* the two are not of one model"):
        load.load_prior(part.model_copy(update={"prior": str(tmp_path / "prior")}), device=CPU)


def test_the_metadata_says_whether_padding_was_masked(part: ModelPart, tmp_path: Path) -> None:
    assert load.load_prior(part, device=CPU).mask_padding
    shutil.copytree(part.prior, tmp_path / "prior")
    path = tmp_path / "prior" / "prior" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", load.MASK_KEY: "none"})
    unmasked = part.model_copy(update={"prior": str(tmp_path / "prior")})
    assert not load.load_prior(unmasked, device=CPU).mask_padding
    assert load.load_prior(unmasked.model_copy(update={"mask_padding": True}), device=CPU).mask_padding


def test_the_vqgan_scale_is_the_recipes(part: ModelPart) -> None:
    assert load.load_decoder(part, device=CPU).vqgan_scale == 0.43
    assert load.load_decoder(part.model_copy(update={"vqgan_scale": 0.3764}), device=CPU).vqgan_scale == 0.3764
