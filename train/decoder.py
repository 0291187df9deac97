"""The decoder (Stage B) as a module that gives the loss of a micro-batch.

It learns to make Stage A's latents from the encoder's. Source: Stability-AI/StableCascade 7a7d341 train/train_b.py:
the encoder sees the picture at a random scale, its latents are left out (zeros) for 10 % of the images, the only text
is the pooled one, and the condition on pixels is zeros(B, 3, 8, 8).

Shapes: B batch, C channels, H and W cells of VQ latents, h and w cells of the encoder's latents, N windows, T tokens.

Kind: actor.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import CLIPTextModelWithProjection

from sote.train import diffusion, text
from sote.train.unet import CascadeUNet

# Stability-AI/StableCascade modules/stage_a.py: Stage B was trained on Stage A's latents divided by it; published
# diffusers configs have the 0.3764 of Wuerstchen v2
VQ_SCALE = 0.43
# The encoder's latents (EfficientNet-V2-S): pixels of a cell, channels
ENCODER_STRIDE, ENCODER_CHANNELS = 32, 16
WINDOWS = 1  # of text: the pooled vector is that of the first


class Decoder(nn.Module):
    """Holds `decoder`, and a frozen `text_encoder` for the pooled text, which stays in eval mode."""

    def __init__(self, decoder: CascadeUNet, text_encoder: CLIPTextModelWithProjection, *, mask_padding: bool) -> None:
        super().__init__()
        self.decoder, self.text_encoder = decoder, text_encoder
        self.mask_padding = mask_padding
        text_encoder.requires_grad_(False)

    def forward(  # noqa: PLR0913  # an engine passes tensors by place
        self,
        vq_BCHW: Tensor,
        noise_BCHW: Tensor,
        time_B: Tensor,
        tokens_BNT: Tensor,
        mask_BNT: Tensor,
        encoder_latents_BChw: Tensor,
        keep_B: Tensor,
        weight_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The mean of the weighted losses, and the plain loss of each image, detached.

        `vq_BCHW` are Stage A's latents, unscaled; `keep_B` is false where the encoder's latents are left out.
        """
        log_snr_B = diffusion.log_snr(time_B)
        found_BCHW = self.decoder(
            diffusion.noised(vq_BCHW.float() / VQ_SCALE, noise_BCHW=noise_BCHW, log_snr_B=log_snr_B),
            time_B=diffusion.noise_condition(log_snr_B),
            pooled_B1D=self.pooled(tokens_BNT, mask_BNT),
            latents_BCHW=torch.where(keep_B[:, None, None, None], encoder_latents_BChw, 0.0),
        )
        plain_B = diffusion.squared_distance(found_BCHW, noise_BCHW)
        return (plain_B * weight_B).mean(), plain_B.detach()

    @torch.no_grad()
    def pooled(self, tokens_BNT: Tensor, mask_BNT: Tensor) -> Tensor:
        """Pooled text [B,1,D]."""
        return text.embed(self.text_encoder, tokens_BNT, mask_BNT if self.mask_padding else None)[1]

    def train(self, mode: bool = True) -> Self:
        """As every module's, but what is frozen stays in eval mode."""
        super().train(mode)
        self.text_encoder.train(False)
        return self


def encoder_input(pixels_BHWC: Tensor, *, scale: float) -> Tensor:
    """The pictures as the encoder is shown them: each side times `scale`, down to a multiple of 32, nearest pixels."""
    sides = [max(1, int(side * scale // ENCODER_STRIDE)) * ENCODER_STRIDE for side in pixels_BHWC.shape[1:3]]
    scaled_BCHW = interpolate(pixels_BHWC.permute(0, 3, 1, 2), size=sides, mode="nearest")
    return scaled_BCHW.permute(0, 2, 3, 1).contiguous()
