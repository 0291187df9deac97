import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sote.cluster.errors import WeightsError
from sote.data.inputs import encoder_input
from sote.data.vqgan import VqganEncoder
from tests.data.test_pass_latents import made, picked

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder's folder with a small Stage A whose batch norm and gammas are not those of a fresh one."""
    torch.manual_seed(0)
    net = PaellaVQModel(levels=2, bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=8, scale_factor=0.3764)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "running" in name or name.endswith("gammas"):
                tensor.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("decoder")
    net.save_pretrained(folder / "vqgan")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_latents_are_what_diffusers_encodes_a_quarter_of_the_picture_and_not_scaled(decoder: Path, dtype: str) -> None:
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    encoder = VqganEncoder(decoder, dtype=dtype, device="cpu")
    reference = PaellaVQModel.from_pretrained(decoder / "vqgan").eval()
    with torch.inference_mode():
        expected = reference.encode(torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2) / 255).latents
    latents = encoder.encode(pixels_BHWC)
    assert latents.shape == (3, 4, 8, 12)
    torch.testing.assert_close(latents, expected.to(getattr(torch, dtype)), atol=1e-5, rtol=2e-3)
    torch.testing.assert_close(encoder.encode(pixels_BHWC[1:2])[0], latents[1], atol=1e-5, rtol=2e-3)
    assert encoder.scale == 1.0
    assert encoder.sha256 == hashlib.sha256((decoder / "vqgan" / WEIGHTS).read_bytes()).hexdigest()


def test_rows_of_the_set_get_stage_as_latents_of_the_same_crop_at_the_buckets_size(
    decoder: Path, tmp_path: Path
) -> None:
    work = picked(tmp_path, vqgan=decoder)
    rows = made(work)
    assert [row["vqgan_shard"] for row in rows] == [
        *(None, "vqgan/64x64/00000.safetensors", None, "vqgan/64x96/00000.safetensors"),
        *(None, None, None),
    ]
    encoder = VqganEncoder(decoder, dtype="float32", device="cpu")
    for row in (rows[1], rows[3]):
        width, height = map(int, row["bucket"].split("x"))
        with safe_open(work.folder.latents / row["vqgan_shard"], framework="pt") as file:
            facts, latents = file.metadata(), file.get_tensor("latents")[row["vqgan_offset"]]
        assert {name: facts[name] for name in ("format", "scale", "bucket", "dtype")} == {
            "format": "sote-vqgan-latents-1",
            "scale": "1.0",
            "bucket": row["bucket"],
            "dtype": "float32",
        }
        assert facts["vqgan_sha256"] == encoder.sha256
        assert json.loads(facts["ids"]) == [hashlib.sha256(Path(row["uri"]).read_bytes()).hexdigest()]
        pixels = encoder_input(Image.open(row["uri"]), box=tuple(row["crop"]), width=width, height=height)
        torch.testing.assert_close(latents, encoder.encode(pixels[None])[0], atol=1e-5, rtol=1e-5)
        assert load_file(work.folder.latents / row["latent_shard"])["latents"].shape[2:] == (height // 32, width // 32)


def test_a_folder_that_is_not_stage_a_is_refused_in_one_line(decoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vqgan"
    folder.mkdir()
    for change, says in (
        (None, "has no config.json"),
        ({"_class_name": "AutoencoderKL"}, "is of the class AutoencoderKL, Stage A is a PaellaVQModel"),
        ({}, "has no diffusion_pytorch_model.safetensors"),
    ):
        if change is not None:
            config = json.loads((decoder / "vqgan" / "config.json").read_text()) | change
            (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(WeightsError, match=says):
            VqganEncoder(folder, dtype="float32", device="cpu")
    tensors = load_file(decoder / "vqgan" / WEIGHTS)
    tensors.pop("in_block.1.weight")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(WeightsError, match=r"lacks in_block\.1\.weight"):
        VqganEncoder(folder, dtype="float32", device="cpu")
