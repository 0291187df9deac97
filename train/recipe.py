"""The recipe of `sote train`: one typed part for each concern.

Numbers without another source are the seed's (base stage of SoteDiffusion Wuerstchen3).

Kind: pure.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from sote.cluster.recipe import Part, Recipe

# Top-level tables that a run folder's recipe may be continued with in another form: they do not change what is learnt
MAY_DIFFER = ("length", "workers", "checkpoint", "export")


class DataPart(Part):
    """What is trained on: the run folder of a `sote curate`, all that it picked, or one of its [select.sets].

    Rows of a set are seen once in an epoch, however often the base run repeats them.
    """

    curated: str = Field(min_length=1)
    set: str | None = Field(default=None, min_length=1)


class ModelPart(Part):
    """What training starts from: key of known weights, or a diffusers folder of a StableCascadePriorPipeline."""

    prior: str = "stable-cascade-prior"
    gradient_checkpointing: bool = False  # recompute in the backward pass: less memory, about a third more work


class OptimizerPart(Part):
    """Adafactor, without its own scaling of the learning rate. A module without a learning rate is frozen."""

    prior_learning_rate: float = Field(default=1e-5, gt=0)
    text_encoder_learning_rate: float | None = Field(default=None, gt=0)  # seed: 4e-6 in the base stage, then frozen
    warmup_steps: int = Field(default=100, ge=0)  # linear, then constant
    gradient_clipping: float = Field(default=1.0, gt=0)  # norm over all trained tensors together


class BatchPart(Part):
    """What one step sees. `caption_dropout` is the share of empty captions (5 %: Stability's trainer)."""

    effective_batch: int = Field(default=128, ge=1)  # images of one step over all workers
    micro_batch: int = Field(default=16, ge=1)  # images that one worker has in memory at a time
    caption_dropout: float = Field(default=0.05, ge=0, le=1)
    shuffle_tags: bool = True
    seed: int = Field(default=0, ge=0, lt=2**63)


class LengthPart(Part):
    """When training ends: after so many epochs or steps, whichever comes first."""

    epochs: int | None = Field(default=None, ge=1)
    max_steps: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("set epochs or max_steps, otherwise training has no end")
        return self


class WorkersPart(Part):
    """Who trains. Weights are float32 always; `precision` is that of the arithmetic."""

    count: int = Field(default=2, ge=1)
    use_gpu: bool = False
    cpus_per_worker: int = Field(default=1, ge=1)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    zero_stage: Literal[0, 1, 2] = 0  # DeepSpeed ZeRO
    max_failures: int = Field(default=3, ge=0)  # lost workers after which the run gives up


class CheckpointPart(Part):
    """How often the state is kept, and how many states."""

    every_steps: int = Field(default=1000, ge=1)
    keep: int = Field(default=3, ge=1)


class ExportPart(Part):
    """What `sote export` puts beside the trained weights; nothing of this is trained."""

    name: str = Field(default="sote", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    decoder: str | None = None  # key, or diffusers folder of a StableCascadeDecoderPipeline (Stage B and A)
    encoder: str | None = None  # key, or effnet_encoder.safetensors, for the ComfyUI file
    previewer: str | None = None  # previewer.safetensors, for the ComfyUI file


class TrainRecipe(Recipe):
    """Latents and captions -> checkpoints of Stage C."""

    data: DataPart
    model: ModelPart = ModelPart()
    optimizer: OptimizerPart = OptimizerPart()
    batch: BatchPart = BatchPart()
    length: LengthPart
    workers: WorkersPart = WorkersPart()
    checkpoint: CheckpointPart = CheckpointPart()
    export: ExportPart = ExportPart()
