"""The prior (Stage C) with its text encoder as one module that gives the loss of a micro-batch.

Text: tokens padded to 77 with the end mark, attention mask passed to the text encoder ("masked": as diffusers, ComfyUI
and Stability's trainer do); text embedding = last hidden state before the final norm; pooled = projection of the final
state at the end mark. sca, crp and the image condition are zero. Source: Stability-AI/StableCascade 7a7d341
train/base.py and train/train_c.py; diffusers 0.42.1 StableCascadePriorPipeline.encode_prompt.

Shapes: B batch, C channels, H and W latent cells, T tokens, D width of the text.

Kind: actor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sote.cluster import weights
from sote.train import diffusion, folders
from sote.train.batches import Micro
from sote.train.recipe import ModelPart

TOKENS = 77  # CLIP's context
TEXT_MASK = "masked"  # written into checkpoints: how the text encoder was called; serving must do the same


@dataclass(frozen=True)
class Losses:
    """`loss` is the mean to go down; `weighted_B` and `plain_B` are that of each image, with and without P2 weight."""

    loss: Tensor
    weighted_B: Tensor
    plain_B: Tensor


class Prior(nn.Module):
    """Holds `prior` and `text_encoder`. Everything that is not trained does not require a gradient."""

    def __init__(
        self, prior: StableCascadeUNet, text_encoder: CLIPTextModelWithProjection, *, train_text_encoder: bool
    ) -> None:
        super().__init__()
        self.prior, self.text_encoder = prior, text_encoder
        self.train_text_encoder = train_text_encoder
        self.image_width = int(prior.config["clip_image_in_channels"])
        text_encoder.requires_grad_(train_text_encoder)

    def forward(
        self, latents_BCHW: Tensor, noise_BCHW: Tensor, time_B: Tensor, tokens_BT: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, weighted and plain loss of each image (see Losses). The noise is what is to be found."""
        log_snr_B = diffusion.log_snr(time_B)
        text_BTD, pooled_B1D = self.text(tokens_BT, mask_BT)
        found_BCHW = self.prior(
            diffusion.noised(latents_BCHW, noise_BCHW=noise_BCHW, log_snr_B=log_snr_B),
            # float32 on purpose: in bfloat16 the time near 1 would move in steps of 0.004
            timestep_ratio=diffusion.noise_condition(log_snr_B),
            clip_text_pooled=pooled_B1D,
            clip_text=text_BTD,
            clip_img=text_BTD.new_zeros(len(time_B), 1, self.image_width),
            return_dict=False,
        )[0]
        plain_B = (found_BCHW.float() - noise_BCHW.float()).square().mean(dim=(1, 2, 3))
        weighted_B = plain_B * diffusion.p2_weight(log_snr_B)
        return weighted_B.mean(), weighted_B.detach(), plain_B.detach()

    def text(self, tokens_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Text embedding [B,T,D] and pooled [B,1,D] of tokens."""
        with torch.set_grad_enabled(self.train_text_encoder and torch.is_grad_enabled()):
            found = self.text_encoder(tokens_BT, attention_mask=mask_BT, output_hidden_states=True)
        return found.hidden_states[-1], found.text_embeds.unsqueeze(1)


def load(part: ModelPart, *, train_text_encoder: bool) -> Prior:
    """Load the prior folder of the recipe with float32 weights, whatever type the files have."""
    folder = weights.locate(part.prior, field="model.prior")
    options = {"torch_dtype": torch.float32, "local_files_only": True}
    prior = StableCascadeUNet.from_pretrained(folder / "prior", variant=folders.variant(folder / "prior"), **options)
    text_encoder = CLIPTextModelWithProjection.from_pretrained(
        folder / "text_encoder",
        variant=folders.variant(folder / "text_encoder"),
        dtype=torch.float32,
        local_files_only=True,
    )
    if part.gradient_checkpointing:
        prior.enable_gradient_checkpointing()
        text_encoder.activation_checkpointing_enable()
    return Prior(prior, text_encoder, train_text_encoder=train_text_encoder)


def load_tokenizer(part: ModelPart) -> CLIPTokenizer:
    """The tokenizer of the prior folder."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
        weights.locate(part.prior, field="model.prior") / "tokenizer", local_files_only=True
    )
    return tokenizer


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Token numbers [B,77] and attention mask [B,77]; what is longer than 77 tokens is cut."""
    found = tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return found["input_ids"], found["attention_mask"]


def losses(model: Callable[..., Any], micro: Micro, *, tokenizer: CLIPTokenizer, device: torch.device) -> Losses:
    """Run `model` (a Prior, or an engine around it) on a micro-batch, its dropout seeded by the micro-batch."""
    tokens_BT, mask_BT = tokens(tokenizer, micro.captions)
    torch.manual_seed(micro.seed)
    inputs = (micro.latents_BCHW, micro.noise_BCHW, micro.time_B, tokens_BT, mask_BT)
    return Losses(*model(*(tensor.to(device, non_blocking=True) for tensor in inputs)))
