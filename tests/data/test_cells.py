"""Pictures in Parquet."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sote.data import cells
from sote.data.cells import Cells

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, *, rows: int = 10, group: int = 4, nulls: tuple[int, ...] = ()) -> str:
    values = [None if number in nulls else {"bytes": b"%d" % number, "path": "a.jpg"} for number in range(rows)]
    pq.write_table(pa.table({"image": pa.array(values, type=HF)}), path, row_group_size=group)
    return str(path)


@pytest.mark.parametrize(
    ("columns", "leaf"),
    [
        ({"image": HF, "text": pa.string()}, "image.bytes"),
        ({"jpg": pa.binary(), "embedding": pa.binary()}, "jpg"),
        ({"mask": HF, "image": HF}, "image.bytes"),
        ({"photo": pa.large_binary()}, "photo"),
        ({"b": HF, "a": HF}, "b.bytes"),
    ],
)
def test_the_image_column_is_known_by_its_type_then_by_its_name(columns: dict[str, Any], leaf: str) -> None:
    assert cells.image_column(pa.schema(list(columns.items()))) == leaf


def test_a_table_without_bytes_has_no_image_column() -> None:
    with pytest.raises(LookupError):
        cells.image_column(pa.schema([("image", pa.string()), ("other", pa.struct([("path", pa.string())]))]))


def test_a_row_group_is_read_once_for_rows_after_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet")
    asked: list[int] = []
    read = pq.ParquetFile.read_row_group

    def counted(self: Any, group: int, **more: Any) -> Any:
        asked.append(group)
        return read(self, group, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    assert [cells.read(path, number) for number in range(10)] == [b"%d" % number for number in range(10)]
    assert asked == [0, 1, 2]


def test_one_row_group_of_all_files_is_held_and_few_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.parquet") for number in range(6)]
    for _ in range(2):
        assert [cells.read(path, 9) for path in paths] == [b"9"] * 6
    assert len(cells._open) == cells.FILES_KEPT
    assert sum(each._group is not None for each in cells._open.values()) == 1


def test_nulls_are_found_by_row_group(tmp_path: Path) -> None:
    file = Cells(write(tmp_path / "a.parquet", nulls=(1, 9)))
    assert [file.nulls(group) for group in range(3)] == [{1}, set(), {1}]
    file.close()
