"""The picked rows of a curate run, as a training holds them: arrays, each aligned with the others, sorted by id.

Six million rows of thirty tags each take 1.5 GB: a tag is a number, captions are not kept (they are their tags joined),
and the catalogue is read one row group at a time.

Reads: catalogue.parquet, here or wherever fsspec reaches, from where it is brought to the node once.
Kind: pure, but for reading files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from sote.cluster.errors import SourceError
from sote.data import files
from sote.data.buckets import bucket_for
from sote.train import nearby
from sote.train.recipe import TrainRecipe

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

CATALOGUE = "catalogue.parquet"
ALWAYS = ("id", "caption", "caption_tags", "pick", "repeat", "bucket")
LATENTS = ("latent_shard", "latent_offset")
VQGAN = ("vqgan_shard", "vqgan_offset")
PICTURES = ("uri", "width", "height", "crop")
SETS, GROUPS = "sets", "caption_groups"
OPTIONAL = {GROUPS: pa.list_(pa.int32()), "offset": pa.int64(), "bytes": pa.int64()}  # older catalogues have none
CODED = ["caption_tags.list.element", "bucket", LATENTS[0], VQGAN[0]]  # strings of few kinds, read as dictionaries
LONG = ("id", "uri")  # get 64-bit offsets: their six million strings may be more than 2 GiB
MEND = {
    LATENTS[0]: "curate again with a [latents] table, or set data.encode = true",
    VQGAN[0]: "name the set of the curate recipe's latents.vqgan_set as data.set, or set data.encode = true",
}

Strings: TypeAlias = "pa.ChunkedArray[Any]"
Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.integer[Any]]]


@dataclass(frozen=True)
class Needs:
    """What a training reads of each row."""

    latents: bool = False  # of Stage C
    vqgan: bool = False  # latents of Stage A
    pictures: bool = False

    @classmethod
    def of(cls, recipe: TrainRecipe) -> "Needs":
        """Stage B sees the encoder's latents at scales that no curate run has made, unless the scale is always 1."""
        encode = recipe.data.encode
        if recipe.model.stage == "prior":
            return cls(latents=not encode, pictures=encode)
        pictures = encode or recipe.diffusion.least_encoder_scale < 1
        return cls(latents=not pictures, vqgan=not encode, pictures=pictures)


@dataclass(frozen=True)
class Cut:
    """How pictures are cut into buckets, in pixels; the defaults are the seed's."""

    resolution: int = 1024
    step: int = 64


@dataclass(frozen=True)
class Places:
    """Where the latents of each row lie: `which` indexes `shards`, files relative to the run's latents folder."""

    shards: tuple[str, ...]
    which: Numbers
    offset: Numbers


@dataclass(frozen=True)
class Tags:
    """The tags of each row, flat: `names[which[begins[row] : ends[row]]]`; those of one `group` belong together."""

    names: "pa.Array[Any]"
    which: Numbers
    group: Numbers | None  # None: every tag by itself
    begins: Numbers
    ends: Numbers

    def of(self, row: int) -> tuple[list[str], list[int]]:
        """The tags of a row, and the number of each one's group."""
        place = slice(int(self.begins[row]), int(self.ends[row]))
        names = [str(self.names[each].as_py()) for each in self.which[place].tolist()]
        return names, list(range(len(names))) if self.group is None else self.group[place].tolist()


@dataclass(frozen=True)
class Files:
    """The picture of each row: what data/places.py reads it by, and [N,4] `crop` (left, top, right, bottom)."""

    uri: Strings
    offset: Strings
    bytes: Strings
    crop: Numbers


@dataclass(frozen=True)
class Rows:
    """The picked rows of a catalogue. Arrays are aligned; `bucket` indexes `buckets` (`<width>x<height>`)."""

    id: Strings
    tags: Tags
    repeat: Numbers
    bucket: Numbers
    buckets: tuple[str, ...]
    latents: Places | None = None
    vqgan: Places | None = None
    files: Files | None = None

    def __len__(self) -> int:
        return len(self.repeat)


def read_for(recipe: TrainRecipe, *, cut: Cut = Cut()) -> Rows:
    """The rows that a recipe trains on. Raises what `read_rows` raises."""
    return read_rows(recipe.data.curated, chosen=recipe.data.set, needs=Needs.of(recipe), cut=cut)


