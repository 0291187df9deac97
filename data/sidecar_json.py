"""JSON beside a picture, and records of one picture in a file about many.

Understood are Danbooru posts (as gallery-dl or the Danbooru API write them), pixiv works, hydrus' tags (a list, or an
object with such lists); of any other object, whatever of these fields it has. A record (a row of Hugging Face's
metadata or of Parquet, an entry of kohya's meta file) has captions besides, whose terms count as tags.

Kind: pure.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sote.data import sidecar_text
from sote.data.sidecar_facts import BrokenSidecar, Sidecar, date, distinct, merged, terms, text

# Of the post first, of the file last: facts of Danbooru (created_at), pixiv (create_date), gallery-dl (date).
DATE_FIELDS = ("created_at", "create_date", "date", "year")
CAPTION_FIELDS = ("caption", "text")
# What posts of boards have and records have not: their tags in one string are parted by blanks.
BOARD_FIELDS = {"category", "md5", "file_url"}
# Every field of a record that is looked at, so that others need not be read.
FIELDS = frozenset(
    {*DATE_FIELDS, *CAPTION_FIELDS, "tags", "user", "artist", "title", "short_title", "json"}
    | {f"{form}_{kind}" for form in ("tags", "tag_string") for kind in ("character", "copyright", "general")}
)


def parse(data: bytes | str) -> Sidecar:
    """The facts in a JSON text. Raises BrokenSidecar."""
    try:
        post = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenSidecar("sidecar is not valid JSON") from error
    if isinstance(post, list):
        return sidecar_text.tagged(_listed(post, "sidecar is a list, but not of tags"))
    if not isinstance(post, dict):
        raise BrokenSidecar("sidecar is neither a JSON object nor a list of tags")
    return of_post(post)


def of_post(post: Mapping[str, Any], *, record: bool = False) -> Sidecar:
    """What a post says of its picture. Raises BrokenSidecar where its typed tags are not names."""
    general = _names(post, "general")
    typed = Sidecar(
        date=next((found for field in DATE_FIELDS if (found := date(post.get(field)))), None),
        artist=_artist(post),
        characters=_names(post, "character") or (),
        series=_names(post, "copyright") or (),
        tags=general or (),
        title=text(post.get("title")),
        short_title=text(post.get("short_title")),
    )
    return typed if general is not None else merged([typed, _tags(post, blanks=not record)])


def of_record(record: Mapping[str, Any]) -> Sidecar:
    """What a record of a file about many pictures says of one: a post, with captions besides, or with one in `json`."""
    found = [of_post(record, record=True)]
    inner = record.get("json")
    if isinstance(inner, Mapping):
        found.insert(0, of_post(inner))
    elif isinstance(inner, str | bytes):
        found.insert(0, parse(inner))
    captions = [record[field] for field in CAPTION_FIELDS if isinstance(record.get(field), str)]
    return merged([*found, *(sidecar_text.tagged(terms(caption)) for caption in captions)])


def _artist(post: Mapping[str, Any]) -> str | None:
    """pixiv: the display name, not the account. Danbooru's artist tags are not for captions."""
    user = post.get("user")
    return text(user.get("name")) if isinstance(user, Mapping) else text(post.get("artist"))


def _names(post: Mapping[str, Any], kind: str) -> tuple[str, ...] | None:
    """gallery-dl's list `tags_<kind>`, or the API's `tag_string_<kind>` with spaces between; None if there is none."""
    value = post.get(f"tags_{kind}")
    if value is None:
        value = post.get(f"tag_string_{kind}")
    if value is None:
        return None
    if isinstance(value, str):
        return distinct(value.split())
    return distinct(_listed(value, f"sidecar field tags_{kind} is neither a list of names nor a string"))


def _tags(post: Mapping[str, Any], *, blanks: bool) -> Sidecar:
    """Tags of all sorts in one field: lists as they stand; a string is parted by commas, or by a board's blanks."""
    value = post.get("tags")
    if isinstance(value, str):
        at_blanks = blanks and "," not in value and not BOARD_FIELDS.isdisjoint(post)
        return sidecar_text.tagged(value.split() if at_blanks else terms(value))
    return sidecar_text.tagged(_strings(value))


def _strings(value: object) -> Iterator[str]:
    """The strings of a list; hydrus has one list for each of its tag services. Other types are not ours."""
    if isinstance(value, list):
        yield from (tag for tag in value if isinstance(tag, str))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)


def _listed(value: object, otherwise: str) -> list[str]:
    if isinstance(value, list) and set(map(type, value)) <= {str}:
        return value
    raise BrokenSidecar(otherwise)
