"""The prior (Stage C) as a model that answers: prompt -> latents.

A request is made into rows, one for each picture, that step by themselves or together with those of other requests
(`batching`); both ways are the same code. What does not change over the steps is computed once, when a request comes:
the text, and the keys and values that Stage C finds in it.

Suffixes: B rows, F rows of the network's batch, T text tokens, K pictures, D widths, C channels, H and W cells.
Source: conditions and guidance as in ComfyUI a125cd8 (facts only) and diffusers 0.42.1 StableCascadePriorPipeline.

Kind: actor.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sote.cluster.errors import RequestError, RunFailed
from sote.serve import batching, load, noise, preview, sampling
from sote.serve.batch import fetch, put
from sote.serve.encoding import Read, Reader
from sote.serve.recipe import LimitsPart, ModelPart
from sote.serve.room import with_room
from sote.serve.rows import Request, Row, Seen
from sote.serve.settings import Latents, Numbers, Progress, Settings, StageName
from sote.serve.sizes import latent_side
from sote.train.conditions import Conditions

CHANNELS = 16  # of Stage C latents
SMALLEST, LARGEST = 16, 64  # cells of a side; beyond, pictures blur or repeat (reports at ComfyUI and kijai's wrapper)
LEAST_COMPRESSION, MOST_COMPRESSION = 32, 64  # the seed's range


@dataclass(eq=False, kw_only=True)
class PriorRequest(Request):
    """A request to the prior: its texts as they were read (the second is the negative prompt's), and their pooled
    vectors [1 or 2, 1, D], on their way to the host."""

    settings: Settings
    reads: tuple[Read, ...]
    pooled_B1D: Tensor


class PriorModel:
    """Text encoder and Stage C, loaded once; or `weights` that are on the device already.

    `limits` says how many tokens of a prompt are read.
    """

    name: StageName = "prior"

    def __init__(
        self,
        part: ModelPart,
        *,
        device: torch.device | None = None,
        weights: load.PriorWeights | None = None,
        limits: LimitsPart | None = None,
    ) -> None:
        self.device = device or load.device_here()
        self.weights = weights or load.load_prior(part, device=self.device)
        self.reader = Reader(self.weights, device=self.device)
        self.max_tokens = (limits or LimitsPart()).max_prompt_tokens
        if part.compile:
            self.weights.unet.compile_blocks()

    def latents(
        self,
        settings: Settings,
        *,
        each_step: Callable[[int], None] | None = None,
        watch: Callable[[Progress], None] | None = None,
    ) -> Latents:
        """Sample the latents of a request alone.

        `each_step(i)` is called before step i; what it raises ends the sampling. Raises RequestError for a picture that
        this model has no encoder for, RunFailed if a step gives values that are not finite, NoMemory.
        """
        request = self.request(settings, seen=watch and preview.telling(self.name, watch))
        batching.run(self, request, each_step=each_step)
        latents = self.finish(request)
        request.forget()
        return latents

    def request(self, settings: Settings, *, seen: Callable[[Seen], None] | None = None) -> PriorRequest:
        """The rows of a request, ready to step. Raises RequestError, NoMemory."""
        arrived = time.monotonic()
        reads = with_room(lambda: self._reads(settings), stage=self.name, device=self.device)
        rows = with_room(lambda: self._rows(settings, reads), stage=self.name, device=self.device)
        pooled_B1D = fetch(torch.cat([read.pooled_11D for read in reads]).float())
        return PriorRequest(
            rows=rows, arrived=arrived, seen=seen, settings=settings, reads=reads, pooled_B1D=pooled_B1D
        )

    def finish(self, request: PriorRequest) -> Latents:
        """The answer to a request whose rows have ended."""
        ends = [row.end for row in request.rows if row.end is not None]
        return Latents(
            latents=torch.stack(ends).numpy(),
            pooled=request.pooled_B1D.numpy(),
            work=request.work(self.name),
            warnings=_warnings(request.reads, request.settings),
            prompt_tokens=request.reads[0].tokens,
        )

    @torch.inference_mode()
    def pooled(self, settings: Settings) -> Numbers:
        """What the decoder needs of the prompts, [1 or 2, 1, D], for latents that are there already."""
        reads = with_room(lambda: self._reads(settings), stage=self.name, device=self.device)
        pooled: Numbers = torch.cat([read.pooled_11D for read in reads]).float().cpu().numpy()
        return pooled

    def joined(self, given: Sequence[Conditions]) -> Conditions:
        """The conditions of several rows as those of one batch."""
        return Conditions.joined(given)

    def predict(self, x_FCHW: Tensor, *, r_F: Tensor, given: Conditions) -> Tensor:
        """The noise that Stage C finds."""
        return self.weights.unet.denoise(x_FCHW, time_B=r_F, conditions=given).float()

    def look(self, x0_CHW: Tensor) -> Tensor:
        """Latents are small as they are."""
        return x0_CHW

    def _reads(self, settings: Settings) -> tuple[Read, ...]:
        """The prompt, and where a stage is guided the negative prompt."""
        profile, is_weighted, most = settings.profile, settings.is_weighted, self.max_tokens
        if settings.prior.is_guided:
            return self.reader.read_both(
                settings.prompt, settings.negative_prompt, profile=profile, is_weighted=is_weighted, max_tokens=most
            )
        prompts = (settings.prompt, settings.negative_prompt) if settings.decoder.is_guided else (settings.prompt,)
        return tuple(
            self.reader.read(prompt, profile=profile, is_weighted=is_weighted, max_tokens=most) for prompt in prompts
        )

    @torch.inference_mode()
    def _rows(self, settings: Settings, reads: tuple[Read, ...]) -> list[Row]:
        image_1KD = self._variations(settings)
        conditional = self._conditions(reads[0], image_1KD)
        unconditional = None
        if settings.prior.is_guided:
            unconditional = self._conditions(reads[1], None if image_1KD is None else torch.zeros_like(image_1KD))
        strength = settings.strength if settings.start is not None else 1.0
        plan = sampling.Plan.of("prior", settings.prior, strength=strength)
        z_CHW, shape = self._start(settings), shape_of(settings)
        rows = []
        for index in range(settings.images):
            stream = noise.prior_stream(settings, index, shape)
            x_CHW = stream.draw()
            if z_CHW is not None:
                x_CHW = sampling.started(z_CHW, x_CHW, plan.sigmas[0])
            pixels = settings.width * settings.height
            rows.append(Row(put(x_CHW, self.device), plan, stream, conditional, unconditional, pixels))
        return rows

    def _conditions(self, read: Read, image_1KD: Tensor | None) -> Conditions:
        return self.weights.unet.conditions(read.pooled_11D, text_BTD=read.states_1TD, image_BKD=image_1KD)

    def _variations(self, settings: Settings) -> Tensor | None:
        """CLIP's vectors of the pictures whose content is varied, [1, K, D]."""
        if not settings.variations:
            return None
        if self.weights.image_encoder is None:
            raise RequestError(
                "variation_image_urls: this server has no image encoder for pictures; set model.image_encoder in its "
                "recipe"
            )
        return self.weights.image_encoder.embed(settings.variations)[None]

    def _start(self, settings: Settings) -> Tensor | None:
        """Latents [C, H, W] of the picture to start from, on the host."""
        if settings.start is None:
            return None
        if self.weights.encoder is None:
            raise RequestError("image_url: this server has no encoder for pictures; set model.encoder in its recipe")
        z_CHW = self.weights.encoder.encode(settings.start[None])[0].float()
        if z_CHW.shape != shape_of(settings):
            raise RequestError(f"image_url: its latents are {tuple(z_CHW.shape)}, should be {shape_of(settings)}")
        if not torch.isfinite(z_CHW).all():
            raise RunFailed("encoder: the picture to start from gave values that are not finite; no picture was made")
        return z_CHW


def shape_of(settings: Settings) -> tuple[int, int, int]:
    """Of a picture's latents: channels, height, width."""
    height, width = (latent_side(side, settings.compression) for side in (settings.height, settings.width))
    return CHANNELS, height, width


def _warnings(reads: tuple[Read, ...], settings: Settings) -> tuple[str, ...]:
    """One line for each thing that the model could not take as it was asked."""
    found = [
        f"{name}: {read.tokens - read.lost} of {read.tokens} tokens were read"
        for name, read in zip(("prompt", "negative_prompt"), reads, strict=False)
        if read.lost
    ]
    sides = shape_of(settings)[1:]
    if min(sides) < SMALLEST:
        found.append(f"image_size: {min(sides)} latent cells on the short side, pictures blur below {SMALLEST}")
    if max(sides) > LARGEST:
        found.append(f"image_size: {max(sides)} latent cells on the long side, pictures repeat above {LARGEST}")
    if not LEAST_COMPRESSION <= settings.compression <= MOST_COMPRESSION:
        found.append(
            f"compression: {settings.compression:g} is outside of {LEAST_COMPRESSION} to {MOST_COMPRESSION}, which the "
            "model knows"
        )
    return tuple(found)
