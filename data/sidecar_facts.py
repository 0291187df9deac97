"""What is known of a picture from beside it, and how several sources of that are put together.

Kind: pure.
"""

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

YEARS = range(1990, 2101)  # a number that can be the year of a picture made for a screen
_HALVES = re.compile("[\ud800-\udfff]")


class BrokenSidecar(ValueError):
    """What lies beside a picture cannot be used. The message is a reason that can be counted."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is known of a post. Names keep their underscores; `date` is ISO as written, or a bare year."""

    date: str | None = None
    artist: str | None = None
    characters: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    title: str | None = None
    short_title: str | None = None


NOTHING = Sidecar()


def merged(several: Sequence[Sidecar]) -> Sidecar:
    """Of date, artist and titles, the first that says one; of the names, all, in their order, each once."""
    if len(several) < 2:
        return several[0] if several else NOTHING
    return Sidecar(
        date=next((each.date for each in several if each.date), None),
        artist=next((each.artist for each in several if each.artist), None),
        characters=tuple(dict.fromkeys(name for each in several for name in each.characters)),
        series=tuple(dict.fromkeys(name for each in several for name in each.series)),
        tags=tuple(dict.fromkeys(name for each in several for name in each.tags)),
        title=next((each.title for each in several if each.title), None),
        short_title=next((each.short_title for each in several if each.short_title), None),
    )


def text(value: object) -> str | None:
    """A value without space around it, fit to be stored; None if there is nothing, or it is no text."""
    if not isinstance(value, str):
        return None
    stripped = value.strip()
    return (stripped if stripped.isascii() else _HALVES.sub("\ufffd", stripped)) or None


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Names in their order, each once, without space around them; empty ones go."""
    stripped = [name.strip() for name in names]
    if not "".join(stripped).isascii():
        stripped = [_HALVES.sub("\ufffd", name) for name in stripped]
    return tuple(dict.fromkeys(filter(None, stripped)))


def terms(line: str) -> tuple[str, ...]:
    """The terms of a line with commas between them."""
    return distinct(line.split(","))


def date(value: object) -> str | None:
    """A value as an ISO date (as written) or a bare year; None for what is neither, such as a Unix time."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value in YEARS else None
    written = text(value)
    if written is None:
        return None
    if len(written) == 4 and written.isdecimal() and written.isascii():
        return written if int(written) in YEARS else None
    try:
        datetime.date.fromisoformat(written[:10])
    except ValueError:
        return None
    return written
