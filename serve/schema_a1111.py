"""AUTOMATIC1111's requests and answers, on top of the native request: a body may have any native field beside.

Fields that have no meaning here are ignored, as that program ignores those it does not know; the answer's `info` lists
in `comments` what was asked for and did not happen. What would give another picture without a word (a mask) is refused.

Source: AUTOMATIC1111 modules/api/models.py, modules/processing.py, modules/shared_state.py (facts only).

Kind: pure.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from sote.cluster.errors import RequestError
from sote.serve.names import both_named, scheduler_named
from sote.serve.recipe import DefaultsPart, Guidance, Images, PriorSteps
from sote.serve.schedules import Scheduler
from sote.serve.schema import MAX_PROMPT, GenerateRequest
from sote.serve.settings import MAX_SEED, OutputFormat

MAX_IMAGES = 10
Pixels = Annotated[int, Field(ge=1, le=100_000)]
SeedOrRandom = Annotated[int, Field(ge=-1, le=MAX_SEED)] | None
PICTURES: Final = {"init_images", "mask", "image_url", "variation_image_urls"}
# Native name -> AUTOMATIC1111's, where a refusal names the field
NAMES: Final = {
    "image_size": "width, height",
    "image_size.width": "width",
    "image_size.height": "height",
    "num_images": "batch_size x n_iter",
    "first_stage_steps": "steps",
    "guidance_scale": "cfg_scale",
    "sampler": "sampler_name",
    "image_url": "init_images",
    "strength": "denoising_strength",
}
FORMATS: Final[dict[str, OutputFormat]] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
EXAMPLE: dict[str, Any] = {
    "prompt": "1girl, solo, cat ears",
    "negative_prompt": "worst quality",
    "steps": 30,
    "cfg_scale": 7,
    "width": 1024,
    "height": 1536,
    "sampler_name": "DPM++ 2M",
    "scheduler": "SGM Uniform",
    "seed": -1,
}
IMAGE_EXAMPLE: dict[str, Any] = {"init_images": ["iVBORw0KGgo..."], "denoising_strength": 0.6}
# Asked for in a body and not done, where it is more than a preference: name -> what is said about it
NOT_DONE: Final = {
    "enable_hr": "there is no second pass at a larger size; ask for that size",
    "restore_faces": "faces are not restored",
    "tiling": "pictures do not tile",
    "save_images": "nothing is saved on the server",
    "styles": "this server has no styles",
    "script_name": "scripts are not run",
    "alwayson_scripts": "scripts are not run",
    "subseed_strength": "seeds are not mixed",
    "refiner_checkpoint": "there is no refiner",
}


def _sampler(name: str) -> str:
    """`name`, if it is known. Raises ValueError that lists the known."""
    if name:
        both_named(name)
    return name


SamplerName = Annotated[str, Field(max_length=100), AfterValidator(_sampler)]


def _scheduler(name: object) -> object:
    """A scheduler by its label; `Automatic` is the server's own."""
    return None if name in (None, "", "Automatic", "automatic") else scheduler_named(name)


def _seed(seed: object) -> object:
    """-1 is a random one."""
    return None if type(seed) is int and seed == -1 else seed


