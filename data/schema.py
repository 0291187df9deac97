"""Every column: name, Arrow type, unit or meaning, the one stage that writes it.

A stage writes its columns to `RUN/rows/<stage>/<shard>.parquet`, one row for each row of the shard, in the order of
`row`. `catalogue.parquet` is the contract: the columns with `catalogue=True`, in this order. The others are what
stages tell each other.

Kind: pure.
"""

from dataclasses import dataclass

import pyarrow as pa

TAG_FLOOR = 0.05  # contract: tags are kept from this probability on
HASH_BYTES = 32  # 256-bit perceptual hash
THUMB_BYTES = 16 * 16 * 3  # 16 x 16 RGB

RATINGS = ("general", "sensitive", "questionable", "explicit")  # the tagger's names and order

TAG = pa.struct([("name", pa.string()), ("probability", pa.float32()), ("category", pa.string())])
RATING = pa.struct([(name, pa.float32()) for name in RATINGS])
WORDS = pa.struct([(name, pa.string()) for name in ("aesthetic", "quality", "date", "rating")])
NAMES = pa.list_(pa.string())
NUMBERS = pa.list_(pa.int32())


@dataclass(frozen=True)
class Column:
    """One column. `meaning` says unit and range; `stage` is its only writer."""

    name: str
    type: pa.DataType
    meaning: str
    stage: str
    catalogue: bool = True


