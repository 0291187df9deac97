"""What people write in prompts: "(word:1.2)" weighs a word, "(word)" by 1.1, "[word]" by 1 / 1.1.

Weights of brackets within brackets are multiplied. "\\(", "\\)", "\\[" and "\\]" are the characters themselves, and
so is every bracket without its other half; nothing is an error. A number counts as a weight at the end of round
brackets alone, after some text: the colons of "re:zero" and of "(:3)" stay.

Source: AUTOMATIC1111's prompt syntax as its users know it; `as_comfy` reads as ComfyUI a125cd8 does (facts only):
square brackets are text, and a number replaces the weights around it.

Kind: pure.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

STEP: Final = 1.1  # of one pair of brackets, in both programs
# Neither of the two programs has a limit; beyond this states are so far from all that was trained that nothing is seen
MAX_WEIGHT: Final = 10.0

_BRACKETS: Final = frozenset("()[]")
_OPENS: Final = {")": "(", "]": "["}
_PIECES: Final = re.compile(r"\\[()\[\]]|[()\[\]]|\\|[^\\()\[\]]+")
_COMFY_PIECES: Final = re.compile(r"\\[()]|[()]|\\|[^\\()]+")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_INNER: Final = re.compile(r"(?<=[(\[]) | (?=[)\]])")  # spaces within brackets
_SEPARATORS: Final = re.compile(r"[,\uff0c\u3001\n]")  # also the two commas of Chinese and Japanese keyboards


@dataclass(frozen=True)
class Segment:
    """A part of a prompt without brackets, and its weight."""

    text: str
    weight: float = 1.0


def parse(prompt: str, *, as_comfy: bool = False) -> tuple[Segment, ...]:
    """The segments of a prompt, none of them empty. Neighbours of one weight are one, but not `as_comfy`."""
    segments: list[Segment] = []
    for found in _segments((_COMFY_PIECES if as_comfy else _PIECES).findall(prompt), is_replacing=as_comfy):
        if segments and segments[-1].weight == found.weight and not as_comfy:
            segments[-1] = Segment(segments[-1].text + found.text, found.weight)
        elif found.text:
            segments.append(found)
    return tuple(segments)


def plain(prompt: str) -> str:
    """The prompt without its weights."""
    return "".join(segment.text for segment in parse(prompt))


def tags_of(prompt: str) -> tuple[str, ...]:
    """The tags of a prompt, to look them up in a list: without weights or half brackets, lower case, spaces for _."""
    return tuple(tag for part in _SEPARATORS.split(plain(prompt)) if (tag := _tag(part)))


def _segments(pieces: list[str], *, is_replacing: bool) -> Iterator[Segment]:
    """What stands between brackets, in reading order. A weight within brackets is that around them times their own."""
    closes = _pairs(pieces)
    weights, ends = [1.0], [len(pieces)]
    texts = [_text(piece) for piece in pieces]
    start = 0
    for place, piece in enumerate(pieces):
        if place != ends[-1] and place not in closes:
            continue
        yield Segment("".join(texts[start:place]), weights[-1])
        start = place + 1
        if place == ends[-1]:
            weights.pop()
            ends.pop()
            continue
        weight = weights[-1] * (STEP if piece == "(" else 1 / STEP)
        end = closes[place]
        if piece == "(" and (number := _number(pieces, start=start, end=end)) is not None:
            weight = number if is_replacing else weights[-1] * number
            texts[end - 1] = texts[end - 1].rpartition(":")[0]
        weights.append(min(max(weight, -MAX_WEIGHT), MAX_WEIGHT))
        ends.append(end)
    yield Segment("".join(texts[start:]), 1.0)


def _pairs(pieces: list[str]) -> dict[int, int]:
    """Where each bracket that has its other half is closed. What stands open between the two halves is text."""
    found: dict[int, int] = {}
    opened: list[int] = []
    waiting = {"(": 0, "[": 0}
    for place, piece in enumerate(pieces):
        if piece in waiting:
            waiting[piece] += 1
            opened.append(place)
        elif waiting.get(_OPENS.get(piece, ""), 0):
            start = opened.pop()
            waiting[pieces[start]] -= 1
            while pieces[start] != _OPENS[piece]:
                start = opened.pop()
                waiting[pieces[start]] -= 1
            found[start] = place
    return found


def _number(pieces: list[str], *, start: int, end: int) -> float | None:
    """The number with which what stands in brackets ends, if some text stands before it."""
    if end == start:
        return None
    before, colon, number = pieces[end - 1].rpartition(":")
    if not colon or (end - 1 == start and not before) or not _NUMBER.fullmatch(number.strip()):
        return None
    return float(number)


def _text(piece: str) -> str:
    return piece[1:] if len(piece) == 2 and piece[0] == "\\" else piece


def _tag(text: str) -> str:
    words = unicodedata.normalize("NFKC", text).lower().replace("_", " ").replace("\\", "")
    pieces = _PIECES.findall(_INNER.sub("", " ".join(words.split())))
    closes = _pairs(pieces)
    whole = {*closes, *closes.values()}
    kept = [place for place, piece in enumerate(pieces) if piece not in _BRACKETS or place in whole]
    while kept and closes.get(kept[0]) == kept[-1]:  # brackets around the whole tag
        kept = kept[1:-1]
    return " ".join("".join(pieces[place] for place in kept).split())
