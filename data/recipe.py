"""The recipe of `sote curate`: one typed part for each stage.

Kind: pure.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sote.cluster.recipe import Part, Recipe

SourceKind = Literal["image board", "pixiv", "visual novel", "wallpaper", "plain"]
DateRule = Literal["sidecar", "folder"]
Dtype = Literal["float32", "bfloat16"]
VQGAN_STRIDE = 4  # pixels of a cell of Stage A's latents
KeepKey = Literal["size", "lossless", "score", "bytes", "metadata", "date"]


class Source(Part):
    """One place that pictures come from. `kind` decides the custom tags of its captions.

    `date` lists what a year is taken from, the first that knows it: the sidecar, or the nearest folder above the
    picture that is named by a year. `date_word` is the word of pictures whose year nothing knows.
    """

    name: str = Field(min_length=1)
    kind: SourceKind = "plain"
    path: str = Field(min_length=1)  # a folder, a .tar, a .parquet, or a pattern of these; local, or an fsspec URI
    form: Literal["folder", "webdataset", "parquet"] = "folder"
    date: tuple[DateRule, ...] = ("sidecar",)
    date_word: str | None = None  # one of the profile's, such as "newest"
    tags: tuple[str, ...] = ()  # custom tags of every caption of this source
    sidecar_tags: bool = False  # tags that people gave are added to the caption after the model's
    title: str | None = None  # visual novel: full title, where no sidecar has it
    short_title: str | None = None  # visual novel: short title


class DecodePart(Part):
    """What is taken as a picture. 768,000 pixels (1280x600) is the seed's smallest size."""

    min_pixels: int = Field(default=768_000, ge=1)
    max_pixels: int = Field(default=100_000_000, ge=1)  # decompression bombs are refused from the header
    max_file_bytes: int = Field(default=268_435_456, ge=1)
    timeout_seconds: float = Field(default=60.0, gt=0)  # a decoder that takes longer for one picture is ended
    max_memory_bytes: int = Field(default=6_442_450_944, ge=1 << 30)  # of a decoder's process, 6 GiB

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_pixels >= self.max_pixels:
            raise ValueError(f"min_pixels must be below max_pixels ({self.max_pixels})")
        return self


class DuplicatesPart(Part):
    """Near-duplicates: all pairs of hashes within `radius` bits; with `thumbs`, thumbnails tell copies from variants.

    `hash` is the 256-bit DCT hash, or for comparison czkawka's 16x16 gradient hash (that tool: radius 5, no thumbs).
    `keep` is the order in which the picture to keep of a group is chosen; ties fall to the id.
    """

    hash: Literal["phash", "czkawka"] = "phash"
    radius: int = Field(default=8, ge=0, le=16)
    thumbs: bool = True
    max_thumb_difference: float = Field(default=16.0, gt=0)  # facts: 16 keeps 100 % of copies, 98.9 % of variants apart
    keep: tuple[KeepKey, ...] = ("size", "lossless", "score", "bytes", "metadata", "date")


class ScorePart(Part):
    """The two scorers: key of known weights, or a local folder (or file, for the head).

    `dtype` and `compile` are the image towers'; the head is float32 always. With a narrower dtype the scores of a fixed
    sample must lie within `max_difference` of float32's, or the run ends.
    """

    aesthetic: str = "aesthetic-shadow-v2"
    quality_clip: str = "clip-vit-b-32-openai"
    quality_head: str = "aes-b32-v0"
    dtype: Dtype = "float32"
    compile: bool = False
    max_difference: float = Field(default=0.02, gt=0, le=1)


class TagPart(Part):
    """The tagger: key of known weights or a local folder with selected_tags.csv and model.onnx or model.safetensors.

    `engine` "auto" takes what fits the device that a worker finds: ONNX Runtime with CUDA, MIGraphX, OpenVINO or the
    CPU, or torch where the folder has no ONNX file. A named engine must work on every worker. `dtype` and `compile`
    are torch's and TensorRT's; a narrower dtype must keep the probabilities of a fixed sample within `max_difference`.
    """

    tagger: str = "wd-swinv2-tagger-v3"
    engine: Literal["auto", "tensorrt", "cuda", "migraphx", "openvino", "cpu", "torch"] = "auto"
    dtype: Dtype = "float32"
    compile: bool = False
    max_difference: float = Field(default=0.02, gt=0, le=1)

    @model_validator(mode="after")
    def _engine_has_it(self) -> Self:
        if self.dtype == "bfloat16" and self.engine not in ("auto", "torch", "tensorrt"):
            raise ValueError(f"engine {self.engine!r} computes in float32; for bfloat16 name torch or tensorrt")
        return self


class TextPart(Part):
    """Reading of text, on rows tagged `english_text` only; left out, nothing is read.

    `reader` is LLaVA's weights; with `url` (an OpenAI-compatible server's, ending in /v1) a model served there is asked
    instead, and `reader` is the name that it is served by.
    """

    reader: str = "llava-1.5-7b"
    url: str | None = Field(default=None, pattern=r"^https?://")
    api_key_file: str | None = None  # a file with the server's key, which never enters the run folder
    requests_at_once: int = Field(default=8, ge=1)
    timeout_seconds: float = Field(default=120.0, gt=0)  # of one answer
    threshold: float = Field(default=0.35, ge=0, le=1)
    max_new_tokens: int = Field(default=48, ge=1)  # the author's total of 64 less the prompt


