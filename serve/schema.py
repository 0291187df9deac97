"""The endpoint's own request and answer, with fal's field names, and the settings that a request becomes.

Foreign names (fal's `first_stage_steps`, `guidance_scale`, ...) end here: `resolve` turns a request and the recipe's
defaults into `Settings`, in this project's words.

Kind: pure.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sote.cluster.errors import RequestError
from sote.serve.names import sampler_named, scheduler_named
from sote.serve.profiles import PROFILES, Profile
from sote.serve.recipe import (
    Compression,
    DecoderSteps,
    DefaultsPart,
    Guidance,
    Images,
    LimitsPart,
    PriorSteps,
    Rescale,
    Shift,
)
from sote.serve.schedules import Sampler, Scheduler
from sote.serve.settings import MAX_SEED, OutputFormat, Settings, Stage
from sote.serve.sizes import PRESETS, Preset, check_side, nearest_side
from sote.serve.starts import start_of, variation_of

MAX_PROMPT = 20_000  # characters; far beyond the text encoder, it only bounds the work of reading it
MAX_VARIATIONS = 4

AnySampler = Annotated[Sampler, BeforeValidator(sampler_named)]
AnyScheduler = Annotated[Scheduler, BeforeValidator(scheduler_named)]


class ImageSize(BaseModel):
    """Size in pixels; each side a multiple of 128, 256 to 2560."""

    model_config = ConfigDict(extra="forbid", strict=True)
    width: int = Field(ge=1, le=100_000)
    height: int = Field(ge=1, le=100_000)


def _from_preset(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in PRESETS:
        raise ValueError(f"{value!r} is no preset; known: {', '.join(PRESETS)}; or give width and height")
    width, height = PRESETS[value]
    return {"width": width, "height": height}


Size = Annotated[ImageSize, BeforeValidator(_from_preset, json_schema_input_type=ImageSize | Preset)]
EXAMPLE = {"prompt": "newest, extremely aesthetic, best quality, 1girl, solo, cat ears", "seed": 7}


class GenerateRequest(BaseModel):
    """A request for pictures, with the field names of fal-ai/stable-cascade/sote-diffusion and some more.

    Whatever is left out is the server's default, which its recipe sets.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": [EXAMPLE]})

    prompt: str = Field(max_length=MAX_PROMPT, description="Tags, separated by commas; (tag:1.2) weighs one")
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT)
    first_stage_steps: PriorSteps | None = Field(default=None, description="Steps of the prior (Stage C)")
    second_stage_steps: DecoderSteps | None = Field(default=None, description="Steps of the decoder (Stage B)")
    guidance_scale: Guidance | None = Field(default=None, description="Guidance of the prior; up to 1: none")
    second_stage_guidance_scale: Guidance | None = Field(
        default=None, description="Guidance of the decoder; up to 1: none"
    )
    image_size: Size | None = Field(default=None, description="Width and height in pixels, or a preset's name")
    num_images: Images | None = None
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="Of the first picture; left out: a random one"
    )
    sync_mode: bool = Field(
        default=False, description="true: each `url` is a data URI; false: an address on this server, kept for a while"
    )
    enable_safety_checker: bool = Field(
        default=True, description="For fal's clients; whether a tagger looks at the pictures is the server's to say"
    )
    # not fal's
    use_default_tags: bool | None = Field(
        default=None, description="Put the server's usual tags before both prompts; the answer shows them whole"
    )
    weights: bool | None = Field(default=None, description="Whether (word:1.2) in a prompt is a weight")
    profile: Profile | None = Field(
        default=None, description="Grid, shift, mask, text and noise as another program has them"
    )
    sampler: AnySampler | None = Field(default=None, description="Of the prior")
    scheduler: AnyScheduler | None = Field(default=None, description="Step grid of the prior")
    shift: Shift | None = Field(default=None, description="Of the prior's noise levels")
    guidance_rescale: Rescale | None = Field(default=None, description="Of the prior; 0.7 is Stability's own")
    decoder_sampler: AnySampler | None = None
    decoder_scheduler: AnyScheduler | None = None
    decoder_shift: Shift | None = None
    compression: Compression | None = Field(default=None, description="Pixels per latent cell")
    size_policy: Literal["refuse", "round"] | None = Field(
        default=None, description="What to do with a side that is no multiple of 128"
    )
    image_url: str | None = Field(default=None, description="Data URI of a picture to start from (img2img)")
    strength: float | None = Field(
        default=None, gt=0, le=1, description="How much of `image_url` is painted anew; left out: 0.75"
    )
    variation_image_urls: list[str] = Field(
        default=[], max_length=MAX_VARIATIONS, description="Data URIs of pictures whose content is varied"
    )
    output_format: OutputFormat | None = None
    embed_parameters: bool | None = Field(default=None, description="Write the parameters into the file")
    return_latents: bool = Field(default=False, description="Answer with the latents, for /v1/decode")


class ImageOut(BaseModel):
    """One picture of the answer. `url` is a data URI with the whole file, or an address that is kept for a while."""

    url: str
    content_type: str
    width: int
    height: int
    seed: int
    latents: str | None = Field(default=None, description="Base64 of an .npy file: float32 [16, h, w]")


class GenerateResponse(BaseModel):
    """fal's answer and more. `timings` are seconds. `prompt` and `negative_prompt` are whole, as they were read.

    `has_nsfw_concepts` has one truth for each picture where this server's tagger looked, else it is left out.
    """

    images: list[ImageOut]
    timings: dict[str, float]
    seed: int
    prompt: str
    negative_prompt: str
    prompt_tokens: int
    has_nsfw_concepts: list[bool] | None = None
    warnings: list[str] = Field(default=[], description="What the model could not take as it was asked")


