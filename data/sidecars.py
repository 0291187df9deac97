"""The JSON that gallery-dl leaves beside a picture: date, artist, characters, series, titles.

Understood are Danbooru posts (as gallery-dl or the Danbooru API write them) and pixiv works; of any other JSON object,
whatever of these fields it has.

Kind: pure, but for reading the file.
"""

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of the post first, of the file last: facts of Danbooru (created_at), pixiv (create_date), gallery-dl (date).
DATE_FIELDS = ("created_at", "create_date", "date")


class BrokenSidecar(ValueError):
    """The JSON beside a picture cannot be used. The message is a reason that can be counted."""


@dataclass(frozen=True)
class Sidecar:
    """What is known of a post. Names keep their underscores; `date` is ISO as written, `year` its first four digits."""

    date: str | None = None
    year: int | None = None
    artist: str | None = None
    characters: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    title: str | None = None
    short_title: str | None = None


def candidates(picture: Path) -> Iterator[Path]:
    """Where the sidecar of `picture` can lie: `<name>.<ext>.json` first, since two pictures can share a stem."""
    yield picture.with_name(picture.name + ".json")
    yield picture.with_suffix(".json")


def read(picture: Path) -> Sidecar | None:
    """The sidecar of `picture`, or None if it has none.

    Raises BrokenSidecar where there is one that is not a JSON object, or whose tags are not names.
    """
    for path in candidates(picture):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BrokenSidecar(f"sidecar could not be read ({type(error).__name__})") from error
        return parse(data)
    return None


def parse(data: bytes) -> Sidecar:
    """The sidecar in `data` (JSON, UTF-8). Raises BrokenSidecar."""
    try:
        post = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenSidecar("sidecar is not valid JSON") from error
    if not isinstance(post, dict):
        raise BrokenSidecar("sidecar is not a JSON object")
    date = _date(post)
    return Sidecar(
        date=date,
        year=int(date[:4]) if date else None,
        artist=_artist(post),
        characters=_names(post, "character"),
        series=_names(post, "copyright"),
        title=_text(post, "title"),
        short_title=_text(post, "short_title"),
    )


def _date(post: dict[str, Any]) -> str | None:
    """The first date field that begins with an ISO date; a year alone or a Unix time is none."""
    for field in DATE_FIELDS:
        value = _text(post, field)
        if value is None:
            continue
        try:
            datetime.date.fromisoformat(value[:10])
        except ValueError:
            continue
        return value
    return None


def _artist(post: dict[str, Any]) -> str | None:
    """pixiv: the display name, not the account. Danbooru's artist tags are not for captions."""
    user = post.get("user")
    return _text(user, "name") if isinstance(user, dict) else None


def _names(post: dict[str, Any], kind: str) -> tuple[str, ...]:
    """gallery-dl's list `tags_<kind>`, or the API's `tag_string_<kind>` with spaces between."""
    value = post.get(f"tags_{kind}")
    if value is None:
        value = post.get(f"tag_string_{kind}")
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(value.split())
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise BrokenSidecar(f"sidecar field tags_{kind} is neither a list of names nor a string")


def _text(post: dict[str, Any], field: str) -> str | None:
    """The text of a field without space around it; None if there is none (a field of another type is not ours)."""
    value = post.get(field)
    return (value.strip() or None) if isinstance(value, str) else None
