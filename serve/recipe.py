"""The recipe of `sote serve` and `sote generate`: which weights, which defaults, where it listens, how many replicas.

Kind: pure.
"""

from ipaddress import ip_address
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from sote.cluster.recipe import Part, Recipe
from sote.serve.names import sampler_named, scheduler_named
from sote.serve.profiles import Profile
from sote.serve.schedules import Sampler, Scheduler
from sote.serve.settings import OutputFormat
from sote.serve.sizes import MAX_SIDE, SIDE_STEP, check_side

DType = Literal["auto", "float32", "bfloat16", "float16"]
AnySampler = Annotated[Sampler, BeforeValidator(sampler_named)]  # by any name that people know it by
AnyScheduler = Annotated[Scheduler, BeforeValidator(scheduler_named)]
Side = Annotated[int, AfterValidator(check_side)]

# fal-ai/stable-cascade/sote-diffusion: the limits of its request; a recipe's defaults keep to them too
PriorSteps = Annotated[int, Field(ge=4, le=50)]
DecoderSteps = Annotated[int, Field(ge=4, le=24)]
Guidance = Annotated[float, Field(ge=0, le=20)]
Images = Annotated[int, Field(ge=1, le=10)]  # OpenAI's most; fal's is 4, as limits.max_images
Rescale = Annotated[float, Field(ge=0, le=1)]
Compression = Annotated[float, Field(ge=32, le=64)]  # the seed: 42, or 32 to 64
Shift = Annotated[float, Field(gt=0, le=10)]

BEGUN_PER_SLOT = 2  # pictures that a replica has begun, at most, for each that steps


class ModelPart(Part):
    """The weights, by key or local path, and how they compute. "auto" is bfloat16 on CUDA and float32 on a CPU."""

    # A diffusers folder, a ComfyUI checkpoint, an original file, a UNet-only file, or the run folder of a training
    prior: str = "sotediffusion-wuerstchen3"  # Stage C and its text encoder
    decoder: str = "sotediffusion-wuerstchen3-decoder"  # Stage B and A
    text_encoder: str | None = None  # needed only beside a prior that has none
    name: str | None = None  # as it stands in the pictures' parameters; left out: the last part of `prior`
    prior_dtype: DType = "auto"
    decoder_dtype: DType = "auto"
    # Stage B was trained with 0.43 (Stability's StageA, train_b.py); the 0.3764 in published configs is Wuerstchen v2's
    vqgan_scale: float = Field(default=0.43, gt=0)
    # None: what the weights' metadata says, and masked where it says nothing (diffusers and ComfyUI mask)
    mask_padding: bool | None = None
    # None: what the weights' metadata says, and 77 where it says nothing; the seed's author trained with 227
    text_tokens: Literal[77, 152, 227] | None = None
    # EfficientNet, for pictures to start from (img2img); None: that beside the prior, or none
    encoder: str | None = None
    # CLIP-L/14, for variations of pictures; None: that beside or inside the prior, or none
    image_encoder: str | None = None
    compile: bool = False  # torch.compile of each layer; the first picture of a size takes minutes longer
    allow_cpu: bool = False  # serve a full-size model without a GPU: hours for one picture

    @field_validator("prior_dtype")
    @classmethod
    def _not_half(cls, value: DType) -> DType:
        if value == "float16":  # ComfyUI #2824, diffusers #6970: black pictures
            raise ValueError("Stage C overflows in float16 and gives black pictures; use bfloat16, float32 or auto")
        return value


class DefaultsPart(Part):
    """What a request gets that does not say otherwise. The values here are the seed's."""

    negative_prompt: str = ""
    # With use_default_tags both are put before the request's own, and the answer shows the whole prompts
    use_default_tags: bool = False
    positive_tags: str = "newest, extremely aesthetic, best quality,"
    negative_tags: str = "very displeasing, worst quality, monochrome, realistic, oldest, loli,"
    weights: bool = True  # "(word:1.2)" in a prompt is a weight
    # What another program does about grid, shift, mask, text and noise; the fields of these are not read then
    profile: Profile | None = None
    width: Side = 1024
    height: Side = 1536
    compression: Compression = 42
    images: Images = 1
    size_policy: Literal["refuse", "round"] = "refuse"  # of a side that is no multiple of 128
    output_format: OutputFormat = "png"
    embed_parameters: bool = True  # into the picture's file
    prior_steps: PriorSteps = 30
    prior_guidance: Guidance = 7.0
    prior_sampler: AnySampler = "dpmpp_2m"
    prior_scheduler: AnyScheduler = "sgm_uniform"
    prior_shift: Shift = 2.0  # ComfyUI's for Stage C
    prior_guidance_rescale: Rescale = 0.0  # 0.7 is Stability's own sampler's
    decoder_steps: DecoderSteps = 10
    decoder_guidance: Guidance = 1.0
    decoder_sampler: AnySampler = "euler_a"
    decoder_scheduler: AnyScheduler = "karras"
    decoder_shift: Shift = 1.0  # ComfyUI's for Stage B