def resolve(request: GenerateRequest, defaults: DefaultsPart, *, limits: LimitsPart, random_seed: int) -> Settings:
    """The settings of `request`: its own fields, else `defaults`, and `random_seed` where it names no seed.

    Reads pictures that the request carries, which takes up to a second. Raises RequestError (`field: what is wrong`)
    for what cannot be made, goes beyond `limits`, or contradicts the profile.
    """
    width, height = _size(request, defaults)
    with_tags = _first(request.use_default_tags, defaults.use_default_tags)
    negative = _first(request.negative_prompt, defaults.negative_prompt)
    compression = _first(request.compression, defaults.compression)
    profile = _first(request.profile, defaults.profile)
    prior, decoder = _stages(request, defaults, profile=profile)
    settings = Settings(
        prompt=_joined(defaults.positive_tags, request.prompt) if with_tags else request.prompt,
        negative_prompt=_joined(defaults.negative_tags, negative) if with_tags else negative,
        width=width,
        height=height,
        compression=compression,
        images=_first(request.num_images, defaults.images),
        seed=_first(request.seed, random_seed),
        output_format=_first(request.output_format, defaults.output_format),
        prior=prior,
        decoder=decoder,
        profile=profile,
        is_weighted=_first(request.weights, defaults.weights),
        start=None,
        strength=1.0 if request.image_url is None else _first(request.strength, 0.75),
        has_parameters=_first(request.embed_parameters, defaults.embed_parameters),
    )
    _hold_to(settings, limits)
    return _with_pictures(settings, request)


def _size(request: GenerateRequest, defaults: DefaultsPart) -> tuple[int, int]:
    if request.image_size is None:
        return defaults.width, defaults.height
    sides = []
    for name in ("width", "height"):
        side = getattr(request.image_size, name)
        if _first(request.size_policy, defaults.size_policy) == "round":
            side = nearest_side(side)
        try:
            sides.append(check_side(side))
        except ValueError as error:
            raise RequestError(f"image_size.{name}: {error}") from None
    return sides[0], sides[1]


def _stages(request: GenerateRequest, defaults: DefaultsPart, *, profile: Profile | None) -> tuple[Stage, Stage]:
    prior = Stage(
        steps=_first(request.first_stage_steps, defaults.prior_steps),
        guidance=_first(request.guidance_scale, defaults.prior_guidance),
        sampler=_first(request.sampler, defaults.prior_sampler),
        scheduler=_first(request.scheduler, defaults.prior_scheduler),
        shift=_first(request.shift, defaults.prior_shift),
        rescale=_first(request.guidance_rescale, defaults.prior_guidance_rescale),
    )
    decoder = Stage(
        steps=_first(request.second_stage_steps, defaults.decoder_steps),
        guidance=_first(request.second_stage_guidance_scale, defaults.decoder_guidance),
        sampler=_first(request.decoder_sampler, defaults.decoder_sampler),
        scheduler=_first(request.decoder_scheduler, defaults.decoder_scheduler),
        shift=_first(request.decoder_shift, defaults.decoder_shift),
    )
    if profile is None:
        return prior, decoder
    return _fixed(request, prior, decoder, profile=profile)


def _fixed(request: GenerateRequest, prior: Stage, decoder: Stage, *, profile: Profile) -> tuple[Stage, Stage]:
    """Both stages with what `profile` fixes. Raises RequestError where the request itself says otherwise."""
    fixed = PROFILES[profile]
    wanted: dict[str, Any] = {
        "scheduler": fixed.prior_scheduler,
        "shift": fixed.prior_shift,
        "decoder_scheduler": fixed.decoder_scheduler,
        "decoder_shift": fixed.decoder_shift,
    }
    for name, value in wanted.items():
        asked = getattr(request, name)
        if asked is not None and asked != value:
            raise RequestError(
                f"{name}: {asked} was asked for, and profile {profile!r} fixes it at {value}; leave one out"
            )
    samplers = {"sampler": prior.sampler, "decoder_sampler": decoder.sampler}
    for name, sampler in samplers.items():
        if fixed.samplers and sampler not in fixed.samplers:
            if getattr(request, name) is not None:
                raise RequestError(f"{name}: profile {profile!r} has only {', '.join(fixed.samplers)}")
            samplers[name] = fixed.samplers[0]
    return (
        Stage(
            prior.steps, prior.guidance, samplers["sampler"], fixed.prior_scheduler, fixed.prior_shift, prior.rescale
        ),
        Stage(
            decoder.steps,
            decoder.guidance,
            samplers["decoder_sampler"],
            fixed.decoder_scheduler,
            fixed.decoder_shift,
            decoder.rescale,
        ),
    )


def _with_pictures(settings: Settings, request: GenerateRequest) -> Settings:
    """With the pictures that the request carries, at the sizes that the models read."""
    if request.image_url is not None:
        start = start_of(
            request.image_url, width=settings.width, height=settings.height, compression=settings.compression
        )
        settings = replace(settings, start=start)
    elif request.strength is not None:
        raise RequestError("strength: has no meaning without image_url")
    if request.variation_image_urls:
        found = tuple(
            variation_of(url, field=f"variation_image_urls.{place}")
            for place, url in enumerate(request.variation_image_urls)
        )
        settings = replace(settings, variations=found)
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


def _joined(tags: str, prompt: str) -> str:
    """`tags` before `prompt`, with one comma between them."""
    before = tags.strip().rstrip(",")
    return ", ".join(part for part in (before, prompt) if part)


def _first(asked: Any, default: Any) -> Any:
    return default if asked is None else asked
