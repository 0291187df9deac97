"""The report's pictures: a sheet of picked ones with their captions, refused ones, duplicate groups, a strip.

A file that is gone or broken by now is a placeholder that says so. Pictures that the tagger takes for questionable or
explicit are veiled until they are pointed at, and are kept out of the strip.
Reads: the pictures' files.

Kind: pure, but for files.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from PIL import Image

from sote.cluster import charts
from sote.cluster.errors import SourceError
from sote.cluster.page import Html, Section, blank, counted, escape, figure, join, nothing, number, picture, share, tag
from sote.cluster.searchbox import ID_LENGTH
from sote.data import places, schema
from sote.data.decode import Refused, open_picture
from sote.data.dedup import LOSSLESS, PIXELS_RATIO, SCORE_STEP
from sote.data.examples import AT, Row
from sote.data.recipe import DecodePart, KeepKey
from sote.data.survey import Group, Survey, is_kept
from sote.data.words import is_missing

# Sides in pixels (twice what is shown, for dense screens) and bytes: 24 samples, 24 refused and 24 members of groups
# at their most come to 1.1 MB, 1.4 MB as text.
SAMPLE_SIDE, SAMPLE_BYTES = 480, 26_000
SMALL_SIDE, SMALL_BYTES = 280, 9_000
STRIP_SIDE, STRIP_BYTES = 160, 5_000
STRIP_PICTURES: Final = 10
MOST_GROUP_PICTURES: Final = 24

SCORED: Final = ("aesthetic", "quality")
VEILED: Final = ("questionable", "explicit")
# To look at a refused picture: whatever its size, as long as it can be decoded at all.
ANY_SIZE: Final = DecodePart(min_pixels=1)


class Album:
    """The pictures of rows, each opened once and kept no larger than the report ever shows it."""

    def __init__(self) -> None:
        self._opened: dict[int, Image.Image | str] = {}

    def open(self, row: Row) -> Image.Image | str:
        """The row's picture as RGB, or in words why it cannot be shown."""
        if row[AT] not in self._opened:
            image = opened(row["uri"], offset=row.get("offset"), size=row.get("bytes"))
            if isinstance(image, Image.Image):
                image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE), Image.Resampling.LANCZOS)
            self._opened[row[AT]] = image
        return self._opened[row[AT]]

    def figure(self, row: Row, *below: Html | str, side: int, max_bytes: int, class_: str | None = None) -> Html:
        """A row's picture with what is said below it, or a placeholder that says why it cannot be shown."""
        image, name = self.open(row), places.name(row["uri"])
        if isinstance(image, str):
            return figure(blank(image), *below, class_=class_)
        classes = [name for name in (class_, "veiled" if is_veiled(row) else None) if name]
        shown = picture(image, side=side, max_bytes=max_bytes, alt=name)
        return figure(shown, *below, class_=" ".join(classes) or None, data_id=str(row["id"])[:ID_LENGTH])


def strip(found: Survey, album: Album) -> Html | None:
    """A row of picked pictures for the top of the page; None if there is none that can be shown."""
    shown = []
    for row in found.samples:
        image = None if is_veiled(row) else album.open(row)
        if isinstance(image, Image.Image):
            shown.append(picture(image, side=STRIP_SIDE, max_bytes=STRIP_BYTES, alt=""))
        if len(shown) == STRIP_PICTURES:
            break
    return tag("div", *shown, class_="strip") if shown else None


def samples(found: Survey, album: Album) -> Section:
    """Picked pictures with their captions, the best first."""
    rows = sorted(found.samples, key=lambda row: (-_score(row), str(row["id"])))
    title = "Picked, with captions"
    if not rows:
        return Section("samples", title, Html(""), nothing("No picture was picked."))
    lead = (
        f"{len(rows)} of the {counted(found.picked, 'picked picture')}, drawn by hash, the highest score first. Read "
        "each caption against its picture: what is wrong in two of them is wrong in thousands."
    )
    shown = [_sample(row, album) for row in rows]
    return Section("samples", title, escape(lead), tag("div", *shown, class_="sheet"))


def _score(row: Row) -> float:
    score = row["aesthetic_score"]
    return 0.0 if is_missing(score) else float(score)


def _sample(row: Row, album: Album) -> Html:
    words = {word for word in (row["words"] or {}).values() if word}
    terms = [tag("b", term) if term in words else escape(term) for term in row["caption_tags"] or []]
    caption = tag("details", tag("summary", join(terms, ", ") or row["caption"]), class_="caption")
    notes = [f"{row['width']}×{row['height']}", row["source"]]
    notes += [f"{name} {row[f'{name}_score']:.2f}" for name in SCORED if not is_missing(row[f"{name}_score"])]
    notes += [str(row["year"])] * bool(row["year"]) + [f"seen {row['repeat']}×"] * ((row["repeat"] or 1) > 1)
    return album.figure(row, caption, tag("small", " · ".join(notes)), side=SAMPLE_SIDE, max_bytes=SAMPLE_BYTES)


def refused(found: Survey, album: Album) -> Section:
    """Pictures that are not picked, of each reason in turn, with the reason."""
    rows = found.refused_rows()
    left = found.rows - found.picked
    title = "Set aside, with reasons"
    if not rows:
        return Section("set-aside", title, Html(""), nothing("No file was set aside."))
    some = f"{len(rows)} of the {counted(left, 'file')} that were not picked, taken from each reason in turn."
    lead = some if len(rows) < left else f"All {counted(left, 'file')} that were not picked."
    lead += " A good picture among them means that the rule it broke is too strict."
    shown = [
        album.figure(row, escape(reason), _file(row), side=SMALL_SIDE, max_bytes=SMALL_BYTES) for reason, row in rows
    ]
    return Section("set-aside", title, escape(lead), tag("div", *shown, class_="refused"))


