"""Sources -> rows: every file that lies there, with what its sidecars know. Pictures are not opened here.

Reads: the sources' folders, tars and Parquet files. Writes: the columns of stage `index`.

Kind: pure, but for reading sources.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import pyarrow as pa

from sote.cluster.errors import SourceError
from sote.data import index_files, index_folder, index_parquet, index_tar
from sote.data.files import absolute, real
from sote.data.index_row import Row
from sote.data.recipe import Source
from sote.data.schema import written_by

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Form:
    """How one form of source is read. `ending` is that of its files, None where pictures are files themselves."""

    rows: Callable[[Source], Iterator[Row]]
    count: Callable[[Source], int]
    begins: Callable[[Source], bool]  # whether there is a file, of which the first can be read; without its content
    ending: str | None


FORMS = {
    "folder": Form(index_folder.rows, index_folder.count, index_folder.begins, None),
    "webdataset": Form(index_tar.rows, index_tar.count, index_tar.begins, index_tar.ENDING),
    "parquet": Form(index_parquet.rows, index_parquet.count, index_parquet.begins, index_parquet.ENDING),
}


def tables(sources: Sequence[Source], *, shard_rows: int) -> Iterator[pa.Table]:
    """One table for each shard, `shard_rows` rows each (the last may be shorter), in the order of sources and paths.

    Every regular file is a row, but for hidden ones and sidecars. Raises SourceError, before the first table, for what
    `check_all` finds; and on the way for a folder that is closed to us or a file about many pictures that is broken.
    """
    check_all(sources)
    rows = (row for source in sources for row in _rows(source))
    schema = written_by("index")
    while shard := list(islice(rows, shard_rows)):
        columns: dict[str, list[Any]] = {name: [row.get(name) for row in shard] for name in schema.names}
        columns["row"] = list(range(len(shard)))
        yield pa.table(columns, schema=schema)


def check_all(sources: Sequence[Source]) -> None:
    """Raise SourceError in one line for a source that cannot be used, and for files that two sources would list."""
    for source in sources:
        check(source)
    for first, second in combinations(sources, 2):
        _refuse_overlap(first, second)


def check(source: Source) -> None:
    """Raise SourceError in one line for a source that does not exist, cannot be read, or has no file in it."""
    form = FORMS[source.form]
    there = index_files.kind(source, path := absolute(source.path))
    if form.ending is None:
        if there is None:
            raise SourceError(f"source {source.name}: no such folder: {source.path}")
        if there == "file":
            raise SourceError(f"source {source.name}: {source.path} is a file, {_for_file(path)}")
    if not form.begins(source):
        ending, what = ("", "pictures") if form.ending is None else (f" {form.ending}", f"{form.ending} files")
        raise SourceError(
            f"source {source.name}: no{ending} file in {source.path}, path must name a folder with {what}"
        )


def count(source: Source) -> int:
    """How many rows a source will give. Tars are read through (headers only), other sources listed."""
    return FORMS[source.form].count(source)


def _rows(source: Source) -> Iterator[Row]:
    shared = 0
    for row in FORMS[source.form].rows(source):
        shared += bool(row.get("shared_stem"))
        yield row
    if shared:
        log.warning("pictures of one stem share their sidecars source=%s pictures=%d", source.name, shared)


def _files(source: Source) -> Iterator[index_files.Found]:
    return index_files.found(source, FORMS[source.form].ending or "")


def _for_file(path: str) -> str:
    for name, form in FORMS.items():
        if form.ending is not None and path.endswith(form.ending):
            return f'say form = "{name}"'
    return "path must name the folder that it lies in"


def _refuse_overlap(first: Source, second: Source) -> None:
    here, there = (real(absolute(source.path)) for source in (first, second))
    if here == there:
        raise SourceError(f"source {second.name}: {second.path} is {first.path} of source {first.name}, list it once")
    if first.form != second.form:
        return
    if first.form == "folder":
        for inner, outer, inside, around in ((second, first, there, here), (first, second, here, there)):
            if inside.startswith(around.rstrip("/") + "/"):
                raise SourceError(
                    f"source {inner.name}: {inner.path} lies in {outer.path} of source {outer.name}, so that its files "
                    "would be rows twice; name folders that lie apart"
                )
        return
    listed = {real(file.uri) for file in _files(first)}
    if twice := sorted(listed & {real(file.uri) for file in _files(second)}):
        raise SourceError(f"source {second.name}: {twice[0]} is listed by source {first.name} too, list it once")
