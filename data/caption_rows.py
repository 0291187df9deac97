"""The captions of a whole shard: Arrow columns in, Arrow columns out, each row by `caption.caption`.

A row has about eighty tags out of ten thousand, of which thirty are in its caption. So the tags are looked at as flat
arrays: each different one is written once, and only those that pass their threshold become Python objects.
Reads: COLUMNS. Writes: words, caption, caption_tags, caption_groups.

Kind: pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from sote.data import schema
from sote.data.caption import Caption, CaptionFacts, Said, caption, general_tag, peoples_tag
from sote.data.caption_profile import Profile
from sote.data.kohya import Tag
from sote.data.recipe import CaptionPart, Source

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

AS_THEY_ARE = ("source", "aesthetic_score", "quality_score", "year", "text", "artist", "title", "short_title")
COLUMNS = (*AS_THEY_ARE, "characters", "series", "sidecar_tags", "rating", "tags")

Column = Any  # pa.Array or pa.ChunkedArray
Mask = NDArray[np.bool_]


def captions(
    table: pa.Table, profile: Profile, *, part: CaptionPart, sources: Mapping[str, Source]
) -> dict[str, Column]:
    """caption's columns of the rows in `table`, which has COLUMNS; null where a row was never tagged.

    `sources` are the recipe's by name. The strings of tags may be dictionaries.
    """
    columns: dict[str, Sequence[Any]] = {
        name: table[name].to_pylist() for name in (*AS_THEY_ARE, "characters", "series")
    }
    columns["rating"] = _ratings(table["rating"])
    tags, given = _Tags.of(table["tags"], part), _given(table, sources)
    if profile.assembly == "kohya":
        columns |= {"tags": tags.tuples(), "sidecar_tags": given.cut(given.names, given.all)}
    else:
        columns["said"] = _said(tags, given, profile)
    made: list[Caption | None] = []
    for at, there in enumerate(table["tags"].is_valid().to_pylist()):
        if not there:
            made.append(None)
            continue
        row = {name: column[at] for name, column in columns.items()}
        made.append(caption(_facts(row, sources), profile, part=part, said=row.get("said")))
    return _columns(made)


def _facts(row: Mapping[str, Any], sources: Mapping[str, Source]) -> CaptionFacts:
    source = sources[row["source"]]
    return CaptionFacts(
        source_kind=source.kind,
        aesthetic_score=row["aesthetic_score"],
        quality_score=row["quality_score"],
        rating=row["rating"],
        tags=row.get("tags", ()),
        year=row["year"],
        source_word=source.date_word,
        source_tags=source.tags,
        artist=row["artist"],
        title=row["title"] or source.title,
        short_title=row["short_title"] or source.short_title,
        characters=row["characters"] or (),
        series=row["series"] or (),
        sidecar_tags=row.get("sidecar_tags", ()),
        text=row["text"],
    )


@dataclass(frozen=True)
class _Strings:
    """A column of lists of strings, flat: the different ones, which of them each place has, and where rows begin."""

    names: list[str]
    which: NDArray[np.int64]
    begins: NDArray[np.int64]

    @classmethod
    def of(cls, lists: Column, strings: Column) -> "_Strings":
        found = strings if pa.types.is_dictionary(strings.type) else strings.dictionary_encode()
        sizes = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
        which = found.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(found.dictionary.to_pylist(), which, np.concatenate([[0], np.cumsum(sizes)]))

    @property
    def all(self) -> Mask:
        return np.ones(len(self.which), np.bool_)

    def cut(self, values: Sequence[str], keep: Mask) -> list[list[str]]:
        """For each row the values, one for each of `names`, of its strings at the places to keep."""
        return self.rows(np.array([*values, ""], dtype=object)[self.which[keep]].tolist(), keep)

    def rows(self, kept: list[Any], keep: Mask) -> list[list[Any]]:
        """What was kept of all places, as a list for each row."""
        bounds = np.concatenate([[0], np.cumsum(keep)])[self.begins]
        return [kept[start:end] for start, end in pairwise(bounds.tolist())]


@dataclass(frozen=True)
class _Tags:
    """The tagger's tags of all rows, flat, and which of them pass their threshold."""

    strings: _Strings
    probability: NDArray[np.float32]
    general: Mask
    character: Mask

    @classmethod
    def of(cls, tags: Column, part: CaptionPart) -> "_Tags":
        lists = tags.combine_chunks()
        flat = lists.flatten()
        probability = flat.field("probability").to_numpy(zero_copy_only=False)
        category = flat.field("category").cast(pa.string())
        general, character = (
            np.asarray(pc.equal(category, name), np.bool_) & (probability >= np.float32(threshold))
            for name, threshold in (("general", part.general_threshold), ("character", part.character_threshold))
        )
        return cls(_Strings.of(lists, flat.field("name")), probability, general, character)

    def tuples(self) -> list[list[Tag]]:
        """For each row the tags that pass, in their order."""
        keep = self.general | self.character
        category = np.where(self.character[keep], "character", "general").tolist()
        names = chain.from_iterable(self.strings.cut(self.strings.names, keep))
        return self.strings.rows(list(zip(names, self.probability[keep].tolist(), category, strict=True)), keep)


def _given(table: pa.Table, sources: Mapping[str, Source]) -> _Strings:
    """The tags that people gave, of the rows whose source wants them."""
    wanted = pa.array([name for name, source in sources.items() if source.sidecar_tags], pa.string())
    nothing = pa.scalar(None, table["sidecar_tags"].type)
    lists = pc.if_else(pc.is_in(table["source"], wanted), table["sidecar_tags"], nothing).combine_chunks()
    return _Strings.of(lists, lists.flatten())


def _said(tags: _Tags, given: _Strings, profile: Profile) -> list[Said]:
    """What each row's caption says of its tags: each different tag is written once for all rows."""
    characters = tags.strings.cut(tags.strings.names, tags.character)
    general = tags.strings.cut([general_tag(name, profile) for name in tags.strings.names], tags.general)
    people = given.cut([peoples_tag(name, profile) for name in given.names], given.all)
    return [Said(first, second + third) for first, second, third in zip(characters, general, people, strict=True)]


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
    begins = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])
    offsets, mask = pa.array(begins, pa.int32()), pa.array(missing)
    tags = pa.ListArray.from_arrays(offsets, pa.array(flat, pa.string()), mask=mask)
    groups = pa.ListArray.from_arrays(offsets, pa.array(_groups(made, begins), pa.int32()), mask=mask)
    words = [
        pa.array([each.words[name] if each else None for each in made], pa.string())  # type: ignore[literal-required]
        for name in (field.name for field in schema.WORDS)
    ]
    return {
        "words": pa.StructArray.from_arrays(words, fields=list(schema.WORDS), mask=pa.array(missing)),
        "caption": pa.array([each.text if each else None for each in made], pa.string()),
        "caption_tags": tags,
        "caption_groups": groups,
    }


def _groups(made: Sequence[Caption | None], begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each tag's group, flat: the place of the group's first tag in its caption."""
    numbers = np.arange(begins[-1]) - np.repeat(begins[:-1], np.diff(begins))
    for begin, each in zip(begins.tolist(), made, strict=False):
        for first, *others in each.together if each else ():
            for place in others:
                numbers[begin + place] = first
    return numbers
