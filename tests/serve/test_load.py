import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from sote.cluster.errors import WeightsError
from sote.data import standins as data_standins
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


@pytest.fixture(scope="module")
def effnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature EfficientNet encoder's file."""
    folder = tmp_path_factory.mktemp("effnet")
    data_standins.make_encoder(folder, [_photo(index) for index in range(2)], seed=0)
    return folder / "effnet_encoder.safetensors"


def test_the_image_encoder_beside_the_prior_is_loaded_and_an_encoder_where_it_is_named(
    part: ModelPart, effnet: Path
) -> None:
    weights = load.load_prior(part, device=CPU)
    assert weights.encoder is None
    assert weights.image_encoder is not None
    assert weights.image_encoder.embed([np.zeros((224, 224, 3), np.uint8)]).shape == (1, 40)
    weights = load.load_prior(part.model_copy(update={"encoder": str(effnet)}), device=CPU)
    assert weights.encoder is not None
    latents = weights.encoder.encode(np.zeros((2, 288, 192, 3), np.uint8))
    assert latents.shape == (2, 16, 9, 6)
    assert latents.dtype == torch.float32


def test_encoders_inside_a_comfyui_checkpoint_are_those_of_their_own_files(
    part: ModelPart, effnet: Path, tmp_path: Path
) -> None:
    path = checkpoints(part, tmp_path)["prior"]
    looks = load_file(Path(part.prior) / "image_encoder" / "model.safetensors")
    inside = load_file(path) | {names.COMFY_IMAGE + name: tensor for name, tensor in looks.items()}
    inside |= {names.COMFY_ENCODER + name: tensor for name, tensor in load_file(effnet).items()}
    said = {"config.image_encoder": (Path(part.prior) / "image_encoder" / "config.json").read_text()}
    save_file(inside, path, metadata=modelfile.prior(str(path), field="f").unet.metadata | said)
    found = load.load_prior(part.model_copy(update={"prior": str(path)}), device=CPU)
    apart = load.load_prior(part.model_copy(update={"encoder": str(effnet)}), device=CPU)
    assert found.encoder is not None
    assert apart.encoder is not None
    assert found.image_encoder is not None
    assert apart.image_encoder is not None
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    # not bit for bit: where a tensor lies in the file decides how its memory is aligned
    one, other = found.encoder.encode(pixels), apart.encoder.encode(pixels)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.image_encoder.embed(pixels), apart.image_encoder.embed(pixels))


def test_an_image_encoder_of_another_width_than_the_prior_takes_is_refused(part: ModelPart, tmp_path: Path) -> None:
    shutil.copytree(Path(part.prior) / "image_encoder", tmp_path / "image_encoder")
    path = tmp_path / "image_encoder" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"visual_projection.weight": torch.zeros(48, 32)}, path)
    config = tmp_path / "image_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"projection_dim": 48}))
    named = part.model_copy(update={"image_encoder": str(path.parent)})
    with pytest.raises(WeightsError, match="the prior takes pictures as 40 numbers, this image encoder gives 48"):
        load.load_prior(named, device=CPU)


def test_swapped_stages_are_told_apart(part: ModelPart, tmp_path: Path) -> None:
    swapped = part.model_copy(update={"prior": part.decoder, "decoder": part.prior})
    with pytest.raises(WeightsError, match=r"model\.prior: this is Stage B, the decoder; Stage C is missing"):
        load.load_prior(swapped, device=CPU)
    with pytest.raises(WeightsError, match=r"model\.decoder: this is the prior \(Stage C\); Stage B is missing"):
        load.load_decoder(swapped, device=CPU)
    files = checkpoints(part, tmp_path)
    swapped = part.model_copy(update={"prior": str(files["decoder"]), "decoder": str(files["prior"])})
    with pytest.raises(
        WeightsError, match=r"decoder\.safetensors: model\.prior: this is Stage B, the decoder; Stage C"
    ):
        load.load_prior(swapped, device=CPU)
    with pytest.raises(
        WeightsError, match=r"prior\.safetensors: model\.decoder: this is the prior \(Stage C\); Stage B"
    ):
        load.load_decoder(swapped, device=CPU)


def test_a_decoder_without_stage_a_says_what_to_put_where(part: ModelPart, tmp_path: Path) -> None:
    shutil.copytree(part.decoder, tmp_path / "decoder", ignore=shutil.ignore_patterns("vqgan"))
    with pytest.raises(WeightsError, match=r"model\.decoder: has no Stage A; put stage_a\.safetensors beside it"):
        load.load_decoder(part.model_copy(update={"decoder": str(tmp_path / "decoder")}), device=CPU)


def test_a_prior_without_text_encoder_says_what_to_put_where(part: ModelPart, tmp_path: Path) -> None:
    shutil.copytree(part.prior, tmp_path / "prior", ignore=shutil.ignore_patterns("text_encoder"))
    alone = part.model_copy(update={"prior": str(tmp_path / "prior")})
    with pytest.raises(
        WeightsError, match=r"has no text encoder; put .*_text_model\.safetensors beside it, or name one"
    ):
        load.load_prior(alone, device=CPU)
    beside = str(Path(part.prior) / "text_encoder")
    assert load.load_prior(alone.model_copy(update={"text_encoder": beside}), device=CPU).windows == 1


def test_a_prior_in_float16_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValidationError, match="Stage C overflows in float16 and gives black pictures; use bfloat16"):
        ModelPart(prior_dtype="float16")
    assert ModelPart(decoder_dtype="float16").decoder_dtype == "float16"


def test_weights_stored_in_float16_are_computed_in_another_type(part: ModelPart, tmp_path: Path) -> None:
    path = checkpoints(part, tmp_path)["prior"]
    metadata = modelfile.prior(str(path), field="f").unet.metadata
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, metadata=metadata)
    unet = load.load_prior(part.model_copy(update={"prior": str(path)}), device=CPU).unet
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}


def _photo(seed: int) -> Image.Image:
    """A picture of the size that the stand-in encoder is set on, or larger."""
    small = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    return Image.fromarray(small).resize((640, 640))


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
