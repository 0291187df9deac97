"""The endpoint's own request and answer, with fal's field names, and the settings that a request becomes.

Foreign names (fal's `first_stage_steps`, `guidance_scale`, ...) end here: `resolve` turns a request and the recipe's
defaults into `Settings`, in this project's words.

Kind: pure.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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
from sote.serve.settings import MAX_SEED, QUALITY, OutputFormat, Settings, Stage
from sote.serve.sizes import MAX_SIDE, MIN_SIDE, PRESETS, SIDE_STEP, Preset, check_side, latent_side, nearest_side
from sote.serve.starts import start_of, variation_of

MAX_PROMPT = 20_000  # characters; far beyond the text encoder, it only bounds the work of reading it
MAX_VARIATIONS = 4
MAX_FIELDS = 500  # of one request, with those of other programs that are ignored
Quality = Annotated[int, Field(ge=0, le=100)]

AnySampler = Annotated[Sampler, BeforeValidator(sampler_named)]
AnyScheduler = Annotated[Scheduler, BeforeValidator(scheduler_named)]


class FewFields(BaseModel):
    """Refuses a body of more fields than there are before it looks at each of them: a million take long to name."""

    @model_validator(mode="before")
    @classmethod
    def _few(cls, body: Any) -> Any:
        if isinstance(body, dict) and len(body) > MAX_FIELDS:
            raise ValueError(f"{len(body)} fields; at most {MAX_FIELDS} are read")
        return body


class ImageSize(FewFields):
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
PROMPT = "newest, extremely aesthetic, best quality, 1girl, solo, cat ears"
EXAMPLES: list[Any] = [
    {"prompt": PROMPT, "seed": 7},
    {
        "prompt": "1girl, (cat ears:1.2), night sky",
        "negative_prompt": "worst quality, monochrome",
        "image_size": {"width": 1024, "height": 1536},
        "first_stage_steps": 30,
        "guidance_scale": 7,
        "second_stage_steps": 10,
        "sampler": "dpmpp_2m",
        "num_images": 2,
        "sync_mode": True,
    },
]
DECODE_EXAMPLE: dict[str, Any] = {
    "latents": "k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0Jywg...",
    "prompt": PROMPT,
    "second_stage_steps": 20,
}


class PictureFields(FewFields):
    """What any request for pictures may say about them, and about the stages that come after the latents."""

    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT)
    second_stage_steps: DecoderSteps | None = Field(default=None, description="Steps of the decoder (Stage B)")
    second_stage_guidance_scale: Guidance | None = Field(
        default=None, description="Guidance of the decoder; up to 1: none"
    )
    image_size: Size | None = Field(default=None, description="Width and height in pixels, or a preset's name")
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="Of the first picture; left out: a random one"
    )
    sync_mode: bool = Field(
        default=False, description="true: each `url` is a data URI; false: an address on this server, kept for a while"
    )
    use_default_tags: bool | None = Field(
        default=None, description="Put the server's usual tags before both prompts; the answer shows them whole"
    )
    weights: bool | None = Field(default=None, description="Whether (word:1.2) in a prompt is a weight")
    profile: Profile | None = Field(
        default=None, description="Grid, shift, mask, text and noise as another program has them"
    )
    decoder_sampler: AnySampler | None = Field(default=None, description="Of the decoder; `Euler a` and the like too")
    decoder_scheduler: AnyScheduler | None = Field(default=None, description="Step grid of the decoder")
    decoder_shift: Shift | None = Field(default=None, description="Of the decoder's noise levels")
    compression: Compression | None = Field(default=None, description="Pixels per latent cell")
    output_format: OutputFormat | None = Field(default=None, description="Of the picture's file")
    output_quality: Quality | None = Field(default=None, description="Of JPEG and WebP; left out: 95")
    embed_parameters: bool | None = Field(default=None, description="Write the parameters into the file")


class GenerateRequest(PictureFields):
    """A request for pictures, with the field names of fal-ai/stable-cascade/sote-diffusion and some more.

    Whatever is left out is the server's default, which its recipe sets.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": EXAMPLES})

    prompt: str = Field(max_length=MAX_PROMPT, description="Tags, separated by commas; (tag:1.2) weighs one")
    first_stage_steps: PriorSteps | None = Field(default=None, description="Steps of the prior (Stage C)")
    guidance_scale: Guidance | None = Field(default=None, description="Guidance of the prior; up to 1: none")
    num_images: Images | None = Field(default=None, description="Their seeds follow each other")
    enable_safety_checker: bool = Field(
        default=True, description="For fal's clients; whether a tagger looks at the pictures is the server's to say"
    )
    # not fal's
    sampler: AnySampler | None = Field(default=None, description="Of the prior; `DPM++ 2M` and the like too")
    scheduler: AnyScheduler | None = Field(default=None, description="Step grid of the prior")
    shift: Shift | None = Field(default=None, description="Of the prior's noise levels")
    guidance_rescale: Rescale | None = Field(default=None, description="Of the prior; 0.7 is Stability's own")
    size_policy: Literal["refuse", "round"] | None = Field(
        default=None, description="What to do with a side that is no multiple of 128"
    )
    image_url: str | None = Field(default=None, description="Data URI of a picture to start from (img2img)")
    strength: float | None = Field(
        default=None, gt=0, le=1, description="How much of `image_url` is painted anew; left out: 0.75"
    )
    variation_image_urls: list[str] = Field(
        default=[],
        max_length=MAX_VARIATIONS,
        fail_fast=True,
        description="Data URIs of pictures whose content is varied",
    )
    return_latents: bool = Field(default=False, description="Answer with the latents, for /v1/decode")


