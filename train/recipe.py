"""The recipe of `sote train`: one typed part for each concern.

Numbers without another source are the seed's (base stage of SoteDiffusion Wuerstchen3).

Kind: pure.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from sote.cluster.recipe import Part, Recipe

# Top-level tables that a run folder's recipe may be continued with in another form: they do not change what is learnt
MAY_DIFFER = ("length", "workers", "checkpoint", "samples", "export")

Stage = Literal["prior", "decoder"]
DType = Literal["float16", "bfloat16", "float32"]
GpuName = Literal["A100-80GB", "H100-80GB", "H200-141GB", "L40S-48GB", "RTX4090-24GB"]


class DataPart(Part):
    """What is trained on: the run folder of a `sote curate`, all that it picked, or one of its [select.sets].

    Rows of a set are seen once in an epoch, however often the base run repeats them. `curated` is a path or an fsspec
    URI (s3://bucket/runs/curated).
    """

    curated: str = Field(min_length=1)
    set: str | None = Field(default=None, min_length=1)
    # Pixels per latent cell: 32 as the seed's author trained, 42.67 as Stability. Left out: whatever the latents have
    compression: float | None = Field(default=None, ge=32, le=64)
    encode: bool = False  # make latents from the pictures while training, instead of reading those of the curate run
    encoder: str = "stable-cascade-effnet"  # used where pictures are encoded: `encode`, and Stage B
    prefetch_steps: int = Field(default=2, ge=1)  # batches that are read ahead
    readers: int = Field(default=4, ge=1)  # threads that read, on each worker
    expected_images: int | None = Field(default=None, ge=1)  # for `sote check` before the curate run is there


class ModelPart(Part):
    """Which stage is trained, and what from. A model is named by key or by path: a diffusers folder, a ComfyUI
    checkpoint, Stability's original file, a UNet-only file, or the run folder of an earlier training.

    `text_encoder` is needed only beside a file that has none; the tokenizer is CLIP's own.
    """

    stage: Stage = "prior"  # prior is Stage C, decoder is Stage B
    prior: str = "stable-cascade-prior"
    decoder: str | None = None  # Stage B, and Stage A: for stage = "decoder"
    text_encoder: str | None = None
    gradient_checkpointing: float = Field(default=0.0, ge=0, le=1)  # share of the blocks that are computed twice
    compile: bool = False  # torch.compile of each block; takes minutes at the start

    @model_validator(mode="after")
    def _has_its_stage(self) -> Self:
        if self.stage == "decoder" and self.decoder is None:
            raise ValueError('stage = "decoder" needs model.decoder, the Stage B to start from')
        return self


class TextPart(Part):
    """How captions become text embeddings. Written into the weights' metadata; serving does the same."""

    tokens: Literal[77, 152, 227] = 77  # windows of 75 with a start and an end mark each, joined; the author's is 227
    mask_padding: bool = True  # pads are hidden from the text encoder, as diffusers and ComfyUI do; kohya's did not


class CaptionsPart(Part):
    """What becomes of a row's tags each time it is seen. Tags are a list, never text that is split again."""

    dropout: float = Field(default=0.05, ge=0, le=1)  # share of empty captions: Stability's 5 %; the seed's author's 0
    tag_dropout: float = Field(default=0.0, ge=0, lt=1)  # share of tags left out, each by itself
    shuffle: bool = True
    keep_first: int = Field(default=0, ge=0)  # so many tags stay where they are
    keep_groups: bool = True  # a character with its series, a title with its code: shuffled as one


class DiffusionPart(Part):
    """Noise, time and weight of the loss."""

    loss_weight: Literal["p2", "adaptive", "none"] = "p2"
    offset_noise: float = Field(default=0.0, ge=0, le=1)  # deviation of one number for each channel, added to the noise
    pyramid_noise: float | None = Field(default=None, gt=0, lt=1)  # weight of each next coarser noise; Stage B: 0.75
    min_time: float = Field(default=0.001, ge=0, lt=1)  # gdf: 0.001
    max_time: float = Field(default=1.0, gt=0, le=1)
    # Stage B alone: the encoder sees the picture at a scale drawn from [least_scale, 1], and its latents are left out
    # for this share of the images (Stability's train_b.py)
    least_encoder_scale: float = Field(default=0.5, gt=0, le=1)
    encoder_dropout: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_time >= self.max_time:
            raise ValueError(f"min_time must be below max_time ({self.max_time:g})")
        return self


class OptimizerPart(Part):
    """Adafactor without its own scaling of the learning rate, or AdamW. What has no learning rate is frozen."""

    name: Literal["adafactor", "adamw"] = "adafactor"
    prior_learning_rate: float = Field(default=1e-5, gt=0)
    text_encoder_learning_rate: float | None = Field(default=None, gt=0)  # seed: 4e-6 in the base stage, then frozen
    decoder_learning_rate: float = Field(default=1e-5, gt=0)  # of stage = "decoder", which has no other
    warmup_steps: int = Field(default=100, ge=0)  # linear, then constant, or falling with `decay`
    decay: Literal["linear", "cosine"] | None = None
    decay_start: int | None = Field(default=None, ge=0)  # the last step at the whole rate: warmup_steps if left out
    decay_steps: int | None = Field(default=None, ge=1)  # over which the rates fall to `decay_to` of themselves
    decay_to: float | None = Field(default=None, ge=0, lt=1)  # 0 if left out
    gradient_clipping: float = Field(default=1.0, gt=0)  # norm over all trained tensors together
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's

    @model_validator(mode="after")
    def _decay_is_whole(self) -> Self:
        if self.decay is None and {self.decay_start, self.decay_steps, self.decay_to} != {None}:
            raise ValueError('no rate falls without decay; set it to "cosine" or "linear"')
        if self.decay is not None and self.decay_steps is None:
            raise ValueError("decay needs decay_steps, over which the rates fall")
        if self.decay_start is not None and self.decay_start < self.warmup_steps:
            raise ValueError(f"decay_start lies within the warm-up; {self.warmup_steps} is the first that does not")
        return self

    @property
    def decay_end(self) -> int | None:
        """The last step at which the rates fall; None where they stay."""
        if self.decay_steps is None:
            return None
        return (self.warmup_steps if self.decay_start is None else self.decay_start) + self.decay_steps


class EmaPart(Part):
    """A running mean of the weights beside them."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    every_steps: int = Field(default=1, ge=1)
    start_step: int = Field(default=0, ge=0)


class LoraPart(Part):
    """Low-rank adapters on the prior's linear layers; everything else is frozen, and held in the arithmetic's type."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    # ends of the names of the layers that get one
    targets: tuple[str, ...] = Field(default=("to_q", "to_k", "to_v", "to_out.0"), min_length=1)


class BatchPart(Part):
    """What one step sees."""

    effective_batch: int = Field(default=128, ge=1)  # images of one step over all workers
    micro_batch: int = Field(default=16, ge=1)  # images that one worker has in memory at a time
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


class GuardPart(Part):
    """Steps that would do harm are skipped and counted: a loss or gradient that is not finite, or a spike."""

    loss_spike: float | None = Field(default=10.0, gt=1)  # times the median loss of the last hundred steps
    max_bad_steps: int = Field(default=3, ge=1)  # so many skipped in a row end the run


class WorkersPart(Part):
    """Who trains. Master weights are float32 always; `precision` is that of the arithmetic.

    With `min_count` the run is elastic: Ray goes on with as many workers as there are, `count` at the most.
    """

    count: int = Field(default=2, ge=1)
    min_count: int | None = Field(default=None, ge=1)
    use_gpu: bool = False
    gpu: GpuName = "A100-80GB"  # what `sote check` plans for
    cpus_per_worker: int = Field(default=1, ge=1)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    zero_stage: Literal[0, 1, 2] = 0  # DeepSpeed ZeRO: 1 shards masters and optimizer, 2 gradients too
    max_failures: int = Field(default=3, ge=0)  # lost workers after which the run gives up

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"min_count must not be above count ({self.count})")
        return self


