"""The recipe of `sote curate`: one typed part for each stage.

Kind: pure.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from sote.cluster.recipe import Part, Recipe

SourceKind = Literal["image board", "pixiv", "visual novel", "wallpaper", "plain"]


class Source(Part):
    """One place that pictures come from. `kind` decides the custom tags of its captions."""

    name: str = Field(min_length=1)
    kind: SourceKind = "plain"
    path: str = Field(min_length=1)
    title: str | None = None  # visual novel: full title, where no sidecar has it
    short_title: str | None = None  # visual novel: short title


class DecodePart(Part):
    """What is taken as a picture. 768,000 pixels (1280x600) is the seed's smallest size."""

    min_pixels: int = Field(default=768_000, ge=1)
    max_pixels: int = Field(default=100_000_000, ge=1)  # decompression bombs are refused from the header
    max_file_bytes: int = Field(default=268_435_456, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_pixels >= self.max_pixels:
            raise ValueError(f"min_pixels must be below max_pixels ({self.max_pixels})")
        return self


class DuplicatesPart(Part):
    """Near-duplicates: 256-bit DCT hash, all pairs within `radius` bits; the thumbnail tells copies from variants."""

    radius: int = Field(default=8, ge=0, le=16)
    max_thumb_difference: float = Field(default=16.0, gt=0)  # facts: 16 keeps 100 % of copies, 98.9 % of variants apart


class ScorePart(Part):
    """The two scorers: key of known weights, or a local folder (or file, for the head)."""

    aesthetic: str = "aesthetic-shadow-v2"
    quality_clip: str = "clip-vit-b-32-openai"
    quality_head: str = "aes-b32-v0"


class TagPart(Part):
    """The tagger: key of known weights or a local folder with model.onnx and selected_tags.csv."""

    tagger: str = "wd-swinv2-tagger-v3"


class TextPart(Part):
    """Reading of text, on rows tagged `english_text` only; left out, nothing is read."""

    reader: str = "llava-1.5-7b"
    threshold: float = Field(default=0.35, ge=0, le=1)
    max_new_tokens: int = Field(default=48, ge=1)  # the author's total of 64 less the prompt


class CaptionPart(Part):
    """How a caption is put together; thresholds are the seed's."""

    profile: str = "sote-v1"  # name of a shipped profile, or a path to a profile's TOML
    general_threshold: float = Field(default=0.35, ge=0, le=1)
    character_threshold: float = Field(default=0.50, ge=0, le=1)


class SelectPart(Part):
    """Which rows train, and how often. The very best are repeated (seed: about 120K pictures five times)."""

    min_aesthetic_score: float | None = Field(default=None, ge=0, le=1)
    min_quality_score: float | None = Field(default=None, ge=0, le=1)
    best_aesthetic_score: float = Field(default=0.90, ge=0, le=1)
    best_quality_score: float = Field(default=0.98, ge=0, le=1)
    best_repeat: int = Field(default=5, ge=1)


class LatentsPart(Part):
    """Buckets and the encoder. `compression` is pixels per latent cell: 32 as the seed's author trained."""

    encoder: str = "stable-cascade-effnet"
    resolution: int = Field(default=1024, ge=64)  # pixels; a bucket holds at most resolution^2
    bucket_step: int = Field(default=64, ge=32)  # pixels
    compression: float = Field(default=32.0, ge=4, le=128)
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    @model_validator(mode="after")
    def _step_fits(self) -> Self:
        if self.bucket_step > self.resolution:
            raise ValueError(f"bucket_step must be at most resolution ({self.resolution})")
        return self


class WorkPart(Part):
    """What changes no result, so that a run can be continued with other values.

    A run fails when more than `max_failed_share` of its files end in an error.
    """

    max_failed_share: float = Field(default=0.2, ge=0, le=1)


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
    def _sources_differ(self) -> Self:
        for field in ("name", "path"):
            seen = [getattr(source, field) for source in self.sources]
            if twice := sorted({value for value in seen if seen.count(value) > 1}):
                raise ValueError(f"sources: {field} {twice[0]!r} is listed twice, each source must have its own")
        return self
