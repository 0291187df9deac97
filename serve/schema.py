"""What crosses the endpoint's border: fal's request and response, and the settings they become inside.

Foreign names (fal's `first_stage_steps`, `guidance_scale`, ...) end here: `resolve` turns a request and the recipe's
defaults into `Settings`, in this project's words.

Kind: pure.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sote.cluster.errors import RequestError
from sote.serve.recipe import (
    Compression,
    DecoderSteps,
    DefaultsPart,
    Guidance,
    Images,
    LimitsPart,
    OutputFormat,
    PriorSteps,
    Shift,
    Side,
)
from sote.serve.schedules import Sampler, Scheduler
from sote.serve.sizes import PRESETS, Preset

MAX_SEED = 2**32 - 1  # torch's CPU generator takes no more bits
MAX_PROMPT = 20_000  # characters; far beyond the text encoder, it only bounds the work of reading it
CONTENT_TYPES: dict[OutputFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


class ImageSize(BaseModel):
    """Size in pixels; each side a multiple of 128, 256 to 2560."""

    model_config = ConfigDict(extra="forbid")
    width: Side
    height: Side


def _from_preset(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in PRESETS:
        raise ValueError(f"{value!r} is no preset; known: {', '.join(PRESETS)}; or give width and height")
    width, height = PRESETS[value]
    return {"width": width, "height": height}


class GenerateRequest(BaseModel):
    """A request for pictures, with the field names of fal-ai/stable-cascade/sote-diffusion and some more.

    Whatever is left out is the server's default, which its recipe sets.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(max_length=MAX_PROMPT, description="Tags, separated by commas")
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT)
    first_stage_steps: PriorSteps | None = Field(default=None, description="Steps of the prior (Stage C)")
    second_stage_steps: DecoderSteps | None = Field(default=None, description="Steps of the decoder (Stage B)")
    guidance_scale: Guidance | None = Field(default=None, description="Guidance of the prior; up to 1: none")
    second_stage_guidance_scale: Guidance | None = Field(
        default=None, description="Guidance of the decoder; up to 1: none"
    )
    image_size: (
        Annotated[ImageSize, BeforeValidator(_from_preset, json_schema_input_type=ImageSize | Preset)] | None
    ) = Field(default=None, description="Width and height in pixels, or a preset's name")
    num_images: Images | None = None
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="Of the first picture; left out: a random one"
    )
    sync_mode: bool = Field(default=True, description="For fal's clients: every `url` is a data URI, either way")
    enable_safety_checker: bool = Field(default=False, description="For fal's clients: there is no checker here")
    # not fal's
    sampler: Sampler | None = Field(default=None, description="Of the prior")
    scheduler: Scheduler | None = Field(default=None, description="Step grid of the prior")
    shift: Shift | None = Field(default=None, description="Of the prior's noise levels")
    decoder_sampler: Sampler | None = None
    decoder_scheduler: Scheduler | None = None
    decoder_shift: Shift | None = None
    compression: Compression | None = Field(default=None, description="Pixels per latent cell")
    output_format: OutputFormat | None = None


class ImageOut(BaseModel):
    """One picture of the answer. `url` is a data URI with the whole file."""

    url: str
    content_type: str
    width: int
    height: int


class GenerateResponse(BaseModel):
    """fal's answer. `timings` are seconds; `has_nsfw_concepts` is left out, because nothing looked for them."""

    images: list[ImageOut]
    timings: dict[str, float]
    seed: int
    prompt: str
    warnings: list[str] = Field(default_factory=list, description="What the model could not take as it was asked")


@dataclass(frozen=True)
class Stage:
    """How one of the two diffusion stages samples."""

    steps: int
    guidance: float
    sampler: Sampler
    scheduler: Scheduler
    shift: float

    @property
    def is_guided(self) -> bool:
        """Whether the unconditional pass is run: guidance 1 is the conditional pass alone, less has no use."""
        return self.guidance > 1


@dataclass(frozen=True)
class Settings:
    """Everything that decides the pictures of one request, complete."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    compression: float
    images: int
    seed: int
    output_format: OutputFormat
    prior: Stage
    decoder: Stage

    def image_seed(self, index: int) -> int:
        """The seed with which picture `index` of the request can be asked for alone."""
        return (self.seed + index) % (MAX_SEED + 1)

    def decoder_seed(self, index: int) -> int:
        """Seed of the decoder's own stream of noise, from the picture's by hash: the stages never share noise."""
        digest = hashlib.sha256(f"decoder:{self.image_seed(index)}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


@dataclass(frozen=True)
class Latents:
    """What the prior hands to the decoder: latents [B, 16, h, w] and pooled text [1 or 2, 1, D], float32.

    The second row of the pooled text is that of the negative prompt, where a stage is guided.
    """

    latents: np.ndarray[Any, np.dtype[np.float32]]
    pooled: np.ndarray[Any, np.dtype[np.float32]]
    seconds: float
    warnings: tuple[str, ...]


def resolve(request: GenerateRequest, defaults: DefaultsPart, *, limits: LimitsPart, random_seed: int) -> Settings:
    """The settings of `request`: its own fields, else `defaults`, and `random_seed` where it names no seed.

    Raises RequestError where the request goes beyond `limits`.
    """
    size = request.image_size or ImageSize(width=defaults.width, height=defaults.height)
    settings = Settings(
        prompt=request.prompt,
        negative_prompt=_first(request.negative_prompt, defaults.negative_prompt),
        width=size.width,
        height=size.height,
        compression=_first(request.compression, defaults.compression),
        images=_first(request.num_images, defaults.images),
        seed=_first(request.seed, random_seed),
        output_format=_first(request.output_format, defaults.output_format),
        prior=Stage(
            steps=_first(request.first_stage_steps, defaults.prior_steps),
            guidance=_first(request.guidance_scale, defaults.prior_guidance),
            sampler=_first(request.sampler, defaults.prior_sampler),
            scheduler=_first(request.scheduler, defaults.prior_scheduler),
            shift=_first(request.shift, defaults.prior_shift),
        ),
        decoder=Stage(
            steps=_first(request.second_stage_steps, defaults.decoder_steps),
            guidance=_first(request.second_stage_guidance_scale, defaults.decoder_guidance),
            sampler=_first(request.decoder_sampler, defaults.decoder_sampler),
            scheduler=_first(request.decoder_scheduler, defaults.decoder_scheduler),
            shift=_first(request.decoder_shift, defaults.decoder_shift),
        ),
    )
    _hold_to(settings, limits)
    return settings


def _hold_to(settings: Settings, limits: LimitsPart) -> None:
    pixels = settings.width * settings.height
    if pixels > limits.max_pixels:
        raise RequestError(
            f"image_size: {settings.width}x{settings.height} is {pixels} pixels, this server makes at most "
            f"{limits.max_pixels}; ask for a smaller size"
        )
    if settings.images > limits.max_images:
        raise RequestError(f"num_images: {settings.images} asked for, this server makes at most {limits.max_images}")


def _first(asked: Any, default: Any) -> Any:
    return default if asked is None else asked
