"""The captions of a whole shard: Arrow columns in, Arrow columns out, each row by `caption.caption`.

A row has about eighty tags, of which thirty are in its caption. So the tags are looked at as flat arrays, and only
those that pass their threshold become Python objects.
Reads: COLUMNS. Writes: words, caption, caption_tags.

Kind: pure.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from sote.data import schema
from sote.data.caption import Caption, CaptionFacts, caption
from sote.data.caption_profile import Profile
from sote.data.kohya import Tag
from sote.data.recipe import CaptionPart, Source

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here
Column = Any  # pa.Array or pa.ChunkedArray

SAID = ("artist", "title", "short_title", "characters", "series", "sidecar_tags")  # of sidecars
COLUMNS = ("source", "aesthetic_score", "quality_score", "rating", "tags", "year", "text", *SAID)


def captions(
    table: pa.Table, profile: Profile, *, part: CaptionPart, sources: Mapping[str, Source]
) -> dict[str, Column]:
    """caption's columns of the rows in `table`, which has COLUMNS; null where a row was never tagged.

    `sources` are the recipe's by name. The columns of strings in `tags` may be dictionaries.
    """
    passing = _passing(table["tags"], part)
    lists = [table[name].to_pylist() for name in COLUMNS if name not in ("rating", "tags")]
    columns = dict(zip((name for name in COLUMNS if name not in ("rating", "tags")), lists, strict=True))
    ratings = _ratings(table["rating"])
    made: list[Caption | None] = []
    for at, tags in enumerate(passing):
        if tags is None:
            made.append(None)
            continue
        said = {name: column[at] for name, column in columns.items()}
        made.append(caption(_facts(said, tags, rating=ratings[at], sources=sources), profile, part=part))
    return _columns(made)


def _facts(
    said: dict[str, Any], tags: Sequence[Tag], *, rating: Sequence[float] | None, sources: Mapping[str, Source]
) -> CaptionFacts:
    source = sources[said["source"]]
    return CaptionFacts(
        source_kind=source.kind,
        aesthetic_score=said["aesthetic_score"],
        quality_score=said["quality_score"],
        rating=rating,
        tags=tags,
        year=said["year"],
        source_word=source.date_word,
        source_tags=source.tags,
        artist=said["artist"],
        title=said["title"] or source.title,
        short_title=said["short_title"] or source.short_title,
        characters=said["characters"] or (),
        series=said["series"] or (),
        sidecar_tags=(said["sidecar_tags"] or ()) if source.sidecar_tags else (),
        text=said["text"],
    )


def _passing(tags: Column, part: CaptionPart) -> Iterator[list[Tag] | None]:
    """For each row its tags from the lowest threshold of their category on, in their order; None where it has none."""
    lists = tags.combine_chunks()
    flat = lists.flatten()
    probability = flat.field("probability").to_numpy(zero_copy_only=False)
    names, which = _strings(flat.field("name"))
    categories, category = _strings(flat.field("category"))
    floors = [
        _floor(part.character_threshold if each == "character" else part.general_threshold) for each in categories
    ]
    keep = probability >= np.array([*floors, 0], np.float32)[category]
    name, likely, kind = names[which[keep]].tolist(), probability[keep].tolist(), categories[category[keep]].tolist()
    sizes = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    bounds = np.concatenate([[0], np.cumsum(keep)])[np.concatenate([[0], np.cumsum(sizes)])].tolist()
    for there, (start, end) in zip(lists.is_valid().to_pylist(), pairwise(bounds), strict=True):
        # a row's tuples are made when it is asked for: 140,000 of them at once cost a third more time
        yield list(zip(name[start:end], likely[start:end], kind[start:end], strict=True)) if there else None


def _strings(column: Column) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """The different strings of a column, and for each place which of them it has."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    strings = np.array(encoded.dictionary.to_pylist(), dtype=object)
    return strings, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _floor(threshold: float) -> float:
    """At most the threshold: caption() looks again."""
    return float(np.nextafter(np.float32(threshold), np.float32(-1)))


def _ratings(column: Column) -> list[list[float] | None]:
    """The four probabilities of each row in the order of schema.RATINGS; a missing one is NaN."""
    parts = [pc.fill_null(pc.struct_field(column, name), np.nan).to_numpy() for name in schema.RATINGS]
    valid = column.is_valid().to_pylist()
    return [row if there else None for row, there in zip(np.stack(parts, axis=1).tolist(), valid, strict=True)]


def _columns(made: Sequence[Caption | None]) -> dict[str, Column]:
    """Captions as caption's columns."""
    missing = np.array([each is None for each in made], np.bool_)
    sizes = [len(each.tags) if each else 0 for each in made]
    flat = list(chain.from_iterable(each.tags for each in made if each))
    words = [
        pa.array([each.words[name] if each else None for each in made], pa.string())  # type: ignore[literal-required]
        for name in (field.name for field in schema.WORDS)
    ]
    return {
        "words": pa.StructArray.from_arrays(words, fields=list(schema.WORDS), mask=pa.array(missing)),
        "caption": pa.array([each.text if each else None for each in made], pa.string()),
        "caption_tags": pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32()),
            pa.array(flat, pa.string()),
            mask=pa.array(missing),
        ),
    }
