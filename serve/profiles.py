"""Profiles: what another program does about grid, shift, mask, layout of the text and noise, fixed together.

The same prompt and seed give another picture in another program, because these five differ. A profile takes them all
from one program; samplers, steps and guidance stay free. Without a profile the settings' own grid and shift count, the
weights' metadata says mask and layout, and each picture has streams of noise of its own.

Source: ComfyUI a125cd8 (facts only), diffusers 0.42.1.

Kind: pure.
"""

from dataclasses import dataclass
from typing import Final, Literal

from sote.serve.schedules import Sampler, Scheduler

Profile = Literal["comfy", "diffusers"]
# Tokens of a text of N windows: joined is start + 75 N + end (kohya's, as trained), stacked is 77 N (ComfyUI's),
# cut is one window of 77 and no more (diffusers')
Layout = Literal["joined", "stacked", "cut"]
# own: one generator for each picture, seeded seed + index, and another for its decoder. batch: one generator for all
# pictures of the request and each stage anew (ComfyUI). chain: one generator for the request, and the decoder goes on
# where the prior stopped (diffusers). With the last two a picture of several cannot be asked for alone
NoiseSource = Literal["own", "batch", "chain"]


@dataclass(frozen=True)
class Fixed:
    """What a profile fixes. `samplers` empty: all of them."""

    prior_scheduler: Scheduler
    prior_shift: float
    decoder_scheduler: Scheduler
    decoder_shift: float
    mask_padding: bool
    layout: Layout
    noise: NoiseSource
    samplers: tuple[Sampler, ...] = ()


PROFILES: Final[dict[Profile, Fixed]] = {
    "comfy": Fixed(
        prior_scheduler="sgm_uniform",
        prior_shift=2.0,
        decoder_scheduler="karras",
        decoder_shift=1.0,
        mask_padding=True,
        layout="stacked",
        noise="batch",
    ),
    # The one sampler with which diffusers' Stable Cascade pipelines are right: they never scale the model's input. In
    # the first step they tell the network t = 1, for which it was not trained; we tell r of sigma, 0.9936
    "diffusers": Fixed(
        prior_scheduler="wuerstchen",
        prior_shift=1.0,
        decoder_scheduler="wuerstchen",
        decoder_shift=1.0,
        mask_padding=True,
        layout="cut",
        noise="chain",
        samplers=("ddpm",),
    ),
}