class CheckpointPart(Part):
    """How often the state is kept, and which states stay: the newest `keep`, and each `keep_every_steps`-th."""

    every_steps: int = Field(default=1000, ge=1)
    keep: int = Field(default=3, ge=1)
    keep_every_steps: int | None = Field(default=None, ge=1)


class SamplesPart(Part):
    """Pictures of fixed prompts and seeds, painted outside of the training workers. Needs export.decoder."""

    every_steps: int = Field(default=500, ge=1)
    prompts: tuple[str, ...] = Field(min_length=1, max_length=16)
    negative_prompt: str = ""
    seed: int = Field(default=0, ge=0)
    width: int = Field(default=1024, ge=128, multiple_of=128)
    height: int = Field(default=1024, ge=128, multiple_of=128)
    steps: int = Field(default=20, ge=4, le=50)
    guidance: float = Field(default=4.0, ge=0, le=20)
    use_gpu: bool = False  # ask Ray for a GPU; else the CPU paints


class ExportPart(Part):
    """What `sote export` writes, and what it puts beside the trained weights."""

    name: str = Field(default="sote", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    dtype: DType = "float16"
    ema: bool = False  # the running mean instead of the weights themselves
    licence: str = "Fair AI Public License 1.0-SD"
    decoder: str | None = None  # key or path of Stage B and A, for a run that trained the prior
    encoder: str | None = None  # key, or effnet_encoder.safetensors, for the ComfyUI file
    previewer: str | None = None  # previewer.safetensors, for the ComfyUI file


class TrainRecipe(Recipe):
    """Latents and captions -> checkpoints of Stage C or Stage B."""

    data: DataPart
    model: ModelPart = ModelPart()
    text: TextPart = TextPart()
    captions: CaptionsPart = CaptionsPart()
    diffusion: DiffusionPart = DiffusionPart()
    optimizer: OptimizerPart = OptimizerPart()
    ema: EmaPart | None = None
    lora: LoraPart | None = None
    batch: BatchPart = BatchPart()
    length: LengthPart
    guard: GuardPart = GuardPart()
    workers: WorkersPart = WorkersPart()
    checkpoint: CheckpointPart = CheckpointPart()
    samples: SamplesPart | None = None
    export: ExportPart = ExportPart()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.lora is not None and self.model.stage == "decoder":
            raise ValueError('lora: adapters are for the prior; leave the table out with model.stage = "decoder"')
        if self.lora is not None and self.optimizer.text_encoder_learning_rate is not None:
            raise ValueError("lora: the text encoder is frozen beside adapters; leave out text_encoder_learning_rate")
        end, last = self.optimizer.decay_end, self.length.max_steps
        if end is not None and last is not None and last > end and not self.optimizer.decay_to:
            raise ValueError(
                f"optimizer.decay_steps: from step {end + 1:,} on the rates are 0 and nothing is learnt, but "
                f"length.max_steps is {last:,}; let them fall later, or to a share of themselves with decay_to"
            )
        if self.samples is not None and self.model.stage == "prior" and self.export.decoder is None:
            raise ValueError("samples: need export.decoder, which paints the latents")
        if self.export.ema and self.ema is None:
            raise ValueError("export.ema: there is no [ema] table, so no running mean is kept")
        return self
