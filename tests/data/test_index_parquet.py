"""Parquet files of pictures."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sote.cluster.errors import SourceError
from sote.data import index_parquet, places
from sote.data.recipe import Source

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, images: list[bytes | None], **columns: list[Any]) -> Path:
    cells = pa.array([image and {"bytes": image, "path": None} for image in images], type=HF)
    pq.write_table(pa.table({"image": cells, **columns}), path, row_group_size=2)
    return path


def rows(path: Path | str, **more: Any) -> list[dict[str, Any]]:
    source = Source(name="mine", path=str(path), form="parquet", **more)
    found = list(index_parquet.rows(source))
    assert index_parquet.count(source) == len(found)
    return found


def test_every_row_is_a_row_with_its_columns_as_a_sidecar(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        [b"1", b"2", b"3"],
        text=["x, y", None, "z"],
        tags=[["a, b"], [], None],
        date=[datetime.datetime(2012, 1, 2), None, None],
        json=[None, json.dumps({"tags_character": ["c"], "created_at": "2013-01-01"}), None],
        embedding=[b"0", b"0", b"0"],
    )
    found = rows(path)
    assert [row["uri"] for row in found] == [f"parquet://{number}::{path}" for number in range(3)]
    assert [row["offset"] for row in found] == [0, 1, 2]
    assert [row["post_tags"] for row in found] == [("a, b", "x", "y"), (), ("z",)]
    assert [row["post_date"] for row in found] == ["2012-01-02T00:00:00", "2013-01-01", None]
    assert found[1]["post_characters"] == ("c",)
    assert [places.read(row["uri"], offset=row["offset"], bytes=None) for row in found] == [b"1", b"2", b"3"]


def test_a_cell_without_a_picture_and_a_broken_post_are_errors_of_their_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"1", None, b"3"], json=[None, None, "{"])
    assert [row.get("index_error") for row in rows(path)] == [
        None,
        "index: image cell is null",
        "index: sidecar is not valid JSON",
    ]


def test_a_file_that_is_no_parquet_is_a_row_and_the_others_stay(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [b"1"])
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    (tmp_path / "c.md").touch()
    found = rows(tmp_path)
    assert [row.get("index_error") or row.get("index_skip") for row in found] == [
        None,
        "index: not a Parquet file",
        "index: not a picture file (.md)",
    ]


def test_broken_data_costs_its_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, [b"1", b"2", b"3"], text=["first", "second", "third"])
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
    assert chunk.path_in_schema == "text"
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    found = rows(path)
    assert [row.get("index_error") for row in found] == ["index: Parquet row group could not be read"] * 2 + [None]
    assert found[2]["post_tags"] == ("third",)


def test_the_year_of_a_file_is_that_of_its_rows(tmp_path: Path) -> None:
    write(tmp_path / "2012.parquet", [b"1"])
    assert [row["post_date"] for row in rows(tmp_path / "*.parquet", date=("sidecar", "folder"))] == ["2012"]


def test_a_file_without_pictures_is_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet has no column of pictures"):
        rows(tmp_path)
