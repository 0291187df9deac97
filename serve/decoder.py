"""The decoder (Stage B) and vqgan (Stage A) as a model that answers: latents -> encoded pictures.

As the prior (`prior.py`): a request is made into rows, which step alone or together with others. What Stage B makes of
the latents is computed once, when a request comes. Files are encoded apart from the device's work (`painted`), so that
a server can do it beside the steps of others.

Suffixes: B rows, F rows of the network's batch, D widths, C channels, H and W cells or pixels.
Source: conditions and guidance as diffusers 0.42.1 StableCascadeDecoderPipeline and ComfyUI a125cd8 have them.

Kind: actor.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from sote.cluster.errors import RunFailed
from sote.serve import batching, load, noise, parameters, preview, sampling
from sote.serve.batch import put
from sote.serve.pictures import Painted, encode
from sote.serve.recipe import ModelPart, SafetyPart
from sote.serve.room import with_room
from sote.serve.rows import Request, Row, Seen
from sote.serve.settings import Latents, Pixels, Progress, Settings, StageName, Work
from sote.serve.sizes import vq_side
from sote.train.conditions import Conditions

if TYPE_CHECKING:
    from sote.serve.safety import Looker

CHANNELS = 4  # of VQ latents


@dataclass(frozen=True, eq=False)
class Given:
    """What a row of Stage B is conditioned on: pooled text, and what the latents add to it, [1, h, w, C]."""

    conditions: Conditions
    guide_BHWC: Tensor

    @property
    def tokens(self) -> int:
        return self.conditions.tokens


@dataclass(eq=False, kw_only=True)
class DecoderRequest(Request):
    """A request to the decoder."""

    latents: Latents
    settings: Settings


@dataclass(frozen=True, eq=False)
class Decoded:
    """Pictures without their files: RGB [H, W, 3] each. `arrived` is when the request did, by time.monotonic."""

    pixels: tuple[Pixels, ...]
    latents: Latents
    settings: Settings
    arrived: float
    sampled: Work

    def work(self) -> Work:
        """What the request took until now."""
        return replace(self.sampled, seconds=time.monotonic() - self.arrived)


class DecoderModel:
    """Stage B and Stage A, loaded once; or `weights` that are on the device already. It needs no text encoder: the
    pooled vector comes with the latents. `safety` may name a tagger, which looks at what was painted."""

    name: StageName = "decoder"

    def __init__(
        self,
        part: ModelPart,
        *,
        device: torch.device | None = None,
        weights: load.DecoderWeights | None = None,
        safety: SafetyPart | None = None,
    ) -> None:
        self.device = device or load.device_here()
        self.weights = weights or load.load_decoder(part, device=self.device)
        self.model = part.name or Path(part.prior).name.removesuffix(".safetensors")
        self.version = metadata.version("sote")
        self.looker = _looker(safety)
        self._looking = threading.Lock()
        if part.compile:
            self.weights.unet.compile_blocks()

    def paint(
        self,
        latents: Latents,
        settings: Settings,
        *,
        each_step: Callable[[int], None] | None = None,
        watch: Callable[[Progress], None] | None = None,
    ) -> tuple[list[Painted], Work]:
        """The pictures of a request alone, and what they took.

        `each_step(i)` is called before step i; what it raises ends the sampling. Raises RunFailed, naming stage and
        step, where values are not finite: never a black picture. Raises NoMemory.
        """
        request = self.request(latents, settings, seen=watch and preview.telling(self.name, watch))
        batching.run(self, request, each_step=each_step)
        decoded = self.finish(request)
        request.forget()
        return [self.painted(decoded, index) for index in range(settings.images)], decoded.work()

    def request(
        self, latents: Latents, settings: Settings, *, seen: Callable[[Seen], None] | None = None
    ) -> DecoderRequest:
        """The rows of a request, ready to step. Raises NoMemory."""
        arrived = time.monotonic()
        rows = with_room(lambda: self._rows(latents, settings), stage=self.name, device=self.device)
        return DecoderRequest(rows=rows, arrived=arrived, seen=seen, latents=latents, settings=settings)

    def finish(self, request: DecoderRequest) -> Decoded:
        """The pictures of a request whose rows have ended.

        Raises RunFailed where one has values that are not finite, NoMemory.
        """
        pixels = with_room(
            lambda: tuple(self._decoded(row.x) for row in request.rows), stage=self.name, device=self.device
        )
        return Decoded(pixels, request.latents, request.settings, request.arrived, request.work(self.name))

    def painted(self, decoded: Decoded, index: int) -> Painted:
        """One picture as a file with its parameters. May be called from any thread."""
        settings = decoded.settings
        text = parameters.text(settings, index=index, model=self.model, version=self.version)
        inside = text if settings.has_parameters else None
        return Painted(
            data=encode(decoded.pixels[index], settings.output_format, parameters=inside, quality=settings.quality),
            output_format=settings.output_format,
            width=settings.width,
            height=settings.height,
            seed=settings.image_seed(index),
            parameters=text,
            latents=decoded.latents.latents[index],
        )

    def flagged(self, decoded: Decoded, index: int) -> tuple[str, ...] | None:
        """The tags for which a picture would be withheld; None where no tagger looks. May be called from any thread."""
        if self.looker is None:
            return None
        with self._looking:
            return self.looker.flagged(decoded.pixels[index])

    def joined(self, given: Sequence[Given]) -> Given:
        """The conditions of several rows as those of one batch."""
        if len(given) == 1:
            return given[0]
        guides_BHWC = torch.cat([each.guide_BHWC for each in given])
        return Given(Conditions.joined([each.conditions for each in given]), guides_BHWC)

    def predict(self, x_FCHW: Tensor, *, r_F: Tensor, given: Given) -> Tensor:
        """The noise that Stage B finds."""
        unet = self.weights.unet
        return unet.denoise(x_FCHW, time_B=r_F, conditions=given.conditions, guide_BHWC=given.guide_BHWC).float()

    def look(self, x0_CHW: Tensor) -> Tensor:
        """VQ latents at most as large as a preview."""
        times = -(-max(x0_CHW.shape) // preview.SIDE)
        return functional.avg_pool2d(x0_CHW, times) if times > 1 else x0_CHW

    @torch.inference_mode()
    def _rows(self, latents: Latents, settings: Settings) -> list[Row]:
        shape = CHANNELS, vq_side(settings.height), vq_side(settings.width)
        latents_BCHW = put(torch.from_numpy(latents.latents), self.device)
        pooled_B1D = put(torch.from_numpy(latents.pooled), self.device)
        unet, plan = self.weights.unet, sampling.Plan.of("decoder", settings.decoder)
        text = unet.conditions(pooled_B1D[:1])
        unconditional = None
        if settings.decoder.is_guided:  # without latents: zeros in their place
            nothing_BHWC = unet.guide(torch.zeros_like(latents_BCHW[:1]), height=shape[1], width=shape[2])
            unconditional = Given(unet.conditions(pooled_B1D[1:2]), nothing_BHWC)
        rows = []
        for index in range(settings.images):
            stream = noise.decoder_stream(settings, index, shape, prior_shape=_shape(latents_BCHW[index]))
            guide_BHWC = unet.guide(latents_BCHW[index : index + 1], height=shape[1], width=shape[2])
            x_CHW, pixels = put(stream.draw(), self.device), settings.width * settings.height
            rows.append(Row(x_CHW, plan, stream, Given(text, guide_BHWC), unconditional, pixels))
        return rows

    @torch.inference_mode()
    def _decoded(self, vq_CHW: Tensor) -> Pixels:
        """Stage A. One picture at a time: its memory grows with the pixels."""
        decoded_CHW = self.weights.vqgan.decode(self.weights.vqgan_scale * vq_CHW[None])[0]
        is_finite = torch.isfinite(decoded_CHW).all()
        pixels_HWC = (decoded_CHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
        if not is_finite:
            raise RunFailed("vqgan: the decoded picture has values that are not finite; no picture was made")
        pixels: Pixels = pixels_HWC.numpy()
        return pixels


def _looker(safety: SafetyPart | None) -> "Looker | None":
    if safety is None or safety.tagger is None:
        return None
    from sote.serve.safety import Looker

    return Looker.of(safety)


def _shape(latents_CHW: Tensor) -> tuple[int, int, int]:
    channels, height, width = latents_CHW.shape
    return channels, height, width
