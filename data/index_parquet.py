"""Parquet files of pictures, as Hugging Face's datasets are: each row is a row, its other columns are its sidecar.

Kind: pure, but for reading Parquet.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa

from sote.cluster.errors import SourceError
from sote.data import index_files, places, sidecar_json
from sote.data.cells import Cells
from sote.data.index_files import Found
from sote.data.index_row import Row, blank, described
from sote.data.recipe import Source
from sote.data.sidecar_facts import BrokenSidecar

ENDING = ".parquet"

Record = dict[str, Any]


def rows(source: Source) -> Iterator[Row]:
    """The rows of a source in the order of its files and their rows."""
    for file in index_files.found(source, ENDING):
        if not file.wanted:
            yield index_files.other(source, file)
            continue
        cells = _opened(source, file)
        if isinstance(cells, str):
            yield blank(source, file.uri, size=file.size) | {"index_error": f"index: {cells}"}
            continue
        with closing(cells):
            yield from _rows(source, file, cells)


def count(source: Source) -> int:
    """How many rows there will be: every file's footer is read."""
    total = 0
    for file in index_files.found(source, ENDING):
        cells = _opened(source, file) if file.wanted else ""
        if isinstance(cells, str):
            total += 1
        else:
            with closing(cells):
                total += cells.rows
    return total


def begins(source: Source) -> bool:
    """Whether there is a Parquet file. Raises SourceError as `rows` does, as far as the first."""
    first = next((file for file in index_files.found(source, ENDING) if file.wanted), None)
    cells = _opened(source, first) if first else None
    if isinstance(cells, Cells):
        cells.close()
    return first is not None


def _opened(source: Source, file: Found) -> Cells | str:
    """The file, or why it cannot be read. Raises SourceError, also where no column has pictures."""
    try:
        return Cells(file.uri)
    except LookupError:
        raise SourceError(
            f"source {source.name}: {file.uri} has no column of pictures (bytes, or a struct with bytes); "
            "name files that have one"
        ) from None
    except pa.ArrowException:
        return "not a Parquet file"
    except OSError as error:
        raise index_files.unreadable(source, file.uri, error) from None


def _rows(source: Source, file: Found, cells: Cells) -> Iterator[Row]:
    first = 0
    for group in range(cells.file.metadata.num_row_groups):
        rows = cells.file.metadata.row_group(group).num_rows
        try:
            nulls = cells.nulls(group)
            records = _records(cells, group)
        except (pa.ArrowException, OSError, ValueError):
            for number in range(first, first + rows):
                yield _row(source, file, number) | {"index_error": "index: Parquet row group could not be read"}
        else:
            for number in range(rows):
                row = _row(source, file, first + number)
                yield _described(row, source, records[number], is_null=number in nulls, year=file.year)
        first += rows


def _records(cells: Cells, group: int) -> list[Record]:
    """What the columns beside the picture say in the rows of a row group."""
    columns = [name for name in cells.file.schema_arrow.names if name in sidecar_json.FIELDS]
    if not columns:
        return [{}] * cells.file.metadata.row_group(group).num_rows
    found: list[Record] = cells.file.read_row_group(group, columns=columns, use_threads=False).to_pylist()
    return found


def _row(source: Source, file: Found, number: int) -> Row:
    """Size None: it is not known before a picture is read."""
    return blank(source, places.in_parquet(number, file.uri), size=None) | {"offset": number}


def _described(row: Row, source: Source, record: Record, *, is_null: bool, year: str | None) -> Row:
    if is_null:
        return row | {"index_error": "index: image cell is null"}
    try:
        return described(row, source, sidecar_json.of_record(record), year=year) | {"shared_stem": False}
    except BrokenSidecar as error:
        return row | {"index_error": f"index: {error}"}
