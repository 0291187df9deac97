"""The image encoder (CLIP-L/14 with its projection) as a model that answers: pictures -> vectors for the prior.

Suffixes: K pictures, H and W pixels, C channels, D width of the vectors.
Source: diffusers 0.42.1 StableCascadePriorPipeline.encode_image, which stacks the projected vectors.

Kind: actor.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sote.cluster.errors import WeightsError
from sote.serve.settings import Pixels
from sote.serve.starts import CLIP_SIDE
from sote.train import models
from sote.train.source import Source

# openai/CLIP clip.py _transform; sote.data.score_files has them too, but brings open_clip along
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Vision:
    """The image encoder of a source, loaded once. Raises WeightsError: one for pictures of another size."""

    def __init__(self, source: Source, *, dtype: torch.dtype, device: torch.device) -> None:
        side = source.config.get("image_size", CLIP_SIDE)
        if side != CLIP_SIDE:
            raise WeightsError(
                f"{source.path}: model.image_encoder: takes pictures of {side} pixels, should be {CLIP_SIDE} as "
                "CLIP-L/14; name the one that belongs to the prior"
            )
        self.device, self.dtype = device, dtype
        self._model = models.image_model(source, dtype=dtype, device=device).requires_grad_(False)
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))

    @torch.inference_mode()
    def embed(self, pixels: Sequence[Pixels]) -> Tensor:
        """Pictures, each RGB [224, 224, 3] uint8 -> vectors [K, D] float32 on the device, in their order."""
        pixels_KHWC = torch.from_numpy(np.stack(pixels)).to(self.device)
        pixels_KCHW = (pixels_KHWC.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        vectors_KD: Tensor = self._model(pixel_values=pixels_KCHW.to(self.dtype)).image_embeds
        return vectors_KD.float()
