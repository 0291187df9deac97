"""The prior (Stage C) with its text encoder as one module that gives the loss of a micro-batch.

The model is told noised latents, the time, the text embedding and the pooled text; the image condition, sca and crp are
zero. Source: Stability-AI/StableCascade 7a7d341 train/base.py and train/train_c.py, but for its 10 % of image
conditions, which neither the seed's author nor serving has.

Shapes: B batch, C channels, H and W latent cells, N windows, T tokens, D width of the text.

Kind: actor.
"""

from typing import Self

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from sote.train import diffusion, text
from sote.train.unet import CascadeUNet


class Prior(nn.Module):
    """Holds `prior` and `text_encoder`. A text encoder that is not trained is frozen, and stays in eval mode."""

    def __init__(
        self,
        prior: CascadeUNet,
        text_encoder: CLIPTextModelWithProjection,
        *,
        mask_padding: bool,
        train_text_encoder: bool,
    ) -> None:
        super().__init__()
        self.prior, self.text_encoder = prior, text_encoder
        self.mask_padding, self.train_text_encoder = mask_padding, train_text_encoder
        text_encoder.requires_grad_(train_text_encoder)

    def forward(
        self,
        latents_BCHW: Tensor,
        noise_BCHW: Tensor,
        time_B: Tensor,
        tokens_BNT: Tensor,
        mask_BNT: Tensor,
        weight_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The mean of the weighted losses, and the plain loss of each image, detached. Noise is what is to be found."""
        log_snr_B = diffusion.log_snr(time_B)
        text_BTD, pooled_B1D = self.text(tokens_BNT, mask_BNT)
        found_BCHW = self.prior(
            diffusion.noised(latents_BCHW, noise_BCHW=noise_BCHW, log_snr_B=log_snr_B),
            time_B=diffusion.noise_condition(log_snr_B),
            pooled_B1D=pooled_B1D,
            text_BTD=text_BTD,
        )
        plain_B = diffusion.squared_distance(found_BCHW, noise_BCHW)
        return (plain_B * weight_B).mean(), plain_B.detach()

    def text(self, tokens_BNT: Tensor, mask_BNT: Tensor) -> tuple[Tensor, Tensor]:
        """Text embedding [B,T,D] and pooled [B,1,D]; with gradients only if the text encoder is trained."""
        with torch.set_grad_enabled(self.train_text_encoder and torch.is_grad_enabled()):
            return text.embed(self.text_encoder, tokens_BNT, mask_BNT if self.mask_padding else None)

    def train(self, mode: bool = True) -> Self:
        """As every module's, but what is frozen stays in eval mode."""
        super().train(mode)
        self.text_encoder.train(mode and self.train_text_encoder)
        return self
