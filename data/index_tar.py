"""WebDataset: tars of pictures with their sidecars, read raw. Each member that is no sidecar is a row.

Files of one key (the name up to the first dot) belong together; the key's `.json`, `.txt` and `.caption` belong to each
of its pictures. A tar that breaks off gives the rows before the break and one row for itself, with its error.

Kind: pure, but for reading tars.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from sote.data import files, index_files, places, sidecars, tars
from sote.data.index_files import Found
from sote.data.index_folder import SIDECAR_SUFFIXES
from sote.data.index_row import Row, blank, described, is_picture, not_a_picture, suffix, year_in
from sote.data.recipe import Source
from sote.data.sidecar_facts import BrokenSidecar, Sidecar
from sote.data.tars import BrokenTar, Member

ENDING = ".tar"


@dataclass
class Content:
    """What one tar holds. `broken` says why there may be more."""

    members: list[Member] = field(default_factory=list)
    sidecars: dict[str, Sidecar | BrokenSidecar] = field(default_factory=dict)
    broken: str | None = None


def rows(source: Source) -> Iterator[Row]:
    """The rows of a source in the order of its tars and their members."""
    for file in index_files.found(source, ENDING):
        if file.wanted:
            yield from _rows(source, file)
        else:
            yield index_files.other(source, file)


def count(source: Source) -> int:
    """How many rows there will be: every tar's headers are read."""
    return sum(_count(source, file) if file.wanted else 1 for file in index_files.found(source, ENDING))


def begins(source: Source) -> bool:
    """Whether there is a tar. Raises SourceError as `rows` does, as far as the first."""
    first = next((file for file in index_files.found(source, ENDING) if file.wanted), None)
    return first is not None


def _rows(source: Source, file: Found) -> Iterator[Row]:
    content = _content(source, file, facts=True)
    keys = Counter(_key(member.name) for member in content.members if is_picture(member.name))
    for member in content.members:
        yield _row(source, member, file=file, content=content, shared=keys[_key(member.name)] > 1)
    if content.broken:
        yield blank(source, file.uri, size=file.size) | {"index_error": f"index: {content.broken}"}


def _count(source: Source, file: Found) -> int:
    content = _content(source, file, facts=False)
    return len(content.members) + bool(content.broken)


def _content(source: Source, file: Found, *, facts: bool) -> Content:
    found = Content()
    try:
        with files.opened(file.uri) as tar:
            for member in tars.members(tar, size=file.size):
                if _is_hidden(member.name):
                    continue
                if suffix(member.name) not in SIDECAR_SUFFIXES:
                    found.members.append(member)
                elif facts and suffix(member.name) in sidecars.PARSERS:
                    tar.seek(member.offset)
                    found.sidecars[member.name] = sidecars.parse(member.name, tar.read(member.size))
    except BrokenTar as error:
        found.broken = str(error)
    except OSError as error:
        raise index_files.unreadable(source, file.uri, error) from None
    return found


def _row(source: Source, member: Member, *, file: Found, content: Content, shared: bool) -> Row:
    row = blank(source, places.in_tar(member.name, file.uri), size=member.size) | {"offset": member.offset}
    if "index_error" in row:
        return row
    if not member.regular:
        return row | {"bytes": None, "offset": None, "index_error": "index: a link or a sparse file in a tar"}
    if not is_picture(member.name):
        return not_a_picture(row, member.name)
    row["shared_stem"] = shared
    names = sidecars.beside(member.name, content.sidecars, shared=shared, key=_key(member.name))
    try:
        sidecar = sidecars.together(names, content.sidecars, ())
    except BrokenSidecar as error:
        return row | {"index_error": f"index: {error}"}
    year = year_in(parent.name for parent in PurePosixPath(member.name).parents) or file.year
    return described(row, source, sidecar, year=year)


def _key(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/"))
