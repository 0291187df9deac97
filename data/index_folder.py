"""Folders of pictures: every file is a row, with what lies beside it.

Memory holds the names of one folder at each depth.

Kind: pure, but for reading folders and sidecars.
"""

import logging
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sote.cluster.errors import SourceError
from sote.data import files, sidecar_meta, sidecars
from sote.data.files import Listing
from sote.data.index_row import Row, blank, described, fit, is_picture, not_a_picture, suffix, year_in
from sote.data.recipe import Source
from sote.data.sidecar_facts import BrokenSidecar, Sidecar
from sote.data.sidecar_meta import Meta

SIDECAR_SUFFIXES = {".json", ".jsonl", ".txt", ".caption"}
AT_ONCE = 256  # files whose sidecars are asked for together, which counts where they come from a server

log = logging.getLogger(__name__)
Above = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Folder:
    """One folder of a source. `files` are sorted; `shared` are the stems that several of its pictures have."""

    uri: str
    files: list[str]
    listing: Listing
    sidecars: set[str]
    shared: set[str]
    year: str | None
    metas: list[Meta] = field(default_factory=list)

    def size(self, name: str) -> int | None:
        """Size of one of its files in bytes, if that can be known."""
        if files.is_local(self.uri):
            return files.size(files.join(self.uri, name))
        return self.listing.sizes[name]


def rows(source: Source) -> Iterator[Row]:
    """The rows of a source in the order of their paths. Raises SourceError for a folder or meta file it cannot read."""
    for folder, names in walk(source, files.absolute(source.path)):
        yield from _rows(source, folder, names)


def count(source: Source) -> int:
    """How many rows there will be."""
    return sum(len(names) for _, names in walk(source, files.absolute(source.path), facts=False))


def begins(source: Source) -> bool:
    """Whether there is a file. Raises SourceError as `rows` does, as far as the first."""
    return next(walk(source, files.absolute(source.path)), None) is not None


def walk(
    source: Source, uri: str, *, facts: bool = True, parent: Folder | None = None, above: Above = frozenset()
) -> Iterator[tuple[Folder, list[str]]]:
    """The folder at `uri` and those below it, with some of their files at a time, in the order of their paths.

    Local links are followed, but not to a folder that lies above (`above`: device and inode of those). Without `facts`
    no file about many pictures is read.
    """
    here = _identity(uri)
    if here is not None and here in above:
        return
    folder = _folder(source, uri, parent=parent)
    own = _metas(source, folder) if facts else []
    folder.metas.extend([*own, *(parent.metas if parent else ())])
    start = 0
    for name in sorted(folder.listing.folders):
        stop = bisect_left(folder.files, name)
        yield from _pieces(folder, start, stop)
        below = above | {here} if here is not None else above
        yield from walk(source, files.join(uri, name), facts=facts, parent=folder, above=below)
        start = stop
    yield from _pieces(folder, start, len(folder.files))
    for meta in own:
        if unused := len(meta.records) - len(meta.used):
            log.warning("records of no picture source=%s file=%s records=%d", source.name, meta.uri, unused)


def _pieces(folder: Folder, start: int, stop: int) -> Iterator[tuple[Folder, list[str]]]:
    for at in range(start, stop, AT_ONCE):
        yield folder, folder.files[at : min(at + AT_ONCE, stop)]


def _folder(source: Source, uri: str, *, parent: Folder | None) -> Folder:
    try:
        listing = files.listing(uri)
    except OSError as error:
        raise SourceError(f"source {source.name}: {fit(uri)} cannot be read ({error.strerror or error})") from None
    except SourceError as error:
        raise SourceError(f"source {source.name}: {error}") from None
    beside = {name for name in listing.files if suffix(name) in SIDECAR_SUFFIXES or name == sidecar_meta.CSV}
    names = sorted(name for name in listing.files if name not in beside)
    listing.files.clear()  # they are in `names`
    year = year_in([uri.rpartition("/")[2]]) or (parent.year if parent else None)
    return Folder(uri, names, listing, beside, _shared(names), year)


def _identity(uri: str) -> tuple[int, int] | None:
    """What tells a local folder from all others, however it is reached."""
    if not files.is_local(uri):
        return None
    try:
        found = Path(uri).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _shared(names: Sequence[str]) -> set[str]:
    seen: set[str] = set()
    shared: set[str] = set()
    for stem in (sidecars.stem_of(name) for name in names if is_picture(name)):
        (shared if stem in seen else seen).add(stem)
    return shared


def _metas(source: Source, folder: Folder) -> list[Meta]:
    """The files about many pictures in a folder: by their form, of those that belong to no file there."""
    candidates = [name for name in folder.sidecars if sidecar_meta.is_candidate(name)]
    if not candidates:
        return []
    taken = {*folder.files, *map(sidecars.stem_of, folder.files)}
    found = []
    for name in sorted(candidates):
        owner = name.removesuffix(".json")
        if owner != name and (owner in taken or is_picture(owner)):  # the second: of a picture that is gone
            continue
        uri = files.join(folder.uri, name)
        try:
            meta = sidecar_meta.load(name, files.read(uri), uri=uri, folder=folder.uri)
        except (sidecar_meta.BrokenMeta, OSError) as error:
            reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
            raise SourceError(f"source {source.name}: {fit(uri)} {reason}, mend it or take it away") from None
        if meta is not None:
            found.append(meta)
    return found


def _rows(source: Source, folder: Folder, names: list[str]) -> Iterator[Row]:
    wanted = {
        name: sidecars.beside(name, folder.sidecars, shared=sidecars.stem_of(name) in folder.shared)
        for name in names
        if is_picture(name)
    }
    lying = list(dict.fromkeys(sidecar for several in wanted.values() for sidecar in several))
    contents = files.read_each([files.join(folder.uri, name) for name in lying])
    parsed = {name: sidecars.parse(name, content) for name, content in zip(lying, contents, strict=True)}
    for name in names:
        row = blank(source, files.join(folder.uri, name), size=folder.size(name))
        if "index_error" in row:
            yield row
        elif name not in wanted:
            yield not_a_picture(row, name)
        else:
            row["shared_stem"] = sidecars.stem_of(name) in folder.shared
            try:
                sidecar = sidecars.together(wanted[name], parsed, _records(folder, name))
            except BrokenSidecar as error:
                yield row | {"index_error": f"index: {error}"}
            else:
                yield described(row, source, sidecar, year=folder.year)


def _records(folder: Folder, name: str) -> list[Sidecar]:
    """What the files about many pictures say of one, the nearest first."""
    if not folder.metas:
        return []
    found = (meta.of(files.join(folder.uri, name)) for meta in folder.metas)
    return [record for record in found if record is not None]
