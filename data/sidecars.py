"""Which files beside a picture are its sidecars, and what they say together.

A picture `a.jpg` has, in the order of their word: `a.jpg.json`, `a.json` (gallery-dl, Danbooru's API, hydrus); the
records of it in files about many pictures, of the nearest folder first; `a.jpg.txt`, `a.txt`, `a.jpg.caption`,
`a.caption` (kohya, hydrus). Of date, artist and titles the first that knows it counts; characters, series and tags are
all of them, each once. In a tar (WebDataset) the key's `a.json`, `a.txt` and `a.caption` belong to every picture of
the key, which ends at the first dot.

A picture that shares its stem with another of its folder takes of each sort the one that is named after it with its
ending; only without that, the one of the stem, which then may be the other's.

Kind: pure.
"""

from collections.abc import Container, Iterator, Mapping, Sequence

from sote.data import sidecar_json, sidecar_text
from sote.data.sidecar_facts import BrokenSidecar, Sidecar, merged

# What lies beside pictures and belongs to them (facts: on-disk conventions of gallery-dl, kohya, hydrus)
PARSERS = {".json": sidecar_json.parse, ".txt": sidecar_text.parse, ".caption": sidecar_text.parse}


def beside(picture: str, listed: Container[str], *, shared: bool = False, key: str | None = None) -> list[str]:
    """The names of the sidecars of `picture` (a name, or a path in a tar) among those `listed`, in their order."""
    found = []
    for suffix in PARSERS:
        names = [name for name in _named(picture, suffix, key) if name in listed]
        found += names[:1] if shared else names
    return found


def parse(name: str, content: bytes | OSError) -> Sidecar | BrokenSidecar:
    """What one sidecar says, or why it cannot be used."""
    if isinstance(content, OSError):
        return BrokenSidecar(f"sidecar could not be read ({type(content).__name__})")
    try:
        return PARSERS[name[name.rfind(".") :]](content)
    except BrokenSidecar as error:
        return error


def together(
    names: Sequence[str], parsed: Mapping[str, Sidecar | BrokenSidecar], records: Sequence[Sidecar]
) -> Sidecar:
    """What the sidecars of these names say, and the records of files about many. Raises the first BrokenSidecar."""
    facts: list[Sidecar] = []
    texts: list[Sidecar] = []
    for name in names:
        sidecar = parsed[name]
        if isinstance(sidecar, BrokenSidecar):
            raise sidecar
        (facts if name.endswith(".json") else texts).append(sidecar)
    return merged([*facts, *records, *texts])


def _named(picture: str, suffix: str, key: str | None) -> Iterator[str]:
    yield picture + suffix
    stem = stem_of(picture)
    yield stem + suffix
    if key is not None and key != stem:
        yield key + suffix


def stem_of(name: str) -> str:
    """A name (or path) without its last ending."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and stem and not stem.endswith("/") and "/" not in ending else name