class DecodeRequest(PictureFields):
    """Latents that are there already, to be painted by the decoder. Settings of the prior have no place here.

    The prompts are the text that the decoder is told; take those that the latents were made with.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": [DECODE_EXAMPLE]})

    latents: str = Field(
        description="Base64 of an .npy file: float32 or float16, [16, h, w] or [pictures, 16, h, w], as "
        "`return_latents` gives them"
    )
    prompt: str = Field(default="", max_length=MAX_PROMPT, description="As for the latents")
    image_size: Size | None = Field(default=None, description="Left out: what belongs to latents of h x w cells")


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
        quality=_first(request.output_quality, QUALITY),
    )
    _hold_to(settings, limits)
    return _with_pictures(settings, request)


def for_latents(
    request: DecodeRequest, shape: tuple[int, int, int, int], *, default_compression: float
) -> GenerateRequest:
    """The request whose latents have `shape` [B, 16, h, w]. Raises RequestError where no size has such latents."""
    compression = _first(request.compression, default_compression)
    cells_high, cells_wide = shape[2:]
    if request.image_size is None:
        size = {"width": side_of(cells_wide, compression), "height": side_of(cells_high, compression)}
    else:
        size = request.image_size.model_dump()
        wanted = tuple(latent_side(size[name], compression) for name in ("height", "width"))
        if wanted != (cells_high, cells_wide):
            raise RequestError(
                f"latents: {size['width']}x{size['height']} pixels at compression {compression:g} are "
                f"[16, {wanted[0]}, {wanted[1]}], these are [16, {cells_high}, {cells_wide}]"
            )
    fields = request.model_dump(exclude={"latents"}, exclude_unset=True) | {
        "prompt": request.prompt,
        "image_size": size,
        "num_images": shape[0],
    }
    return GenerateRequest.model_validate(fields)


def side_of(cells: int, compression: float) -> int:
    """The side in pixels that has `cells` latent cells. Raises RequestError where there is none."""
    sides = {latent_side(side, compression): side for side in range(MIN_SIDE, MAX_SIDE + 1, SIDE_STEP)}
    if cells not in sides:
        raise RequestError(
            f"latents: no side of a picture has {cells} cells at compression {compression:g}; possible: "
            f"{', '.join(map(str, sides))}"
        )
    return sides[cells]


def renamed(error: RequestError, names: dict[str, str]) -> RequestError:
    """The same refusal, with the field by its name in another API."""
    field, colon, message = str(error).partition(": ")
    return type(error)(f"{names.get(field, field)}{colon}{message}")


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