class CaptionPart(Part):
    """How a caption is put together; thresholds are the seed's."""

    profile: str = "sote-v1"  # name of a shipped profile, or a path to a profile's TOML
    general_threshold: float = Field(default=0.35, ge=0, le=1)
    character_threshold: float = Field(default=0.50, ge=0, le=1)


class SetPart(Part):
    """A set of picked rows for another run (the seed's final and decoder runs): those that meet every rule given.

    Scores are compared strictly. `most` keeps the highest by the sum of both scores; ties fall to the id.
    """

    best: bool = False  # only rows that the base run repeats
    aesthetic_above: float | None = Field(default=None, ge=0, le=1)
    quality_above: float | None = Field(default=None, ge=0, le=1)
    date_words: tuple[str, ...] = ()  # of the profile; empty takes any
    sources: tuple[str, ...] = ()  # names; empty takes any
    most: int | None = Field(default=None, ge=1)


class SelectPart(Part):
    """Which rows train, and how often. The very best are repeated (seed: about 120K pictures five times).

    A row is of the best where both scores are strictly above the best_* bounds; `best_most` keeps only so many of them,
    those with the highest sum of both.
    """

    min_aesthetic_score: float | None = Field(default=None, ge=0, le=1)
    min_quality_score: float | None = Field(default=None, ge=0, le=1)
    best_aesthetic_score: float = Field(default=0.90, ge=0, le=1)
    best_quality_score: float = Field(default=0.98, ge=0, le=1)
    best_most: int | None = Field(default=None, ge=1)
    best_repeat: int = Field(default=5, ge=1)
    sets: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")], SetPart] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _best_are_picked(self) -> Self:
        for name in ("aesthetic", "quality"):
            least, best = getattr(self, f"min_{name}_score"), getattr(self, f"best_{name}_score")
            if least is not None and best < least:
                raise ValueError(
                    f"best_{name}_score {best} is below min_{name}_score {least}: the best would not be picked"
                )
        return self


class LatentsPart(Part):
    """Buckets and the encoder. `compression` is pixels per latent cell: 32 as the seed's author trained."""

    encoder: str = "stable-cascade-effnet"
    resolution: int = Field(default=1024, ge=64)  # pixels; a bucket holds at most resolution^2
    bucket_step: int = Field(default=64, ge=32)  # pixels
    compression: float = Field(default=32.0, ge=4, le=128)
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    vqgan: str | None = None  # a decoder's folder with Stage A; given, the set `vqgan_set` gets its latents too
    vqgan_set: str = "decoder"

    @model_validator(mode="after")
    def _step_fits(self) -> Self:
        if self.bucket_step > self.resolution:
            raise ValueError(f"bucket_step must be at most resolution ({self.resolution})")
        if self.vqgan is not None and self.bucket_step % VQGAN_STRIDE:
            raise ValueError(f"bucket_step must be a multiple of {VQGAN_STRIDE} for the latents of vqgan")
        return self


class WorkPart(Part):
    """What changes no result, so that a run can be continued with other values.

    A run fails when more than `max_failed_share` of its files end in an error. `cores` and `devices` are what
    `sote check` reckons its hours for: CPU cores, and accelerators by name with their number, as {"H200" = 8}. A model
    whose call for one slice takes longer than `hang_timeout_seconds`, loading and compiling aside, is ended, and the
    slice is tried again.
    """

    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    cores: int | None = Field(default=None, ge=1)
    devices: dict[str, int] = Field(default_factory=dict)
    hang_timeout_seconds: float = Field(default=900.0, gt=0)


class CurateRecipe(Recipe):
    """Pictures -> captions and latents."""

    sources: tuple[Source, ...] = Field(min_length=1)
    shard_rows: int = Field(default=1000, ge=1)  # the unit of resume
    slice_rows: int = Field(default=16, ge=1)  # the batch of every model, always cut at the same rows of a shard
    decode: DecodePart = DecodePart()
    duplicates: DuplicatesPart = DuplicatesPart()
    score: ScorePart = ScorePart()
    tag: TagPart = TagPart()
    text: TextPart | None = None
    caption: CaptionPart = CaptionPart()
    select: SelectPart = SelectPart()
    latents: LatentsPart | None = None  # without the table, captions are the end
    work: WorkPart = WorkPart()

    @model_validator(mode="after")
    def _sets_are_known(self) -> Self:
        if (
            self.latents is not None
            and self.latents.vqgan is not None
            and self.latents.vqgan_set not in self.select.sets
        ):
            known = ", ".join(self.select.sets) or "none"
            raise ValueError(
                f"latents.vqgan_set: {self.latents.vqgan_set!r} is no set of [select.sets]; known: {known}"
            )
        names = {source.name for source in self.sources}
        for name, part in self.select.sets.items():
            if unknown := sorted(set(part.sources) - names):
                raise ValueError(f"select.sets.{name}.sources: {unknown[0]!r} is the name of no source")
        return self

    @model_validator(mode="after")
    def _sources_differ(self) -> Self:
        for field in ("name", "path"):
            seen = [getattr(source, field) for source in self.sources]
            if twice := sorted({value for value in seen if seen.count(value) > 1}):
                raise ValueError(f"sources: {field} {twice[0]!r} is listed twice, each source must have its own")
        return self
