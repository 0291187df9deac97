"""Stand-ins of the models that training starts from: the real classes, layouts and names in miniature.

`make` writes the two diffusers pipeline folders `prior` and `decoder`, untrained, equal for equal seeds. The tokenizer
is the real one: its vocabulary ships inside open_clip.

Kind: actor.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from sote.cluster import storage
from sote.train import pipelines, published

TEXT_WIDTH = 40  # 1280 in the real text encoder; two copies of 49,408 token vectors are most of the stand-ins' bytes
IMAGE_WIDTH = 40  # 768 in the real CLIP image encoder

# The published configs; only widths and depths are small
PRIOR_CONFIG: dict[str, Any] = published.PRIOR | {
    "conditioning_dim": 64,
    "block_out_channels": (64, 64),
    "num_attention_heads": (2, 2),
    "down_num_layers_per_block": (2, 3),
    "up_num_layers_per_block": (3, 2),
    "clip_text_in_channels": TEXT_WIDTH,
    "clip_text_pooled_in_channels": TEXT_WIDTH,
    "clip_image_in_channels": IMAGE_WIDTH,
}
DECODER_CONFIG: dict[str, Any] = published.DECODER | {
    "conditioning_dim": 32,
    "block_out_channels": (16, 32, 32, 32),
    "num_attention_heads": (0, 0, 2, 2),
    "down_num_layers_per_block": (1, 1, 2, 1),
    "up_num_layers_per_block": (1, 2, 1, 1),
    "clip_text_pooled_in_channels": TEXT_WIDTH,
}
# scale_factor: Stability's StageA, with which Stage B was trained; diffusers' default 0.3764 is Wuerstchen v2's
VQGAN_CONFIG: dict[str, Any] = {"levels": 2, "bottleneck_blocks": 2, "embed_dim": 32, "scale_factor": 0.43}
# bos, eos and vocabulary of laion/CLIP-ViT-bigG-14-laion2B-39B-b160k; pad 1 as published, padding itself is the eos
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": TEXT_WIDTH,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
# openai/clip-vit-large-patch14's vision tower, as in stabilityai/stable-cascade-prior image_encoder; 50 positions
IMAGE_CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "projection_dim": IMAGE_WIDTH,
}


def make(folder: Path, *, seed: int = 0) -> None:
    """Write `folder`/prior and `folder`/decoder. Equal seeds give equal files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_CONFIG))
        prior = StableCascadeUNet(**PRIOR_CONFIG)
        decoder = StableCascadeUNet(**DECODER_CONFIG)
        vqgan = PaellaVQModel(**VQGAN_CONFIG)
        for module in vqgan.modules():
            if hasattr(module, "gammas"):  # fresh gammas are zero: every block would do nothing
                torch.nn.init.normal_(module.gammas, std=0.1)
        image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE_CONFIG))
    text_encoder.config.architectures = ["CLIPTextModelWithProjection"]
    image_encoder.config.architectures = ["CLIPVisionModelWithProjection"]
    prior.save_pretrained(folder / "prior" / "prior")
    decoder.save_pretrained(folder / "decoder" / "decoder")
    vqgan.save_pretrained(folder / "decoder" / "vqgan")
    for name in ("prior", "decoder"):
        write_clip(text_encoder, folder / name / "text_encoder")
        pipelines.furnish(folder / name, name)
    write_clip(image_encoder, folder / "prior" / "image_encoder")


def write_clip(model: CLIPTextModelWithProjection | CLIPVisionModelWithProjection, folder: Path) -> None:
    """Write a folder as `save_pretrained` does, but without its progress bar."""
    model.config.save_pretrained(folder)
    with storage.atomic(folder / "model.safetensors") as temporary:
        save_file(model.state_dict(), temporary, metadata={"format": "pt"})
