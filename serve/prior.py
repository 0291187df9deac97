"""The prior (Stage C) as a model that answers: prompt -> latents.

Suffixes: B images, T text tokens, D width of the text embedding, C channels, H and W cells.
Source: sampling as in serving facts of ComfyUI a125cd8 and diffusers 0.42.1 StableCascadePriorPipeline (conditions,
guidance); text as at training (train/text.py), with the mask and the length that the weights' metadata name.

Kind: actor.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sote.serve import load, sampling, schedules
from sote.serve.recipe import ModelPart
from sote.serve.schema import Latents, Settings
from sote.serve.sizes import latent_side
from sote.train import text

CHANNELS = 16  # of Stage C latents


@dataclass(frozen=True)
class Text:
    """Encoded prompts: `states` [B, T, D], `pooled` [B, 1, D], and for each how many tokens did not fit (`lost`)."""

    states: Tensor
    pooled: Tensor
    lost: tuple[int, ...]


class PriorModel:
    """Text encoder and Stage C, loaded once; or `weights` that are on the device already."""

    def __init__(
        self, part: ModelPart, *, device: torch.device | None = None, weights: load.PriorWeights | None = None
    ) -> None:
        self.device = device or load.device_here()
        self.weights = weights or load.load_prior(part, device=self.device)

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Text:
        """Embed prompts, as training embeds captions."""
        tokenizer, windows = self.weights.tokenizer, self.weights.windows
        tokens_BNT, mask_BNT = text.tokens(tokenizer, prompts, windows=windows)
        states_BTD, pooled_B1D = text.embed(
            self.weights.text_encoder,
            tokens_BNT.to(self.device),
            mask_BNT.to(self.device) if self.weights.mask_padding else None,
        )
        return Text(states_BTD, pooled_B1D, tuple(text.lost(tokenizer, prompts, windows=windows)))

    @torch.inference_mode()
    def latents(self, settings: Settings, *, each_step: Callable[[int], None] | None = None) -> Latents:
        """Sample the latents of all images of a request in one batch.

        Raises RunFailed if a step gives values that are not finite; `each_step(i)` is called before step i.
        """
        start = time.monotonic()
        stage = settings.prior
        needs_negative = stage.is_guided or settings.decoder.is_guided
        prompts = self.encode([settings.prompt, settings.negative_prompt] if needs_negative else [settings.prompt])
        seeds = [settings.image_seed(index) for index in range(settings.images)]
        height, width = (latent_side(pixels, settings.compression) for pixels in (settings.height, settings.width))
        latents_BCHW = sampling.sample(
            self._predictor(prompts, settings),
            sampling.noise_of(seeds, (CHANNELS, height, width), device=self.device),
            plan=sampling.Plan("prior", stage.sampler, schedules.grid(stage.scheduler, stage.steps, shift=stage.shift)),
            each_step=each_step,
        )
        return Latents(
            latents=latents_BCHW.cpu().numpy(),
            pooled=prompts.pooled.float().cpu().numpy(),
            seconds=time.monotonic() - start,
            warnings=_warnings(prompts.lost, settings),
        )

    def _predictor(self, prompts: Text, settings: Settings) -> sampling.Predict:
        """eps of Stage C with guidance; the conditional and unconditional pass are one batch."""
        unet, images, is_guided = self.weights.unet, settings.images, settings.prior.is_guided
        rows = 2 if is_guided else 1
        states_BTD = prompts.states[:rows].repeat_interleave(images, dim=0)
        pooled_B1D = prompts.pooled[:rows].repeat_interleave(images, dim=0)

        def predict(x: Tensor, r: Tensor) -> Tensor:
            # No picture is given: the UNet takes zeros for it, as at training
            eps: Tensor = unet(
                torch.cat([x] * rows), time_B=torch.cat([r] * rows), pooled_B1D=pooled_B1D, text_BTD=states_BTD
            ).float()
            return sampling.guided(*eps.chunk(2), scale=settings.prior.guidance) if is_guided else eps

        return predict


def _warnings(lost: tuple[int, ...], settings: Settings) -> tuple[str, ...]:
    """One line for each prompt that is longer than the text encoder can read."""
    names = ("prompt", "negative_prompt")
    found = [
        f"{name}: the last {count} tokens were not read" for name, count in zip(names, lost, strict=False) if count
    ]
    sides = [latent_side(side, settings.compression) for side in (settings.width, settings.height)]
    if min(sides) < 16:  # below 16 cells pictures blur (reports at ComfyUI and kijai's wrapper)
        found.append(f"image_size: {min(sides)} latent cells on the short side, pictures blur below 16")
    return tuple(found)
