"""The tag string of sd-scripts' tagger, bug for bug, from the tagger's probabilities.

Reference: kohya-ss/sd-scripts fdbb03c3 (2024-04-23, Apache-2.0), finetune/tag_images_by_wd14_tagger.py, the version
with which the seed's pictures were tagged. What is odd here is odd there: characters come in reverse order, a character
and its series are one element, the brackets of a nested series break, a second run repeats expanded characters.

Kind: pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sote.data.schema import RATINGS
from sote.data.words import float32

Tag = tuple[str, float, str]  # name with underscores, probability, category (general or character)

SHORTEST_SPACED = 4  # letters: shorter tags (^_^, o_o) keep their underscore


@dataclass(frozen=True)
class KohyaOptions:
    """The tagger's flags of the same names, with the values of the seed's command."""

    general_threshold: float = 0.35
    character_threshold: float = 0.50
    caption_separator: str = ", "
    remove_underscore: bool = True
    use_rating_tags: bool = True
    use_rating_tags_as_last_tag: bool = False
    character_tags_first: bool = True
    character_tag_expand: bool = True
    append_tags: bool = True
    undesired_tags: str = ""
    always_first_tags: str | None = None
    tag_replacement: str | None = None


def kohya_tags(
    tags: Sequence[Tag], rating: Sequence[float], *, options: KohyaOptions, existing: str | None = None
) -> str:
    """What the tagger writes into the caption file, with its newline.

    `tags` in the order of selected_tags.csv; `rating` in the order of schema.RATINGS; `existing` is what the file
    holds so far. Raises ValueError: a tag_replacement that is not `source,target;source,target`.
    """
    combined = kohya_list(tags, rating, options=options)
    if options.append_tags and existing is not None:
        split = existing.strip("\n").split(options.caption_separator.strip())
        old = [tag.strip() for tag in split if tag.strip()]
        combined = old + [tag for tag in combined if tag not in old]
    return options.caption_separator.join(combined) + "\n"


def kohya_list(tags: Sequence[Tag], rating: Sequence[float], *, options: KohyaOptions) -> list[str]:
    """The tagger's own tags as the list that it joins; an expanded character is one element with its series."""
    generals = [(name, probability) for name, probability, category in tags if category == "general"]
    characters = [(name, probability) for name, probability, category in tags if category == "character"]
    names = _Names(
        ratings=list(RATINGS),
        generals=[name for name, _ in generals],
        characters=[_expanded(name, options) for name, _ in characters],
    )
    names = _spaced(names) if options.remove_underscore else names
    _replace(names, options.tag_replacement)
    undesired = _stripped(options.undesired_tags, options)

    general_floor, character_floor = float32(options.general_threshold), float32(options.character_threshold)
    combined = [
        name
        for name, (_, probability) in zip(names.generals, generals, strict=True)
        if probability >= general_floor and name not in undesired
    ]
    for name, (_, probability) in zip(names.characters, characters, strict=True):
        if probability >= character_floor and name not in undesired:
            combined.insert(0 if options.character_tags_first else len(combined), name)
    if options.use_rating_tags or options.use_rating_tags_as_last_tag:
        found = names.ratings[max(range(len(RATINGS)), key=rating.__getitem__)]
        if found not in undesired:
            combined.insert(0 if options.use_rating_tags else len(combined), found)
    return _first_moved(combined, options)


@dataclass(frozen=True)
class _Names:
    """What the labels are called after expansion, blanks and replacement."""

    ratings: list[str]
    generals: list[str]
    characters: list[str]


def _expanded(name: str, options: KohyaOptions) -> str:
    if not (options.character_tag_expand and name.endswith(")")):
        return name
    character, _, series = name.rpartition("(")
    return character.removesuffix("_") + options.caption_separator + series.replace(")", "")


def _spaced(names: _Names) -> _Names:
    def spaced(several: list[str]) -> list[str]:
        return [name.replace("_", " ") if len(name) >= SHORTEST_SPACED else name for name in several]

    return _Names(spaced(names.ratings), spaced(names.generals), spaced(names.characters))


def _replace(names: _Names, replacement: str | None) -> None:
    """Rename labels one after the other, the first list that has the source first; `\\,` and `\\;` are escapes."""
    if replacement is None:
        return
    for pair in replacement.replace("\\,", "@@@@").replace("\\;", "####").split(";"):
        halves = [half.replace("@@@@", ",").replace("####", ";") for half in pair.split(",")]
        if len(halves) != 2:
            raise ValueError(f"tag_replacement: {pair!r} must be `source,target`, pairs apart by `;`")
        for several in (names.generals, names.characters, names.ratings):
            if halves[0] in several:
                several[several.index(halves[0])] = halves[1]
                break


def _stripped(listed: str, options: KohyaOptions) -> set[str]:
    return {tag.strip() for tag in listed.split(options.caption_separator.strip()) if tag.strip()}


def _first_moved(combined: list[str], options: KohyaOptions) -> list[str]:
    """Move the always-first tags that are there to the front, one by one, so that their order turns round."""
    if options.always_first_tags is None:
        return combined
    for tag in options.always_first_tags.split(options.caption_separator.strip()):
        if tag.strip() and tag in combined:
            combined.remove(tag)
            combined.insert(0, tag)
    return combined