def read_rows(
    curated: str | Path, *, chosen: str | None = None, needs: Needs = Needs(latents=True), cut: Cut = Cut()
) -> Rows:
    """Read the picked rows of a curate run, or those of its set `chosen`, where each counts once. Rows are sorted by
    id: the order of curation does not matter. `cut` is for pictures of a run that has no buckets.

    Raises SourceError: no catalogue, nothing picked, no such set, or picked rows that lack what the training needs.
    """
    uri = files.join(files.absolute(str(curated)), CATALOGUE)
    table = _read(uri, needs, chosen)
    _refuse_holes(uri, table, needs)
    order = pc.sort_indices(table["id"]).to_numpy()
    buckets, bucket, crop = _buckets(uri, table, cut) if needs.pictures else (*_coded(table["bucket"]), None)
    sorted_names = sorted(buckets)
    return Rows(
        id=table["id"].take(order),
        tags=_tags(uri, table, order),
        repeat=table["repeat"].to_numpy()[order],
        bucket=np.array([sorted_names.index(name) for name in buckets], np.int64)[bucket[order]],
        buckets=tuple(sorted_names),
        latents=_places(table, LATENTS, order) if needs.latents else None,
        vqgan=_places(table, VQGAN, order) if needs.vqgan else None,
        files=_files(table, crop, order) if crop is not None else None,
    )


def _read(uri: str, needs: Needs, chosen: str | None) -> pa.Table:
    """The picked rows of the set, in the catalogue's order; of captions only whether they are there."""
    wanted = [*ALWAYS, *(LATENTS if needs.latents else ()), *(VQGAN if needs.vqgan else ())]
    wanted += [*(PICTURES if needs.pictures else ()), *((SETS,) if chosen is not None else ())]
    picked, parts, known = 0, [], set[str]()
    try:
        with files.opened(nearby.near(uri)) as there, pq.ParquetFile(there, read_dictionary=CODED) as file:
            have = file.schema_arrow.names
            if lacking := [name for name in sorted(wanted) if name not in have]:
                raise SourceError(f"{uri}: data.curated: has no column {lacking[0]!r}; curate again")
            wanted += [name for name in OPTIONAL if name in have]
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=wanted)
                table = table.filter(table["pick"])
                picked += table.num_rows
                parts.append(_slim(table if chosen is None else _members(table, chosen, known)))
    except FileNotFoundError:
        folder = uri.removesuffix(f"/{CATALOGUE}")
        raise SourceError(f"{folder}: data.curated: has no {CATALOGUE}; run `sote curate` on it to the end") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{uri}: data.curated: cannot be read ({' '.join(str(error).split())})") from None
    if not picked:
        raise SourceError(f"{uri}: data.curated: not one row is picked; loosen the recipe's [select] and curate again")
    found = pa.concat_tables(parts)
    if not found.num_rows:
        names = ", ".join(sorted(known)) or "none"
        raise SourceError(f"{uri}: data.set: no picked row is of the set {chosen!r}; sets with rows: {names}")
    return found


def _members(picked: pa.Table, chosen: str, known: set[str]) -> pa.Table:
    """The rows of one set, each once. The names of all sets are put into `known`."""
    sets = picked[SETS].combine_chunks()
    names = pc.list_flatten(sets)
    known.update(str(name) for name in names.unique().to_pylist())
    places = pc.filter(pc.list_parent_indices(sets), pc.equal(names, pa.scalar(chosen)))
    table = picked.take(places)
    once = pa.array(np.ones(table.num_rows, dtype=np.int32))
    return table.set_column(table.column_names.index("repeat"), "repeat", once)


def _slim(table: pa.Table) -> pa.Table:
    """A row group without what is only looked at, with 64-bit offsets, and nulls for columns that it lacks."""
    columns: dict[str, Any] = {name: table[name] for name in table.column_names if name not in (SETS, "pick")}
    columns["caption"] = pc.is_valid(table["caption"])
    columns |= {name: columns[name].cast(pa.large_string()) for name in LONG if name in columns}
    columns |= {name: pa.array([None] * table.num_rows, kind) for name, kind in OPTIONAL.items() if name not in columns}
    return pa.table(columns)


