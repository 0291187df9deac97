"""A caption: a pure function of what is known of a picture and a profile.

Reads: scores, rating, tags, text, what sidecars and their source say: year, artist, title, characters, series, tags.
Writes: words, caption, caption_tags, caption_groups.

Kind: pure.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TypedDict

from sote.cluster.errors import RecipeError
from sote.data.caption_profile import Group, Profile, load_profile
from sote.data.kohya import KohyaOptions, Tag, kohya_list
from sote.data.recipe import CaptionPart, Source, SourceKind
from sote.data.words import aesthetic_word, date_word, float32, quality_word, rating_word

__all__ = [
    "SEPARATOR",
    "Caption",
    "CaptionFacts",
    "Said",
    "Words",
    "caption",
    "check_source",
    "general_tag",
    "load_profile",
    "one_tag",
    "peoples_tag",
    "split_series",
]

SEPARATOR = ", "  # seed's command: --caption_separator ", "

# What must not stand in a tag: the separator's comma, braces (sd-scripts reads {a|b} as a choice), blanks of all kinds
# and control signs, marks that cannot be seen, halves of surrogate pairs (no UTF-8 for them).
_UNFIT = re.compile(r"[,{}\s\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\ufeff\ud800-\udfff]+")


@dataclass(frozen=True)
class CaptionFacts:
    """What is known of one picture. None, NaN and () mean unknown.

    `tags` are the tagger's, in its order, names with underscores. `characters`, `series`, `artist`, `title` and
    `year` are the sidecar's (or the source's). `source_tags` are the source's own custom tags, `source_word` its date
    word where there is no year, `sidecar_tags` tags that people gave. `text` is `The text says "..."`.
    """

    source_kind: SourceKind
    aesthetic_score: float | None = None
    quality_score: float | None = None
    rating: Sequence[float] | None = None
    tags: Sequence[Tag] = ()
    year: int | None = None
    source_word: str | None = None
    source_tags: Sequence[str] = ()
    artist: str | None = None
    title: str | None = None
    short_title: str | None = None
    characters: Sequence[str] = ()
    series: Sequence[str] = ()
    sidecar_tags: Sequence[str] = ()
    text: str | None = None


@dataclass(frozen=True)
class Said:
    """What a caption says of a picture's tags: the tagger's characters by name, and the rest as it is written."""

    characters: Sequence[str]
    rest: Sequence[str]


class Words(TypedDict):
    """What scores, year and rating become, whether or not this kind of source says its date."""

    aesthetic: str | None
    quality: str | None
    date: str | None
    rating: str | None


@dataclass(frozen=True)
class Caption:
    """`tags` is what is trained on (never to be split from text again); `text` is them, joined by SEPARATOR.

    `together` are the places of tags that belong together: characters with their series, what the kind of a source
    adds. A tag that is in none of them stands by itself.
    """

    tags: tuple[str, ...]
    text: str
    words: Words
    together: tuple[tuple[int, ...], ...] = ()


def caption(facts: CaptionFacts, profile: Profile, *, part: CaptionPart, said: Said | None = None) -> Caption:
    """The caption of one picture. What is unknown is left out; with nothing known there are no tags.

    `said` is for who has looked at the tags of many pictures at once: then those in `facts` are not looked at, unless
    the profile's assembly is kohya's.
    """
    words = Words(
        aesthetic=aesthetic_word(facts.aesthetic_score, profile),
        quality=quality_word(facts.quality_score, profile),
        date=facts.source_word if facts.year is None else date_word(facts.year, profile),
        rating=rating_word(facts.rating, profile),
    )
    text = [_text_tag(facts.text)] if facts.text else []
    of_kind = _kind_tags(facts, profile)
    added = of_kind + [one_tag(tag) for tag in facts.source_tags]
    groups: dict[Group, Iterable[str | None]] = {
        "aesthetic": [words["aesthetic"]],
        "quality": [words["quality"]],
        "date": [words["date"] if profile.custom[facts.source_kind].date else None],
        "custom": added + (text if profile.text_position == "card" else []),
    }
    if profile.assembly == "kohya":
        elements = _kohya_elements(facts, part=part)
        groups["rating"] = block = [words["rating"] or "", *chain.from_iterable(elements)]
        given = dict.fromkeys(peoples_tag(name, profile) for name in facts.sidecar_tags)
        groups["rest"] = [tag for tag in given if tag not in block]
    else:
        said = said or _said(facts, profile, part=part)
        groups["rating"] = [words["rating"]]
        groups["character"], groups["series"], families = _characters(facts, said, profile)
        groups["rest"] = said.rest
    listed = [tag for group in profile.groups for tag in groups.get(group, ()) if tag]
    listed += text if profile.text_position == "end" else []
    if profile.assembly == "kohya":
        tags = tuple(listed)
        together = [*_together(tags, [of_kind]), *_in_a_row(tags, elements)]
    else:
        tags = tuple(dict.fromkeys(listed))
        together = _together(tags, [of_kind, *families])
    return Caption(tags=tags, text=SEPARATOR.join(tags), words=words, together=tuple(together))


def check_source(source: Source, profile: Profile) -> None:
    """Raise RecipeError if the source's date word is none of the profile's, or one of its tags is not fit to be one."""
    known = [years.word for years in profile.years]
    if source.date_word is not None and source.date_word not in known:
        raise RecipeError(
            f"sources: {source.name}: date_word: {source.date_word!r} is no word of the profile's years; known: "
            f"{', '.join(known) or 'none'}"
        )
    for tag in source.tags:
        if not tag or one_tag(tag) != tag:
            fit = f"write {one_tag(tag)!r}" if one_tag(tag) else "leave it out"
            raise RecipeError(
                f"sources: {source.name}: tags: {tag!r} must be one tag, without comma, brace, line break or outer "
                f"blanks; {fit}"
            )


def one_tag(name: str) -> str:
    """`name` made fit to stand between commas: what is unfit becomes one blank, outer blanks go; may be empty."""
    return _UNFIT.sub(" ", name).strip()


def general_tag(name: str, profile: Profile) -> str:
    """A general tag as a caption has it: blanks for underscores, but for kaomoji; may be empty."""
    return name if name in profile.kaomoji_set else _spaced(name)


def peoples_tag(name: str, profile: Profile) -> str:
    """A tag that people gave as a caption has it; empty if the caption says such words itself.

    Their tags may be an older caption, whose words of scores, date and rating would contradict the new ones.
    """
    tag = general_tag(name, profile)
    return "" if tag in profile.vocabulary else tag


def split_series(name: str, profile: Profile) -> tuple[str, str | None]:
    """Character and series of a character tag: `ganyu_(genshin_impact)` -> ("ganyu", "genshin impact").

    Only the last parentheses count, with those inside them. An ending in the profile's `non_series` (a costume, a
    form) stays with the character, and then there is no series. What is found is kept: pictures share characters.
    """
    if (known := profile.known_series.get(name)) is None:
        known = profile.known_series[name] = _split_series(name, profile)
    return known


def _split_series(name: str, profile: Profile) -> tuple[str, str | None]:
    spaced = _spaced(name)
    start = _last_parenthesis(spaced)
    if start is None:
        return spaced, None
    character, ending = spaced[:start].rstrip(), spaced[start + 1 : -1].strip()
    if not character or not ending or profile.non_series_pattern.match(ending.lower()):
        return spaced, None
    return character, ending


def _last_parenthesis(name: str) -> int | None:
    """Where the parenthesis opens that `name` ends with; None if it ends with none or they do not pair up."""
    if not name.endswith(")"):
        return None
    depth = 0
    for place in range(len(name) - 1, -1, -1):
        depth += (name[place] == ")") - (name[place] == "(")
        if depth == 0:
            return place
    return None


def _said(facts: CaptionFacts, profile: Profile, *, part: CaptionPart) -> Said:
    general = _passing(facts, "general", threshold=part.general_threshold)
    rest = [general_tag(name, profile) for name in general]
    rest += [peoples_tag(name, profile) for name in facts.sidecar_tags]
    return Said(_passing(facts, "character", threshold=part.character_threshold), rest)


def _characters(
    facts: CaptionFacts, said: Said, profile: Profile
) -> tuple[list[str], list[str], Iterable[Sequence[str]]]:
    """Characters (the sidecar's, then the tagger's), series (the sidecar's, else those that the characters name), and
    each series with its characters.

    A character that names no series is of the only one that there is.
    """
    split = [split_series(name, profile) for name in (*facts.characters, *said.characters)]
    series = [_spaced(name) for name in facts.series]
    if not any(series):
        series = [named for _, named in split if named]
    characters = [character for character, _ in split]
    if not (split and series):
        return characters, series, ()
    families: dict[str | None, list[str]] = {name: [name] for name in series if name}
    only = next(iter(families)) if len(families) == 1 else None
    for character, named in split:
        if (of := named or only) in families:
            families[of].append(character)
    return characters, series, families.values()


def _together(tags: Sequence[str], families: Iterable[Sequence[str]]) -> list[tuple[int, ...]]:
    """The places of the tags of each family that has more than one, each tag in its first family."""
    found: list[tuple[int, ...]] = []
    for family in families:
        if len(family) > 1:
            taken = chain.from_iterable(found)
            places = {tags.index(tag) for tag in family if tag}.difference(taken)
            if len(places) > 1:
                found.append(tuple(sorted(places)))
    return found


def _in_a_row(tags: Sequence[str], elements: Iterable[Sequence[str]]) -> Iterator[tuple[int, ...]]:
    """The places of the tags of each element that has more than one; elements stand in order."""
    start = 0
    for element in elements:
        size = len(element)
        if size > 1:
            start = next(at for at in range(start, len(tags)) if tuple(tags[at : at + size]) == tuple(element))
            yield tuple(range(start, start + size))
            start += size


def _passing(facts: CaptionFacts, wanted: str, *, threshold: float) -> list[str]:
    """Names of one category with at least the threshold; a threshold's own float32, just below it or not, passes."""
    floor = min(threshold, float32(threshold))
    return [name for name, probability, category in facts.tags if probability >= floor and category == wanted]


@lru_cache(maxsize=65_536)  # the tagger knows 10,857 tags; people use more
def _spaced(name: str) -> str:
    return one_tag(name.replace("_", " "))


def _kind_tags(facts: CaptionFacts, profile: Profile) -> list[str]:
    """The tags that the kind of the source adds, one whose fields are not known left out."""
    named = {"artist": facts.artist, "title": facts.title, "short_title": facts.short_title}
    known = {field: fit for field, value in named.items() if value and (fit := one_tag(value))}
    tags = []
    for templates in profile.custom[facts.source_kind].tags:
        for template in templates:
            try:
                tags.append(template.format_map(known))
            except KeyError:
                continue
            break
    return tags


def _kohya_elements(facts: CaptionFacts, *, part: CaptionPart) -> list[list[str]]:
    """Characters with their series, and general tags, as sd-scripts' tagger has them; the trainer splits them at
    commas."""
    options = KohyaOptions(
        general_threshold=part.general_threshold,
        character_threshold=part.character_threshold,
        use_rating_tags=False,
    )
    split = ([one_tag(tag) for tag in each.split(SEPARATOR)] for each in kohya_list(facts.tags, (), options=options))
    return [[tag for tag in element if tag] for element in split]


def _text_tag(text: str) -> str:
    """The text as one tag; a comma in it is a full stop, as the author's script has it."""
    return one_tag(text.replace(",", "."))
