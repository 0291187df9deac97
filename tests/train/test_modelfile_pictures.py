"""The models that read pictures, by name, inside a prior's file and beside it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sote.cluster.errors import WeightsError
from sote.train import modelfile, models, names


@pytest.fixture(scope="module")
def looks(tiny: Path) -> dict[str, torch.Tensor]:
    """The stand-in image encoder's tensors."""
    return load_file(tiny / "prior" / "image_encoder" / "model.safetensors")


@pytest.fixture(scope="module")
def prior(tiny: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny / "prior" / "prior" / "diffusion_pytorch_model.safetensors")


def same(source: modelfile.Source | None, wanted: dict[str, torch.Tensor]) -> bool:
    assert source is not None
    found = dict(source.tensors())
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_image_encoder_beside_a_prior_is_found(tiny: Path, looks: dict[str, torch.Tensor]) -> None:
    for reference in (tiny / "prior", tiny / "prior" / "prior"):
        assert same(modelfile.image_encoder_of(None, prior=str(reference)), looks)


def test_the_image_encoder_may_be_named(tiny: Path, looks: dict[str, torch.Tensor]) -> None:
    folder = tiny / "prior" / "image_encoder"
    for reference in (folder, folder / "model.safetensors", tiny / "prior"):
        found = modelfile.image_encoder_of(str(reference), prior="not looked at")
        assert same(found, looks)
        assert found is not None
        assert found.config["num_attention_heads"] == 2  # the config beside it is taken
    with pytest.raises(WeightsError, match=r"model\.image_encoder: this is .*; the image encoder is missing"):
        modelfile.image_encoder_of(str(tiny / "prior" / "text_encoder"), prior="not looked at")


def test_both_are_found_inside_a_comfyui_checkpoint(
    tmp_path: Path, prior: dict[str, torch.Tensor], looks: dict[str, torch.Tensor]
) -> None:
    tensors = {names.COMFY_UNET + name: tensor for name, tensor in prior.items()}
    tensors |= {names.COMFY_IMAGE + name: tensor for name, tensor in looks.items()}
    tensors[names.COMFY_IMAGE + "vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    tensors[names.COMFY_ENCODER + "backbone.0.0.weight"] = torch.zeros(8, 3, 3, 3)
    path = tmp_path / "stage_c.safetensors"
    save_file(tensors, path)
    assert same(modelfile.image_encoder_of(None, prior=str(path)), looks)
    assert modelfile.encoder_of(None, prior=str(path)) == modelfile.EncoderFile(path, "vae.encoder.")


def test_both_are_found_as_files_beside_a_prior(
    tmp_path: Path, prior: dict[str, torch.Tensor], looks: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(prior, path)
    assert modelfile.image_encoder_of(None, prior=str(path)) is None
    assert modelfile.encoder_of(None, prior=str(path)) is None
    save_file(looks, tmp_path / "mine_image_encoder.safetensors")
    encoder = tmp_path / "effnet_encoder.safetensors"
    save_file({"backbone.0.0.weight": torch.zeros(8, 3, 3, 3)}, encoder)
    assert same(modelfile.image_encoder_of(None, prior=str(path)), looks)
    assert modelfile.encoder_of(None, prior=str(path)) == modelfile.EncoderFile(encoder, "")
    for named in (encoder, tmp_path):
        assert modelfile.encoder_of(str(named), prior="not looked at") == modelfile.EncoderFile(encoder, "")


def test_another_file_than_an_encoder_is_said_to_be_what_it_is(tiny: Path, tmp_path: Path) -> None:
    words = r"model\.encoder: this is Stage A, the vqgan, here goes the EfficientNet encoder"
    with pytest.raises(WeightsError, match=words):
        modelfile.encoder_of(
            str(tiny / "decoder" / "vqgan" / "diffusion_pytorch_model.safetensors"), prior="not looked at"
        )
    shutil.copytree(tiny / "decoder" / "vqgan", tmp_path / "vqgan")
    with pytest.raises(WeightsError, match=r"model\.encoder: this is Stage A, the vqgan; the EfficientNet encoder is"):
        modelfile.encoder_of(str(tmp_path / "vqgan"), prior="not looked at")
    with pytest.raises(WeightsError, match=r"model\.encoder: '/no/such' is neither a path here"):
        modelfile.encoder_of("/no/such", prior="not looked at")


def test_a_broken_image_encoder_is_named(tmp_path: Path, looks: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: tensor for name, tensor in looks.items() if not name.endswith("layers.1.mlp.fc1.bias")}, path)
    with pytest.raises(WeightsError, match=r"tensor vision_model\.encoder\.layers\.1\.mlp\.fc1\.bias is missing"):
        modelfile.image_encoder_of(str(path), prior="not looked at")


def test_the_image_encoder_of_a_whole_clip_is_taken(tmp_path: Path, tiny: Path, looks: dict[str, torch.Tensor]) -> None:
    words = load_file(tiny / "prior" / "text_encoder" / "model.safetensors")
    path = tmp_path / "clip.safetensors"
    save_file(looks | words, path)
    found = modelfile.image_encoder_of(str(path), prior="not looked at")
    assert same(found, looks)


def test_the_model_is_filled_with_all_its_tensors(tiny: Path, looks: dict[str, torch.Tensor]) -> None:
    source = modelfile.image_encoder_of(None, prior=str(tiny / "prior"))
    assert source is not None
    model = models.image_model(source, dtype=torch.bfloat16, device="cpu")
    assert not model.training
    assert model.state_dict().keys() == looks.keys()
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
