"""Exports that hold the pictures' bytes, in shards of a set number of rows: WebDataset's tars, and Parquet.

    webdataset    OUT/00000.tar with <id>.<ending>, <id>.txt (the caption) and <id>.json of each row, one after another
    parquet       OUT/00000.parquet with the columns of SCHEMA; Hugging Face's datasets shows `image` as pictures

The same rows give the same bytes.
Sources: webdataset 1.0 and Ray 2.60 (a key is a name up to its first dot, and its files lie together); Hugging Face
datasets 4.8 (features in the schema's metadata).

Kind: pure, but for files.
"""

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sote.cluster import storage
from sote.data import export_pictures
from sote.data.export_folders import dumps
from sote.data.export_pictures import LeftOut

READ_AT_ONCE = 16  # pictures, where each may lie in another place of the network
GROUP_ROWS = 64  # of a row group of Parquet: what a reader must hold for one row
# Names in the JSON, where the facts of sidecars have the names that sidecars give them, so that Sote can read them back
SIDECAR_NAMES = {"characters": "tags_character", "series": "tags_copyright", "sidecar_tags": "tags_general"}
NOT_IN_JSON = ("pick", "latent_shard", "latent_offset", "vqgan_shard", "vqgan_offset", "offset", "bytes")

Row = dict[str, Any]
Missing = list[tuple[Row, str]]

_FLAT: dict[str, pa.DataType] = {
    "text": pa.string(),
    "id": pa.string(),
    "source": pa.string(),
    "uri": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "year": pa.int32(),
    "aesthetic_score": pa.float32(),
    "quality_score": pa.float32(),
    "repeat": pa.int32(),
    "bucket": pa.string(),
}
_LISTS: dict[str, pa.DataType] = {
    "caption_tags": pa.string(),
    "tags": pa.string(),
    "tag_probabilities": pa.float32(),
    "sets": pa.string(),
}


def _value(kind: pa.DataType) -> dict[str, str]:
    return {"dtype": {"float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}


def _schema() -> pa.Schema:
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {name: _value(kind) for name, kind in _FLAT.items()}
    features |= {name: {"feature": _value(kind), "_type": "Sequence"} for name, kind in _LISTS.items()}
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": picture, **_FLAT, **{name: pa.list_(kind) for name, kind in _LISTS.items()}}
    return pa.schema(list(columns.items()), metadata={"huggingface": json.dumps({"info": {"features": features}})})


SCHEMA = _schema()


def webdataset(rows: list[Row], path: Path) -> Missing:
    """Write a tar of rows; returns those whose pictures could not be had, with the reasons."""
    missing: Missing = []
    with storage.atomic(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, found in _read(rows):
            if isinstance(found, LeftOut):
                missing.append((row, str(found)))
                continue
            files = {
                export_pictures.suffix(row): found,
                "txt": row["caption"].encode(),
                "json": dumps(facts(row)).encode(),
            }
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{row['id']}.{ending}")  # neither a time nor an owner
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return missing


def parquet(rows: list[Row], path: Path) -> Missing:
    """Write a Parquet file of rows; returns those whose pictures could not be had, with the reasons."""
    missing: Missing = []
    # the pictures are compressed already
    with storage.atomic(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="none") as writer:
        for group in _groups(_read(rows), GROUP_ROWS):
            missing += [(row, str(found)) for row, found in group if isinstance(found, LeftOut)]
            cells = [_cells(row, found) for row, found in group if isinstance(found, bytes)]
            writer.write_table(pa.Table.from_pylist(cells, schema=SCHEMA))
    return missing


def facts(row: Row) -> Row:
    """What is known of a row, for its JSON; what is not known is left out."""
    named = {SIDECAR_NAMES.get(name, name): value for name, value in row.items() if name not in NOT_IN_JSON}
    return {name: value for name, value in named.items() if value is not None}


def _cells(row: Row, data: bytes) -> Row:
    found = {name: row.get(name) for name in SCHEMA.names}
    return found | {
        "image": {"bytes": data, "path": f"{row['id']}.{export_pictures.suffix(row)}"},
        "text": row["caption"],
        "tags": [tag["name"] for tag in row["tags"] or ()],
        "tag_probabilities": [tag["probability"] for tag in row["tags"] or ()],
    }


def _read(rows: list[Row]) -> Iterator[tuple[Row, bytes | LeftOut]]:
    """Each row with its picture's bytes, in order; some are read ahead."""
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for group in _groups(rows, READ_AT_ONCE):
            yield from zip(group, pool.map(_read_one, group), strict=True)


def _read_one(row: Row) -> bytes | LeftOut:
    try:
        return export_pictures.read(row)
    except LeftOut as error:
        return error


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while group := list(itertools.islice(rest, size)):
        yield group