def _file(row: Row) -> Html:
    return tag("small", places.name(row["uri"]), class_="file", title=row["uri"])


def duplicates(found: Survey, album: Album, *, keep: Sequence[KeepKey]) -> Section:
    """Duplicate groups side by side, the keeper first. `keep` is the order in which a keeper is chosen."""
    title = "Near-duplicates"
    if not found.group_count:
        return Section("duplicates", title, Html(""), nothing("No two pictures are near-duplicates."))
    groups, left = [], MOST_GROUP_PICTURES
    for group in found.groups:
        if left < len(group.members):
            break
        groups.append(_group(group, album, keep))
        left -= len(group.members)
    copies = found.grouped - found.group_count
    lead = (
        f"{counted(found.group_count, 'group')} with {counted(found.grouped, 'picture')}: one of each is kept, "
        f"{number(copies)} set aside or kept as variants ({share(copies, found.rows)} of all files). "
        "Distances are bits between 256-bit hashes. The groups farthest apart come first: if two of them are not the "
        "same picture, lower the radius in [duplicates]."
    )
    more = f" {len(groups)} are shown." if len(groups) < found.group_count else ""
    bits = range(max(found.distances, default=0) + 1)
    body = [tag("div", *groups, class_="groups")]
    body += [
        tag("div", tag("h3", "Distance to the keeper, in bits"),
            charts.columns([(str(at), found.distances[at]) for at in bits]), class_="block")
    ] if found.distances else []  # fmt: skip
    return Section("duplicates", title, escape(lead + more), join(body))


def _group(group: Group, album: Album, keep: Sequence[KeepKey]) -> Html:
    keeper = next((row for row in group.members if is_kept(row)), None)
    shown = []
    for row in group.members:
        words = _verdict(row, keeper, keep)
        class_ = "kept" if row is keeper else None
        shown.append(album.figure(row, *words, side=SMALL_SIDE, max_bytes=SMALL_BYTES, class_=class_))
    rest = group.size - len(shown)
    more = tag("small", f"and {counted(rest, 'more copy', 'more copies')}") if rest > 0 else None
    return tag("div", tag("div", *shown, class_="group"), more)


def _verdict(row: Row, keeper: Row | None, keep: Sequence[KeepKey]) -> list[Html | str]:
    """What is said below a member of a group: kept or how far away, why, and its size."""
    size = tag("small", f"{row['format'] or '?'} {row['width']}×{row['height']}")
    if row is keeper:
        return [tag("b", "kept"), size]
    bits = row["duplicate_distance"]
    away = "distance unknown" if bits is None else counted(bits, "bit") + " away"
    if row["skip_reason"] is None and row["error"] is None:
        return [away, ", a variant, kept too", size]
    reason = str(row["error"] or row["skip_reason"])
    why = f": {why_kept(keeper, row, keep)}" if keeper and reason.startswith("duplicates:") else ""
    return [away, size, tag("small", reason.removeprefix("duplicates: ") + why)]


def why_kept(keeper: Row, copy: Row, keep: Sequence[KeepKey]) -> str:
    """The first key of `keep` in which the keeper is before the copy, in words, by the steps that dedup takes.

    Bytes, facts in the sidecars and the day of the post are not in the catalogue: of these it is said that one decided.
    """
    for key in keep:
        if key not in RANKS:
            return f"the other is before it by {key}, or by what follows that in keep"
        one, other = (RANKS[key](row) for row in (keeper, copy))
        if one != other:
            return WHY[key]
    return "the other has the smaller id"


def _size_step(row: Row) -> int:
    return math.floor(math.log(max((row["width"] or 0) * (row["height"] or 0), 1)) / math.log(PIXELS_RATIO))


def _score_step(row: Row) -> int:
    scores = [row[f"{name}_score"] for name in SCORED]
    return -1 if any(map(is_missing, scores)) else math.floor(sum(scores) / SCORE_STEP)


RANKS: Final[Mapping[str, Callable[[Row], float]]] = {
    "size": _size_step,
    "lossless": lambda row: row["format"] in LOSSLESS,
    "score": _score_step,
}
WHY: Final = {
    "size": "the other is larger",
    "lossless": "the other is lossless",
    "score": "the other has the higher scores",
}


def is_veiled(row: Row) -> bool:
    """Does the tagger take the picture for questionable or explicit?"""
    rating = row.get("rating")
    if not rating or any(rating[name] is None for name in schema.RATINGS):
        return False
    return max(schema.RATINGS, key=lambda name: float(rating[name])) in VEILED


def opened(uri: str, *, offset: int | None = None, size: int | None = None) -> Image.Image | str:
    """The picture at `uri` as RGB, or in words why it cannot be shown. `offset` and `size` are its place in a tar."""
    try:
        data = places.read(uri, offset=offset, bytes=size, limit=ANY_SIZE.max_file_bytes)
    except SourceError as error:
        return str(error)
    except OSError as error:
        return (
            "the file is gone" if isinstance(error, FileNotFoundError) else f"not readable: {error.strerror or error}"
        )
    if len(data) > ANY_SIZE.max_file_bytes:
        return "the file is too large to show"
    try:
        return open_picture(data, ANY_SIZE).image
    except Refused as reason:
        return reason.reason
