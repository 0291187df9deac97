"""The decoder (Stage B) and vqgan (Stage A) as a model that answers: latents -> encoded pictures.

Suffixes: B images, D width of the text embedding, C channels, H and W cells or pixels.
Source: conditions and guidance as diffusers 0.42.1 StableCascadeDecoderPipeline and ComfyUI a125cd8 have them.

Kind: actor.
"""

import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sote.cluster.errors import RunFailed
from sote.serve import load, parameters, sampling, schedules
from sote.serve.pictures import Painted, encode
from sote.serve.recipe import ModelPart
from sote.serve.schema import Latents, Settings
from sote.serve.sizes import vq_side

CHANNELS = 4  # of VQ latents


class DecoderModel:
    """Stage B and Stage A, loaded once; or `weights` that are on the device already. It needs no text encoder: the
    pooled vector comes with the latents."""

    def __init__(
        self, part: ModelPart, *, device: torch.device | None = None, weights: load.DecoderWeights | None = None
    ) -> None:
        self.device = device or load.device_here()
        self.weights = weights or load.load_decoder(part, device=self.device)
        self.name = part.name or Path(part.prior).name.removesuffix(".safetensors")
        self.version = metadata.version("sote")

    @torch.inference_mode()
    def paint(
        self, latents: Latents, settings: Settings, *, each_step: Callable[[int], None] | None = None
    ) -> tuple[list[Painted], float]:
        """The pictures of a request, and the seconds they took.

        Raises RunFailed, naming stage and step, where values are not finite: never a black picture.
        """
        start = time.monotonic()
        stage = settings.decoder
        seeds = [settings.decoder_seed(index) for index in range(settings.images)]
        vq_BCHW = sampling.sample(
            self._predictor(latents, settings),
            sampling.noise_of(seeds, (CHANNELS, vq_side(settings.height), vq_side(settings.width)), device=self.device),
            plan=sampling.Plan(
                "decoder", stage.sampler, schedules.grid(stage.scheduler, stage.steps, shift=stage.shift)
            ),
            each_step=each_step,
        )
        pixels_BHWC = self._pixels(vq_BCHW)
        painted = [self._painted(pixels_BHWC[index], latents, settings, index) for index in range(settings.images)]
        return painted, time.monotonic() - start

    def _predictor(self, latents: Latents, settings: Settings) -> sampling.Predict:
        """eps of Stage B with guidance; the unconditional pass has zeros in place of latents."""
        unet, images, is_guided = self.weights.unet, settings.images, settings.decoder.is_guided
        rows = 2 if is_guided else 1
        pooled_B1D = torch.from_numpy(latents.pooled[:rows]).to(self.device)
        pooled_B1D = pooled_B1D.repeat_interleave(images, dim=0)
        latents_BCHW = torch.from_numpy(latents.latents).to(self.device)
        if is_guided:
            latents_BCHW = torch.cat([latents_BCHW, torch.zeros_like(latents_BCHW)])

        def predict(x: Tensor, r: Tensor) -> Tensor:
            eps: Tensor = unet(
                torch.cat([x] * rows), time_B=torch.cat([r] * rows), pooled_B1D=pooled_B1D, latents_BCHW=latents_BCHW
            ).float()
            return sampling.guided(*eps.chunk(2), scale=settings.decoder.guidance) if is_guided else eps

        return predict

    def _pixels(self, vq_BCHW: Tensor) -> np.ndarray:
        """Stage A: VQ latents -> RGB pixels [B, H, W, 3] uint8. One image at a time: its memory grows with pixels."""
        images = []
        for vq_CHW in vq_BCHW:
            decoded_CHW = self.weights.vqgan.decode(self.weights.vqgan_scale * vq_CHW[None])[0]
            if not torch.isfinite(decoded_CHW).all():
                raise RunFailed("vqgan: the decoded picture has values that are not finite; no picture was made")
            images.append((decoded_CHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu())
        return torch.stack(images).numpy()

    def _painted(self, pixels_HWC: np.ndarray, latents: Latents, settings: Settings, index: int) -> Painted:
        text = parameters.text(settings, index=index, model=self.name, version=self.version)
        return Painted(
            data=encode(pixels_HWC, settings.output_format, parameters=text),
            output_format=settings.output_format,
            width=settings.width,
            height=settings.height,
            seed=settings.image_seed(index),
            parameters=text,
            latents=latents.latents[index],
        )
