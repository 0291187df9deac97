"""Which tars or Parquet files a source names: one file, a folder of them, a range in braces or a glob.

Kind: pure, but for listing folders.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from sote.cluster.errors import SourceError
from sote.data import files, index_folder
from sote.data.index_row import Row, blank, not_a_picture, suffix, year_in
from sote.data.recipe import Source

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """One file of a source. `wanted`: it has the source's ending; `year` is what its stem and folders say."""

    uri: str
    size: int | None
    wanted: bool
    year: str | None


def found(source: Source, ending: str) -> Iterator[Found]:
    """The files that a source names, in their order; of a folder also those that have another ending.

    Raises SourceError for one that is named and does not exist, and for a folder that cannot be read.
    """
    path = files.absolute(source.path)
    if (there := kind(source, path)) == "folder":
        for folder, names in index_folder.walk(source, path, facts=False):
            for name in names:
                year = year_in([PurePosixPath(name).stem]) or folder.year
                yield Found(files.join(folder.uri, name), folder.size(name), suffix(name) == ending, year)
        return
    for uri in [path] if there == "file" else _named(source, path):
        above = PurePosixPath(uri)
        year = year_in([above.stem, *(parent.name for parent in _within(above, path))])
        yield Found(uri, _size(source, uri), wanted=True, year=year)


def other(source: Source, file: Found) -> Row:
    """The row of a file in a folder of tars (or Parquet) that is none."""
    return not_a_picture(blank(source, file.uri, size=file.size), file.uri)


def kind(source: Source, uri: str) -> str | None:
    """Whether a folder or a file lies there, or nothing. Raises SourceError where that cannot be told."""
    try:
        return files.kind(uri)
    except OSError as error:
        raise unreadable(source, uri, error) from None
    except SourceError as error:
        raise SourceError(f"source {source.name}: {error}") from None


def unreadable(source: Source, uri: str, error: OSError) -> SourceError:
    """The error of a file that cannot be read. It ends the run: at this point that costs little, a lost tar much."""
    return SourceError(
        f"source {source.name}: {uri} cannot be read ({error.strerror or error}); mend it or leave it out"
    )


def expanded(pattern: str) -> Iterator[str]:
    """The paths that a pattern with braces stands for: `{00000..00012}` a range, `{a,b}` a choice."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    for part in _choices(braces[1]):
        yield from expanded(pattern[: braces.start()] + part + pattern[braces.end() :])


def _choices(inner: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(inner)
    if numbers is None:
        yield from inner.split(",")
        return
    first, last = int(numbers[1]), int(numbers[2])
    width = len(numbers[1]) if numbers[1].startswith("0") else 0
    for number in range(first, last + 1):
        yield f"{number:0{width}}"


def _named(source: Source, path: str) -> Iterator[str]:
    for pattern in expanded(path):
        matching = sorted(files.matching(pattern)) if _GLOB.search(pattern) else [pattern]
        if not matching or (matching == [pattern] and kind(source, pattern) != "file"):
            what = "no file matches" if _GLOB.search(pattern) else "no such file:"
            raise SourceError(f"source {source.name}: {what} {pattern}; mend path")
        yield from matching


def _size(source: Source, uri: str) -> int | None:
    try:
        return files.size(uri)
    except OSError as error:
        raise unreadable(source, uri, error) from None


def _within(file: PurePosixPath, path: str) -> Iterator[PurePosixPath]:
    """The folders of a file, the nearest first, down to the last that the source's path names without a pattern."""
    fixed = PurePosixPath(re.split(r"[*?\[{]", path)[0] + "x").parent
    yield from itertools.takewhile(lambda folder: folder.is_relative_to(fixed), file.parents)
