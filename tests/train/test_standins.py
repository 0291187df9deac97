import hashlib
from pathlib import Path

import open_clip
import torch
from diffusers import StableCascadeDecoderPipeline, StableCascadePriorPipeline
from transformers import CLIPTokenizer, CLIPVisionModelWithProjection

from sote.train import standins


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_folders_load_by_the_real_classes_and_paint_a_picture(tiny: Path) -> None:
    prior = StableCascadePriorPipeline.from_pretrained(tiny / "prior")
    decoder = StableCascadeDecoderPipeline.from_pretrained(tiny / "decoder")
    prior.set_progress_bar_config(disable=True)
    decoder.set_progress_bar_config(disable=True)
    seeded = torch.Generator().manual_seed(0)
    latents = prior("red circle", height=256, width=256, num_inference_steps=2, generator=seeded).image_embeddings
    options = {"num_inference_steps": 2, "guidance_scale": 0.0, "generator": seeded, "output_type": "np"}
    image = decoder(latents, prompt="red circle", **options).images[0]
    assert image.shape == (256, 256, 3)
    assert image.std() > 0.01
    assert decoder.vqgan.config.scale_factor == 0.43


def test_the_image_encoder_tells_pictures_apart(tiny: Path) -> None:
    model = CLIPVisionModelWithProjection.from_pretrained(tiny / "prior" / "image_encoder")
    prior = StableCascadePriorPipeline.from_pretrained(tiny / "prior").prior
    side = model.config.image_size
    assert side == 224
    pictures = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        vectors = model(pixel_values=torch.nn.functional.interpolate(pictures, size=side)).image_embeds
    assert vectors.shape == (2, prior.config.clip_image_in_channels)
    assert (vectors[0] - vectors[1]).abs().max() > 0.01


def test_the_tokenizer_is_the_real_one(tiny: Path) -> None:
    ours = CLIPTokenizer.from_pretrained(tiny / "prior" / "tokenizer")
    theirs = open_clip.get_tokenizer("ViT-B-32")
    for text in ('a red circle, The text says "Hi!"', "héllo 2020s 日本", ""):
        tokens = ours([text], padding="max_length", truncation=True, return_tensors="pt")
        length = int(tokens.attention_mask.sum())
        assert tokens.input_ids.shape == (1, 77)
        assert torch.equal(tokens.input_ids[0, :length], theirs([text])[0, :length])
        assert torch.all(tokens.input_ids[0, length:] == 49407)


def test_equal_seeds_give_equal_files_and_they_are_small(tiny: Path, tmp_path: Path) -> None:
    standins.make(tmp_path, seed=0)
    assert _digests(tmp_path) == _digests(tiny)
    assert sum(path.stat().st_size for path in tiny.rglob("*") if path.is_file()) < 25_000_000


def test_another_seed_gives_other_weights_and_leaves_the_global_generator_alone(tiny: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    standins.make(tmp_path, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    name = "prior/prior/diffusion_pytorch_model.safetensors"
    assert _digests(tmp_path)[name] != _digests(tiny)[name]