class LimitsPart(Part):
    """What a request may cost at most."""

    max_pixels: int = Field(default=2048 * 1152, ge=SIDE_STEP**2, le=MAX_SIDE**2)  # the seed's larger size, one image
    max_images: Images = 4
    max_prompt_tokens: int = Field(default=600, ge=75, le=3000)  # 8 windows of 75; what is beyond is not read
    max_body_bytes: int = Field(default=16 * 2**20, ge=2**16)


class ReplicasPart(Part):
    """Copies of one deployment. `gpus` above 0 puts its model on the GPU; a share such as 0.5 lets two share one."""

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=0.5, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    slots: int = Field(default=8, ge=1, le=64)  # pictures that step together in one replica at most; 1: no batching
    # Beyond twice the slots requests wait in line, and beyond the line they are told to come again (429)
    max_queued_requests: int = Field(default=16, ge=1)
    upscale_delay_seconds: float = Field(default=10.0, ge=0)
    downscale_delay_seconds: float = Field(default=300.0, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas must be at least min_replicas ({self.min_replicas})")
        return self


class AccessPart(Part):
    """Who may ask. `keys` is a file that `sote key` writes: names, hashes and limits; None: anybody, on loopback."""

    keys: str | None = None
    # Answers that a key's page elsewhere may read (CORS); this server's own page needs none
    origins: tuple[str, ...] = ()


class SafetyPart(Part):
    """What is not painted. Tags are compared without case, with underscores as spaces, weights left out."""

    blocked_tags: tuple[str, ...] = ()  # a prompt that has one is refused; a negative prompt may name them
    tagger: str | None = None  # key or folder of our tagger: looks at every picture before it is handed out
    withheld_tags: tuple[str, ...] = ()  # a picture that has one is withheld
    withheld_probability: float = Field(default=0.5, gt=0, lt=1)


class AboutPart(Part):
    """What the licence of the model asks whoever serves it to say."""

    source_url: str | None = Field(default=None, pattern=r"^https?://\S+$")  # where the model's source can be had
    licence: str | None = None  # None: what the weights' metadata or our list of weights says


class JobsPart(Part):
    """Work that is asked for now and fetched later. `keep_seconds` holds for finished jobs and for pictures by URL."""

    keep_seconds: float = Field(default=3600.0, ge=10)
    running: int = Field(default=8, ge=1)  # at once; others wait in line
    max_waiting: int = Field(default=64, ge=1)
    # Hosts that may be told when a job ends; None: any on loopback, and only public addresses on a public server
    webhook_hosts: tuple[str, ...] | None = None


class ServeRecipe(Recipe):
    """Checkpoint -> HTTP endpoint. `prior_replicas` does most of the work: about 4 to 1 at the seed's settings."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65_535)
    model: ModelPart = ModelPart()
    defaults: DefaultsPart = DefaultsPart()
    limits: LimitsPart = LimitsPart()
    prior_replicas: ReplicasPart = ReplicasPart()
    decoder_replicas: ReplicasPart = ReplicasPart()
    access: AccessPart = AccessPart()
    safety: SafetyPart = SafetyPart()
    about: AboutPart = AboutPart()
    jobs: JobsPart = JobsPart()
    ingress_cpus: float = Field(default=0.2, ge=0)
    # A replica that is told to end finishes what it works on, up to this; longer than the longest request
    drain_seconds: float = Field(default=120.0, ge=1)

    @property
    def is_public(self) -> bool:
        """Whether others than this machine can reach the server."""
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @model_validator(mode="after")
    def _defaults_are_allowed(self) -> Self:
        pixels = self.defaults.width * self.defaults.height
        if pixels > self.limits.max_pixels:
            raise ValueError(f"defaults.width x height is {pixels} pixels, above limits.max_pixels")
        if self.defaults.images > self.limits.max_images:
            raise ValueError("defaults.images is above limits.max_images")
        return self

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.safety.withheld_tags and self.safety.tagger is None:
            raise ValueError("safety.withheld_tags needs safety.tagger: something must look at the pictures")
        if self.is_public and self.access.keys is None:
            raise ValueError(
                f"host: {self.host} can be reached from other machines; set access.keys (`sote key FILE NAME` makes "
                "one), or leave host at 127.0.0.1"
            )
        return self