def _refuse_holes(uri: str, table: pa.Table, needs: Needs) -> None:
    """Raise SourceError for a picked row that lacks something: training does not guess."""
    missing = {"caption": table.num_rows - (pc.sum(table["caption"]).as_py() or 0)}
    wanted = ["id", "caption_tags", "repeat", *(LATENTS if needs.latents else ()), *(VQGAN if needs.vqgan else ())]
    wanted += ["uri", "width", "height"] if needs.pictures else []
    if not needs.pictures or table["bucket"].null_count < table.num_rows:
        wanted += ["bucket", *(["crop"] if needs.pictures else [])]
    for name, count in (missing | {name: table[name].null_count for name in wanted}).items():
        if count:
            mend = MEND.get(name, "curate again")
            raise SourceError(f"{uri}: column {name}: missing in {count} of {table.num_rows} picked rows; {mend}")
    if pc.min(table["repeat"]).as_py() < 1:
        raise SourceError(f"{uri}: column repeat: a picked row is repeated less than once; curate again")


def _tags(uri: str, table: pa.Table, order: Numbers) -> Tags:
    """The tags of all rows under one list of names; rows in `order`."""
    lists = table["caption_tags"].chunks
    coded = [
        each if pa.types.is_dictionary(each.type) else each.dictionary_encode() for each in map(pc.list_flatten, lists)
    ]
    names, which = _coded(pa.chunked_array(coded))
    sizes = np.concatenate([pc.list_value_length(each).to_numpy() for each in lists])
    ends = np.cumsum(sizes, dtype=np.int64)
    group = None
    if table[GROUPS].null_count < table.num_rows:
        if not pc.all(pc.equal(pc.list_value_length(table[GROUPS]), pa.array(sizes))).as_py():
            raise SourceError(f"{uri}: column {GROUPS}: has not one number for each of caption_tags; curate again")
        group = np.concatenate([pc.list_flatten(each).to_numpy() for each in table[GROUPS].chunks])
        group = group.astype(np.min_scalar_type(int(group.max(initial=0))))
    return Tags(pa.array(names, pa.large_string()), which, group, (ends - sizes)[order], ends[order])


def _places(table: pa.Table, columns: tuple[str, str], order: Numbers) -> Places:
    shards, which = _coded(table[columns[0]])
    return Places(shards, which[order], table[columns[1]].to_numpy()[order])


def _files(table: pa.Table, crop: Numbers, order: Numbers) -> Files:
    uri, offset, size = (table[name].take(order) for name in ("uri", "offset", "bytes"))
    return Files(uri, offset, size, crop[order])


def _coded(column: Any) -> tuple[tuple[str, ...], Numbers]:
    """The different strings of a column, and which of them each place has."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    which = np.concatenate([each.indices.to_numpy() for each in column.chunks])
    names = column.chunk(0).dictionary.to_pylist()
    used = np.bincount(which, minlength=len(names)) > 0  # others are of rows that are not picked
    kept = tuple(str(name) for name, is_used in zip(names, used.tolist(), strict=True) if is_used)
    return kept, (np.cumsum(used, dtype=np.int32) - 1)[which]


def _buckets(uri: str, table: pa.Table, cut: Cut) -> tuple[tuple[str, ...], Numbers, Numbers]:
    """The buckets, which of them each row has, and each row's crop: the catalogue's, else by the rule of curation."""
    if table["bucket"].null_count < table.num_rows:
        crops = np.concatenate([pc.list_flatten(each).to_numpy() for each in table["crop"].chunks]).reshape(-1, 4)
        return *_coded(table["bucket"]), crops
    sides = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1)
    sizes, which = np.unique(sides, axis=0, return_inverse=True)
    found = [bucket_for(int(width), int(height), resolution=cut.resolution, step=cut.step) for width, height in sizes]
    if small := sum(found[at] is None for at in which.tolist()):
        raise SourceError(
            f"{uri}: columns width, height: {small} of {table.num_rows} picked rows are smaller than any bucket "
            f"({cut.step} px a side); raise the least size in the curate recipe and curate again"
        )
    fit = [bucket for bucket in found if bucket is not None]
    names = tuple(dict.fromkeys(bucket.name for bucket in fit))
    places = np.array([names.index(bucket.name) for bucket in fit])
    return names, places[which], np.array([bucket.crop for bucket in fit], np.int32)[which]