class Overrides(BaseModel):
    """The settings of `override_settings` and of `/options` that have a meaning here; others are ignored."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"samples_format": "png"}]})

    sd_model_checkpoint: str | None = Field(default=None, max_length=1000, description="The one that is here")
    samples_format: Literal["png", "jpg", "jpeg", "webp"] | None = Field(default=None, description="Of the files")


class TextToImage(GenerateRequest):
    """A request for pictures as AUTOMATIC1111's clients send it. Left out or null is the server's own default, also
    for the size: this model was not made for 512x512. Unknown fields are ignored."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, json_schema_extra={"examples": [EXAMPLE]})

    prompt: str = Field(default="", max_length=MAX_PROMPT, description="Tags, separated by commas")
    seed: Annotated[int | None, BeforeValidator(_seed, json_schema_input_type=SeedOrRandom)] = Field(
        default=None, ge=0, le=MAX_SEED, description="Of the first picture; -1 or left out: a random one"
    )
    steps: PriorSteps | None = Field(default=None, description="Of the prior; second_stage_steps are the decoder's")
    cfg_scale: Guidance | None = Field(default=None, description="Guidance of the prior")
    width: Pixels | None = Field(default=None, description="A multiple of 128")
    height: Pixels | None = Field(default=None, description="A multiple of 128")
    batch_size: Images | None = Field(default=None, description="Times n_iter: how many pictures; left out: 1")
    n_iter: Images | None = Field(default=None, description="Times batch_size: how many pictures; left out: 1")
    sampler_name: SamplerName | None = Field(default=None, description="`DPM++ 2M`, or `DPM++ 2M Karras`")
    sampler_index: SamplerName | None = Field(default=None, description="An older name of sampler_name")
    scheduler: Annotated[Scheduler | None, BeforeValidator(_scheduler, json_schema_input_type=str | None)] = Field(
        default=None, description="Step grid by its label; `Automatic` or left out: the server's"
    )
    send_images: bool | None = Field(default=None, description="false: answer without the pictures")
    override_settings: Overrides | None = Field(default=None, description="sd_model_checkpoint and samples_format")

    def native(self, defaults: DefaultsPart, *, samples_format: str | None = None) -> GenerateRequest:
        """The same as a native request; `samples_format` holds where this one names none. Raises RequestError."""
        own = self.model_dump(include=set(GenerateRequest.model_fields), exclude_unset=True, exclude_none=True)
        own["prompt"] = self.prompt
        own |= {
            name: value
            for name, value in (("first_stage_steps", self.steps), ("guidance_scale", self.cfg_scale))
            if value is not None
        }
        if self.width is not None or self.height is not None:
            own["image_size"] = {"width": self.width or defaults.width, "height": self.height or defaults.height}
        own["num_images"] = self._pictures()
        if name := self.sampler_name or self.sampler_index:
            own["sampler"], scheduler = both_named(name)
            if self.scheduler is None and scheduler is not None:
                own["scheduler"] = scheduler
        chosen = self.override_settings.samples_format if self.override_settings else None
        if self.output_format is None and (chosen or samples_format):
            own["output_format"] = FORMATS[chosen or samples_format or ""]
        return GenerateRequest.model_validate(own)

    def not_done(self) -> list[str]:
        """What was asked for and does not happen here."""
        extra = self.model_extra or {}
        return [f"{name}: {words}" for name, words in NOT_DONE.items() if extra.get(name)]

    def echo(self) -> dict[str, Any]:
        """The request's fields as an answer has them, without pictures and without what is unknown here."""
        return self.model_dump(include=set(type(self).model_fields) - PICTURES)

    def _pictures(self) -> int:
        if self.batch_size is None and self.n_iter is None:
            return self.num_images or 1
        pictures = (self.batch_size or 1) * (self.n_iter or 1)
        if pictures > MAX_IMAGES:
            raise RequestError(f"batch_size x n_iter: {pictures} asked for; at most {MAX_IMAGES} in one request")
        return pictures


class ImageToImage(TextToImage):
    """As txt2img, from a picture: it is cropped to the shape asked for."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE | IMAGE_EXAMPLE]})

    init_images: list[str] = Field(
        min_length=1,
        max_length=1,
        fail_fast=True,
        description="One picture: base64 of a PNG, JPEG or WebP file, or its data URI",
    )
    denoising_strength: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="How much is painted anew; left out: 0.75"
    )
    mask: str | None = Field(default=None, description="Refused: this server paints whole pictures")

    def native(self, defaults: DefaultsPart, *, samples_format: str | None = None) -> GenerateRequest:
        """The same as a native request. Raises RequestError."""
        if self.mask:
            raise RequestError("mask: this server paints whole pictures; leave it out")
        own = super().native(defaults, samples_format=samples_format)
        strength = self.strength if self.denoising_strength is None else self.denoising_strength
        return own.model_copy(update={"image_url": self.init_images[0], "strength": strength})


class PaintAnswer(BaseModel):
    """`images` are base64 of whole files. `info` is JSON in a string: seeds, infotexts, comments and the rest."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class State(BaseModel):
    """Where the work stands. `sampling_step` counts the steps of both stages."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_no: int = 0
    job_timestamp: str = "0"
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressAnswer(BaseModel):
    """Of the oldest of the visitor's requests under /sdapi. `current_image` is base64 of a small JPEG."""

    progress: float = Field(default=0.0, description="0 to 1")
    eta_relative: float = Field(default=0.0, description="Seconds until it is done, as far as can be told")
    state: State = State()
    current_image: str | None = None
    textinfo: str | None = None


class SamplerItem(BaseModel):
    """A sampler and the names that it is known by."""

    name: str
    aliases: list[str]
    options: dict[str, Any] = {}


class SchedulerItem(BaseModel):
    """A step grid; `label` is the name for people."""

    name: str
    label: str
    aliases: list[str] = []
    default_rho: float = -1.0
    need_inner_model: bool = False


class ModelItem(BaseModel):
    """The model. `hash` is the beginning of `sha256`; both are null until they are known."""

    model_config = ConfigDict(protected_namespaces=())

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None = None


class Options(BaseModel):
    """The settings that have a meaning here."""

    sd_model_checkpoint: str
    sd_checkpoint_hash: str
    samples_format: str


class PictureInfoRequest(BaseModel):
    """A picture whose parameters are asked for."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": "data:image/png;base64,iVBORw0KGgo..."}]})

    image: str = Field(description="Base64 of a PNG, JPEG or WebP file, or its data URI")


class PictureInfo(BaseModel):
    """`info` is the text in the file, `parameters` its pairs by AUTOMATIC1111's names, `request` the same as fields of
    /v1/generate, and `items` what else the file says."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str]
    request: dict[str, Any]


class Memory(BaseModel):
    """Of this process' machine, in bytes. The models are elsewhere: `cuda` is empty."""

    ram: dict[str, int]
    cuda: dict[str, Any] = {}
