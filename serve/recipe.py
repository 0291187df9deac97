"""The recipe of `sote serve` and `sote generate`: which weights, which defaults, where it listens, how many replicas.

Kind: pure.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from sote.cluster.recipe import Part, Recipe
from sote.serve.schedules import Sampler, Scheduler
from sote.serve.sizes import MAX_SIDE, SIDE_STEP, check_side

DType = Literal["auto", "float32", "bfloat16", "float16"]
OutputFormat = Literal["png", "jpeg", "webp"]
Side = Annotated[int, AfterValidator(check_side)]

# fal-ai/stable-cascade/sote-diffusion: the limits of its request; a recipe's defaults keep to them too
PriorSteps = Annotated[int, Field(ge=4, le=50)]
DecoderSteps = Annotated[int, Field(ge=4, le=24)]
Guidance = Annotated[float, Field(ge=0, le=20)]
Images = Annotated[int, Field(ge=1, le=4)]
Compression = Annotated[float, Field(ge=32, le=64)]  # the seed: 42, or 32 to 64
Shift = Annotated[float, Field(gt=0, le=10)]


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

    @field_validator("prior_dtype")
    @classmethod
    def _not_half(cls, value: DType) -> DType:
        if value == "float16":  # ComfyUI #2824, diffusers #6970: black pictures
            raise ValueError("Stage C overflows in float16 and gives black pictures; use bfloat16, float32 or auto")
        return value


class DefaultsPart(Part):
    """What a request gets that does not say otherwise. The values here are the seed's."""

    negative_prompt: str = ""
    width: Side = 1024
    height: Side = 1536
    compression: Compression = 42
    images: Images = 1
    output_format: OutputFormat = "png"
    prior_steps: PriorSteps = 30
    prior_guidance: Guidance = 7.0
    prior_sampler: Sampler = "dpmpp_2m"
    prior_scheduler: Scheduler = "sgm_uniform"
    prior_shift: Shift = 2.0  # ComfyUI's for Stage C
    decoder_steps: DecoderSteps = 10
    decoder_guidance: Guidance = 1.0
    decoder_sampler: Sampler = "euler_a"
    decoder_scheduler: Scheduler = "karras"
    decoder_shift: Shift = 1.0  # ComfyUI's for Stage B


class LimitsPart(Part):
    """What a request may cost at most."""

    max_pixels: int = Field(default=2048 * 1152, ge=SIDE_STEP**2, le=MAX_SIDE**2)  # the seed's larger size, one image
    max_images: Images = 4


class ReplicasPart(Part):
    """Copies of one deployment. `gpus` above 0 puts its model on the GPU; a share such as 0.5 lets two share one."""

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=0.5, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    # One request computes at a time; those beyond wait in line, and beyond the line are told to come again (429)
    max_queued_requests: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas must be at least min_replicas ({self.min_replicas})")
        return self


class ServeRecipe(Recipe):
    """Checkpoint -> HTTP endpoint. `prior_replicas` does most of the work: about 4 to 1 at the seed's settings."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65_535)
    model: ModelPart = ModelPart()
    defaults: DefaultsPart = DefaultsPart()
    limits: LimitsPart = LimitsPart()
    prior_replicas: ReplicasPart = ReplicasPart()
    decoder_replicas: ReplicasPart = ReplicasPart()
    ingress_cpus: float = Field(default=0.2, ge=0)

    @model_validator(mode="after")
    def _defaults_are_allowed(self) -> Self:
        pixels = self.defaults.width * self.defaults.height
        if pixels > self.limits.max_pixels:
            raise ValueError(f"defaults.width x height is {pixels} pixels, above limits.max_pixels")
        if self.defaults.images > self.limits.max_images:
            raise ValueError("defaults.images is above limits.max_images")
        return self
