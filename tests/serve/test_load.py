import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sote.cluster.errors import WeightsError
from sote.serve import load
from sote.serve.recipe import ModelPart
from sote.train import modelfile, names

CPU = torch.device("cpu")


def test_auto_is_float32_on_a_cpu() -> None:
    assert load.dtype_for("auto", CPU) == torch.float32
    assert load.dtype_for("bfloat16", CPU) == torch.bfloat16


def test_the_time_is_told_in_float32_under_bfloat16_weights(part: ModelPart) -> None:
    unet = load.load_prior(part.model_copy(update={"prior_dtype": "bfloat16"}), device=CPU).unet
    noised, text, pooled = torch.ones(2, 16, 8, 8), torch.ones(2, 77, 40), torch.ones(2, 1, 40)
    near = torch.tensor([0.9101, 0.9116])  # one value in bfloat16
    with torch.no_grad():
        one, other = unet(noised, time_B=near, pooled_B1D=pooled, text_BTD=text)
    assert one.dtype == torch.bfloat16
    assert not torch.equal(one, other)


def test_weights_of_another_shape_than_their_config_are_refused(part: ModelPart, tmp_path: Path) -> None:
    shutil.copytree(part.prior, tmp_path / "prior")
    path = tmp_path / "prior" / "prior" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"conditioning_dim": 32}))
    with pytest.raises(WeightsError, match="conditioning_dim is 32, in the weights it is 64; take both from one model"):
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


def test_the_metadata_says_how_long_prompts_may_be(part: ModelPart, tmp_path: Path) -> None:
    assert load.load_prior(part, device=CPU).windows == 1
    shutil.copytree(part.prior, tmp_path / "prior")
    path = tmp_path / "prior" / "prior" / "diffusion_pytorch_model.safetensors"
    long = part.model_copy(update={"prior": str(tmp_path / "prior")})
    for said, windows in (("152", 2), ("227", 3)):
        save_file(load_file(path), path, metadata={"format": "pt", load.TOKENS_KEY: said})
        assert load.load_prior(long, device=CPU).windows == windows
    assert load.load_prior(long.model_copy(update={"text_tokens": 77}), device=CPU).windows == 1
    save_file(load_file(path), path, metadata={"format": "pt", load.TOKENS_KEY: "many"})
    with pytest.raises(WeightsError, match=r"says text_tokens 'many'; set model\.text_tokens to 77, 152 or 227"):
        load.load_prior(long, device=CPU)


def test_single_files_give_the_same_models_as_folders(part: ModelPart, tmp_path: Path) -> None:
    single = part.model_copy(update={name: str(path) for name, path in checkpoints(part, tmp_path).items()})
    prior, decoder = load.load_prior(single, device=CPU), load.load_decoder(single, device=CPU)
    for ours, theirs in (
        (prior.unet, load.load_prior(part, device=CPU).unet),
        (prior.text_encoder, load.load_prior(part, device=CPU).text_encoder),
        (decoder.unet, load.load_decoder(part, device=CPU).unet),
        (decoder.vqgan, load.load_decoder(part, device=CPU).vqgan),
    ):
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    assert prior.tokenizer.pad_token_id == 49407


def checkpoints(part: ModelPart, folder: Path) -> dict[str, Path]:
    """Both models as ComfyUI checkpoints that say their configs, by field."""
    prior, decoder = (modelfile.prior(part.prior, field="f"), modelfile.decoder(part.decoder, field="f"))
    assert decoder.vqgan is not None
    written = {}
    for name, unet, beside, entries in (
        ("prior", prior.unet, prior.text_encoder, names.text_to_comfyui(prior.text_encoder.shapes)),
        ("decoder", decoder.unet, decoder.vqgan, names.vqgan_to_original(decoder.vqgan.shapes, prefix="vae.")),
    ):
        tensors = names.convert(dict(unet.tensors()), names.unet_to_comfyui(unet.shapes), join=torch.cat)
        tensors |= names.convert(dict(beside.tensors()), entries, join=torch.cat)
        said = {"config": json.dumps(unet.config), "config.text_encoder": json.dumps(prior.text_encoder.config)}
        written[name] = folder / f"{name}.safetensors"
        save_file(tensors, written[name], metadata=said)
    return written
