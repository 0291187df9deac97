"""Streams of standard normal noise, one for each stage of each picture, float32 on the CPU: the same on every device.

A stream's first draw is where sampling starts; each draw after it is for one step that adds noise. A stream knows its
request and nothing of what else is painted beside it. It can be pickled as it stands.

Suffixes: N pictures of the request, C channels, H and W cells.
Source: ComfyUI a125cd8 comfy/sample.py prepare_noise and comfy/k_diffusion/sampling.py default_noise_sampler (facts
only); diffusers 0.42.1 randn_tensor in both Stable Cascade pipelines and in DDPMWuerstchenScheduler.

Kind: actor.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sote.serve.profiles import PROFILES, NoiseSource
from sote.serve.settings import Settings

Shape = tuple[int, int, int]  # channels, height, width of one picture's noise


class Stream(Protocol):
    """Noise for one stage of one picture."""

    def draw(self) -> Tensor:
        """The next noise, [C, H, W]."""
        ...


def prior_stream(settings: Settings, index: int, shape: Shape) -> Stream:
    """Noise of the prior for picture `index` of a request."""
    match _source(settings):
        case "own":
            return Own(settings.image_seed(index), shape)
        case "batch":
            return Anew(settings.seed, index, (settings.images, *shape))
        case "chain":
            return Chain(settings.seed, index, (settings.images, *shape))


def decoder_stream(settings: Settings, index: int, shape: Shape, *, prior_shape: Shape) -> Stream:
    """Noise of the decoder for picture `index`; `prior_shape` is that of the prior's noise, which may come before."""
    match _source(settings):
        case "own":
            return Own(settings.decoder_seed(index), shape)
        case "batch":
            return Anew(settings.seed, index, (settings.images, *shape))
        case "chain":
            # DDPMWuerstchenScheduler.step draws in the last step too, and multiplies it with 0
            stream = Chain(settings.seed, index, (settings.images, *shape))
            stream.skip((settings.images, *prior_shape), count=1 + settings.prior.steps)
            return stream


def _source(settings: Settings) -> NoiseSource:
    return "own" if settings.profile is None else PROFILES[settings.profile].noise


@dataclass(eq=False)
class Own:
    """A generator for this picture alone: the same alone and among others of its request."""

    seed: int
    shape: Shape
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = _seeded(self.seed)

    def draw(self) -> Tensor:
        """The next noise, [C, H, W]."""
        return torch.randn(self.shape, generator=self.generator)


@dataclass(eq=False)
class Chain:
    """diffusers': one generator for the request, which draws for all its pictures at once (`whole` is N, C, H, W)."""

    seed: int
    index: int
    whole: tuple[int, int, int, int]
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = _seeded(self.seed)

    def draw(self) -> Tensor:
        """The next noise, [C, H, W]."""
        return torch.randn(self.whole, generator=self.generator)[self.index].clone()

    def skip(self, whole: tuple[int, int, int, int], *, count: int) -> None:
        """Pass over `count` draws of a stage before."""
        for _ in range(count):
            torch.randn(whole, generator=self.generator)


@dataclass(eq=False)
class Anew(Chain):
    """ComfyUI's: as Chain, but the steps' noise has a second generator of the same seed.

    So the first step's noise is that of the start again, where ComfyUI samples on a CPU.
    """

    has_started: bool = field(default=False, init=False)

    def draw(self) -> Tensor:
        """The next noise, [C, H, W]."""
        noise_CHW = super().draw()
        if not self.has_started:
            self.has_started = True
            self.generator = _seeded(self.seed)
        return noise_CHW


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)
