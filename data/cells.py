"""Pictures in the cells of a Parquet file: an image column of Hugging Face (struct of bytes and path), or plain bytes.

Kind: pure, but for reading files.
"""

import errno
import threading
from collections import OrderedDict
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sote.data import files

PREFERRED = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")  # of several image columns, the first of these
FILES_KEPT = 4  # open files that a process keeps

_lock = threading.Lock()


class Cells:
    """One open Parquet file. `column` is the leaf that holds the pictures' bytes, such as `image.bytes`."""

    def __init__(self, uri: str) -> None:
        """Raises OSError, pa.ArrowInvalid (not Parquet) and LookupError (no image column)."""
        self._stack = ExitStack()
        try:
            self.file = pq.ParquetFile(self._stack.enter_context(files.opened(uri)))
            self.column = image_column(self.file.schema_arrow)
        except BaseException:
            self._stack.close()
            raise
        self.rows: int = self.file.metadata.num_rows
        self._group: tuple[int, Any] | None = None

    def get(self, row: int) -> bytes | None:
        """The bytes in one row. The last row group is kept, so that rows after one another are read once."""
        number = row
        for group in range(self.file.metadata.num_row_groups):
            rows = self.file.metadata.row_group(group).num_rows
            if number < rows:
                return _cell(self._of_group(group)[number])
            number -= rows
        raise FileNotFoundError(errno.ENOENT, f"no row {row} in the Parquet file")

    def nulls(self, group: int) -> set[int]:
        """The rows of a row group without a picture; pictures are read only where its statistics do not say `none`."""
        chunk = next(
            chunk
            for chunk in map(self.file.metadata.row_group(group).column, range(self.file.metadata.num_columns))
            if chunk.path_in_schema == self.column
        )
        statistics: Any = chunk.statistics
        if statistics is not None and statistics.has_null_count and statistics.null_count == 0:
            return set()
        return {number for number, cell in enumerate(self._of_group(group)) if _cell(cell) is None}

    def forget(self) -> None:
        """Let go of the row group that is held."""
        self._group = None

    def close(self) -> None:
        self._stack.close()

    def _of_group(self, group: int) -> Any:
        if self._group is None or self._group[0] != group:
            self._group = None  # before the next is read, or there are two at once
            self._group = (group, self.file.read_row_group(group, columns=[self.column], use_threads=False).column(0))
        return self._group[1]


def image_column(schema: pa.Schema) -> str:
    """The leaf column with the pictures' bytes. Raises LookupError where there is none."""
    found = {name: leaf for name in schema.names if (leaf := _leaf(schema.field(name)))}
    for name in (*PREFERRED, *found):
        if name in found:
            return found[name]
    raise LookupError("no image column")


def read(uri: str, row: int) -> bytes:
    """The picture in one row of a Parquet file. Raises OSError, also for a cell that holds none."""
    with _lock:
        try:
            data = _kept(uri).get(row)
        except (pa.ArrowException, LookupError) as error:
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", uri) from error
    if data is None:
        raise OSError(errno.ENODATA, "image cell is null", uri)
    return data


_open: OrderedDict[str, Cells] = OrderedDict()


def _kept(uri: str) -> Cells:
    if uri not in _open:
        while len(_open) >= FILES_KEPT:
            _open.popitem(last=False)[1].close()
        _open[uri] = Cells(uri)
    _open.move_to_end(uri)
    for other in _open.values():  # one row group at a time is held in memory
        if other is not _open[uri]:
            other.forget()
    return _open[uri]


def _leaf(field: Any) -> str | None:
    if _is_bytes(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type):
        names = {part.name: part.type for part in field.type}
        if "bytes" in names and _is_bytes(names["bytes"]):
            return f"{field.name}.bytes"
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _cell(scalar: Any) -> bytes | None:
    value = scalar.as_py()
    if isinstance(value, dict):
        value = value["bytes"]
    return value or None