COLUMNS: tuple[Column, ...] = (
    Column("id", pa.string(), "sha256 of the file's bytes, 64 hex digits; null if it could not be read", "decode"),
    Column("uri", pa.string(), "where the file lies", "index"),
    Column("source", pa.string(), "name of the source in the recipe", "index"),
    Column("format", pa.string(), "by content: jpeg, png, webp, ...; null if it is no picture", "decode"),
    Column("width", pa.int32(), "pixels, after EXIF orientation", "decode"),
    Column("height", pa.int32(), "pixels, after EXIF orientation", "decode"),
    Column("year", pa.int32(), "of the post; of a keeper, the earliest of its group", "duplicates"),
    Column("phash", pa.binary(HASH_BYTES), "256-bit DCT perceptual hash", "decode"),
    Column("duplicate_group", pa.int64(), "number of the duplicate group; null outside of one", "duplicates"),
    Column("keeper", pa.string(), "id of the picture kept of the group; null outside of one", "duplicates"),
    Column("aesthetic_score", pa.float32(), "softmax probability of hq, 0..1", "score"),
    Column("quality_score", pa.float32(), "sigmoid of the quality head, 0..1", "score"),
    Column("rating", RATING, "four probabilities of the tagger, 0..1", "tag"),
    Column("tags", pa.list_(TAG), "tags with probability >= 0.05; category general or character", "tag"),
    Column("text", pa.string(), 'what is written in the picture: `The text says "..."`; null if nothing', "text"),
    Column("words", WORDS, "the words that scores, year and rating become", "caption"),
    Column("caption", pa.string(), "the string trained on", "caption"),
    Column("pick", pa.bool_(), "is trained on", "catalogue"),
    Column("repeat", pa.int32(), "how often it is seen in an epoch; 0 if not picked", "catalogue"),
    Column("skip_reason", pa.string(), "`<stage>: <reason>` of a sound picture that is not picked", "catalogue"),
    Column("error", pa.string(), "`<stage>: <reason>` of a row that failed", "catalogue"),
    Column("bucket", pa.string(), "`<width>x<height>` in pixels that it is trained at", "latents"),
    Column("latent_shard", pa.string(), "latent file, relative to RUN/latents", "latents"),
    Column("latent_offset", pa.int32(), "row within the latent file", "latents"),
    Column("caption_tags", NAMES, "the caption as the list of its tags, never to be split from text", "caption"),
    # more than the contract asks for
    Column("frames", pa.int32(), "number of frames; above 1 it is an animation, of which the first is used", "decode"),
    Column("duplicate_distance", pa.int32(), "Hamming distance to the keeper, bits; null outside of one", "duplicates"),
    Column("sidecar_tags", NAMES, "tags that people gave, of all sidecars of the duplicate group", "duplicates"),
    Column(
        "caption_groups",
        NUMBERS,
        "a number for each of caption_tags: those of the same number stay together and in order, as a character and "
        "its series",
        "caption",
    ),
    Column("sets", NAMES, "the recipe's sets ([select.sets]) that a picked row belongs to", "select"),
    Column("crop", pa.list_(pa.int32(), 4), "left, top, right, bottom in pixels of the picture", "latents"),
    Column("vqgan_shard", pa.string(), "file with the latents of Stage A, relative to RUN/latents", "latents"),
    Column("vqgan_offset", pa.int32(), "row within that file", "latents"),
    Column("bytes", pa.int64(), "size of the file", "index"),
    Column("offset", pa.int64(), "where its bytes begin in a tar; its row in a Parquet file", "index"),
    # what stages tell each other
    Column("row", pa.int32(), "place of the row in its shard", "index", catalogue=False),
    Column("shared_stem", pa.bool_(), "another picture of its folder has the same stem", "index", catalogue=False),
    Column("post_date", pa.string(), "ISO date of the post, or a year, as its sidecar says", "index", catalogue=False),
    Column("post_characters", NAMES, "characters named by its sidecar, underscores as there", "index", catalogue=False),
    Column("post_series", NAMES, "copyrights named by its sidecar, underscores as there", "index", catalogue=False),
    Column("post_tags", NAMES, "general tags named by its sidecar, underscores as there", "index", catalogue=False),
    Column("artist", pa.string(), "display name of the artist (pixiv)", "index", catalogue=False),
    Column("title", pa.string(), "full title (visual novel)", "index", catalogue=False),
    Column("short_title", pa.string(), "short title (visual novel)", "index", catalogue=False),
    Column("index_skip", pa.string(), "`index: <reason>` of a file that is no picture's", "index", catalogue=False),
    Column("index_error", pa.string(), "`index: <reason>`, such as a broken sidecar", "index", catalogue=False),
    Column("mode", pa.string(), "colour mode in the file: RGB, RGBA, P, L, I;16, CMYK, ...", "decode", catalogue=False),
    Column("pixel_id", pa.string(), "sha256 of the RGB pixels", "decode", catalogue=False),
    Column("thumb", pa.binary(THUMB_BYTES), "16x16 RGB thumbnail", "decode", catalogue=False),
    Column(
        "thumb_deviation", pa.float32(), "largest deviation of its three channels, levels", "decode", catalogue=False
    ),
    Column("czkawka", pa.binary(HASH_BYTES), "czkawka's 16x16 gradient hash", "decode", catalogue=False),
    Column("decode_skip", pa.string(), "`decode: <reason>` of a sound file refused by rule", "decode", catalogue=False),
    Column("decode_error", pa.string(), "`decode: <reason>`", "decode", catalogue=False),
    Column("aesthetic_logit", pa.float32(), "logit(hq) - logit(lq)", "score", catalogue=False),
    Column("quality_logit", pa.float32(), "logit of the quality head", "score", catalogue=False),
    Column("score_error", pa.string(), "`score: <reason>`", "score", catalogue=False),
    Column("tag_error", pa.string(), "`tag: <reason>`", "tag", catalogue=False),
    Column(
        "date", pa.string(), "ISO date or year; of a keeper, the earliest of its group", "duplicates", catalogue=False
    ),
    Column("characters", NAMES, "characters named by the sidecars of its group", "duplicates", catalogue=False),
    Column("series", NAMES, "copyrights named by the sidecars of its group", "duplicates", catalogue=False),
    Column("duplicates_skip", pa.string(), "`duplicates: <reason>`", "duplicates", catalogue=False),
    Column("read_text", pa.string(), "what the reader said, word for word", "text", catalogue=False),
    Column("text_error", pa.string(), "`text: <reason>`", "text", catalogue=False),
    Column("select_repeat", pa.int32(), "how often it is to be seen in an epoch; 0 if not", "select", catalogue=False),
    Column("select_skip", pa.string(), "`select: <reason>`", "select", catalogue=False),
    Column("latents_skip", pa.string(), "`latents: <reason>`", "latents", catalogue=False),
    Column("latents_error", pa.string(), "`latents: <reason>`", "latents", catalogue=False),
)

BY_NAME = {column.name: column for column in COLUMNS}
CATALOGUE = pa.schema([(column.name, column.type) for column in COLUMNS if column.catalogue])


def written_by(stage: str) -> pa.Schema:
    """The Arrow schema of what `stage` writes, `row` first."""
    columns = [column for column in COLUMNS if column.stage == stage and column.name != "row"]
    return pa.schema([("row", pa.int32()), *((column.name, column.type) for column in columns)])
