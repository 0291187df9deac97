"""Text beside a picture: tags as kohya's tools, hydrus and gallery-dl write them.

kohya (`.txt`, `.caption`): one line, commas between the tags. hydrus and gallery-dl (mode `tags`): one tag a line;
hydrus has namespaces (`creator:`, `series:`, `character:`, ...). A text is of the second sort if it has more than one
line, or if its line begins with a namespace.

Kind: pure.
"""

from collections.abc import Iterable

from sote.data.sidecar_facts import BrokenSidecar, Sidecar, distinct, terms, text

# hydrus' namespaces (its docs, advanced_sidecars.md, and its default tag presentation). Those that are None say things
# of the file, or what models decide; any other word before a colon is part of a name (`re:zero`).
NAMESPACES: dict[str, str | None] = {
    **{"creator": "artist", "artist": "artist", "character": "character", "series": "series", "copyright": "series"},
    **dict.fromkeys(("title",), "title"),
    **dict.fromkeys(("rating", "page", "chapter", "volume", "filename", "source", "url", "site", "meta")),
}


def parse(data: bytes) -> Sidecar:
    """The tags in a text file. Raises BrokenSidecar for one that is not UTF-8."""
    try:
        written = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenSidecar("sidecar is not UTF-8 text") from error
    lines = [line for line in map(str.strip, written.split("\n")) if line]
    if len(lines) == 1 and _namespace(lines[0]) is None:
        return tagged(terms(lines[0]))
    return tagged(lines)


def tagged(tags: Iterable[str]) -> Sidecar:
    """Tags, of which those with a namespace say who, what and from where."""
    found: dict[str | None, list[str]] = {}
    for tag in tags:
        space = _namespace(tag)
        if space is None:
            found.setdefault("", []).append(tag)
        else:
            found.setdefault(NAMESPACES[space], []).append(tag.strip()[len(space) + 1 :])
    return Sidecar(
        artist=text(next(iter(found.get("artist", ())), None)),
        characters=distinct(found.get("character", ())),
        series=distinct(found.get("series", ())),
        tags=distinct(found.get("", ())),
        title=text(next(iter(found.get("title", ())), None)),
    )


def _namespace(tag: str) -> str | None:
    """The namespace that a tag begins with, as it is listed above."""
    before, colon, name = tag.strip().partition(":")
    return before.lower() if colon and name.strip() and before.lower() in NAMESPACES else None
