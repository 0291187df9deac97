"""The report's pictures: a sheet of picked ones with their captions, refused ones, duplicate groups, a strip.

A file that is gone or broken by now is a placeholder that says so. Pictures that the tagger takes for questionable or
explicit are veiled until they are pointed at, and are kept out of the strip.
Reads: the pictures' files.

Kind: pure, but for files.
"""

from pathlib import Path
from typing import Final

from PIL import Image

from sote.cluster.page import Html, Section, blank, counted, escape, figure, join, nothing, number, picture, share, tag
from sote.data import schema
from sote.data.decode import Refused, open_picture
from sote.data.recipe import DecodePart
from sote.data.survey import Row, Survey, distances, is_kept
from sote.data.words import is_missing

# Sides in pixels (twice what is shown, for dense screens) and bytes: 24 samples, 24 refused and 24 members of groups
# at their most come to 1.1 MB, 1.4 MB as text, so that the page keeps under 3 MB with the painted images.
SAMPLE_SIDE, SAMPLE_BYTES = 480, 26_000
SMALL_SIDE, SMALL_BYTES = 280, 9_000
STRIP_SIDE, STRIP_BYTES = 160, 5_000
STRIP_PICTURES: Final = 10
GROUP_MEMBERS: Final = 4  # of one group; the rest is counted
MOST_GROUP_PICTURES: Final = 24

SCORED: Final = ("aesthetic", "quality")
VEILED: Final = ("questionable", "explicit")
# To look at a refused picture: whatever its size, as long as it can be decoded at all.
ANY_SIZE: Final = DecodePart(min_pixels=1)


def strip(found: Survey) -> Html | None:
    """A row of picked pictures for the top of the page; None if there is none that can be shown."""
    shown = []
    for row in found.samples:
        image = None if is_veiled(row) else opened(row["uri"])
        if isinstance(image, Image.Image):
            shown.append(picture(image, side=STRIP_SIDE, max_bytes=STRIP_BYTES, alt=""))
        if len(shown) == STRIP_PICTURES:
            break
    return tag("div", *shown, class_="strip") if shown else None


def samples(found: Survey) -> Section:
    """Picked pictures with their captions, the best first."""
    rows = sorted(found.samples, key=lambda row: (-_score(row), str(row["id"])))
    lead = f"{len(rows)} of the {counted(found.picked, 'picked picture')}, drawn by hash, the highest score first."
    if not rows:
        return Section("samples", "Picked, with captions", Html(""), nothing("No picture was picked."))
    return Section("samples", "Picked, with captions", escape(lead), tag("div", *map(_sample, rows), class_="sheet"))


def _score(row: Row) -> float:
    score = row["aesthetic_score"]
    return 0.0 if is_missing(score) else float(score)


def _sample(row: Row) -> Html:
    words = {word for word in (row["words"] or {}).values() if word}
    terms = [tag("b", term) if term in words else escape(term) for term in row["caption_tags"] or []]
    caption = tag("details", tag("summary", join(terms, ", ") or row["caption"]), class_="caption")
    notes = [f"{row['width']}×{row['height']}", row["source"]]
    notes += [f"{name} {row[f'{name}_score']:.2f}" for name in SCORED if not is_missing(row[f"{name}_score"])]
    notes += [str(row["year"])] * bool(row["year"]) + [f"seen {row['repeat']}×"] * ((row["repeat"] or 1) > 1)
    return _shown(row, caption, tag("small", " · ".join(notes)), side=SAMPLE_SIDE, max_bytes=SAMPLE_BYTES)


def refused(found: Survey) -> Section:
    """Pictures that are not picked, of each reason in turn, with the reason."""
    rows = found.refused_rows()
    left = found.rows - found.picked
    if not rows:
        return Section("set-aside", "Set aside, with reasons", Html(""), nothing("No file was set aside."))
    some = f"{len(rows)} of the {counted(left, 'file')} that were not picked, taken from each reason in turn."
    lead = some if len(rows) < left else f"All {counted(left, 'file')} that were not picked."
    shown = [
        _shown(
            row,
            escape(reason),
            tag("small", Path(row["uri"]).name, class_="file", title=row["uri"]),
            side=SMALL_SIDE,
            max_bytes=SMALL_BYTES,
        )
        for reason, row in rows
    ]
    return Section("set-aside", "Set aside, with reasons", escape(lead), tag("div", *shown, class_="refused"))


def duplicates(found: Survey) -> Section:
    """Duplicate groups side by side, the keeper first."""
    title, count = "Near-duplicates", len(found.group_numbers)
    if not count:
        return Section("duplicates", title, Html(""), nothing("No two pictures are near-duplicates."))
    groups, left = [], MOST_GROUP_PICTURES
    for _, members in sorted(found.groups.items()):
        if left < min(len(members), GROUP_MEMBERS):
            break
        groups.append(_group(members))
        left -= min(len(members), GROUP_MEMBERS)
    copies = found.grouped - count
    lead = (
        f"{counted(count, 'group')} with {counted(found.grouped, 'picture')}: one of each is kept, "
        f"{number(copies)} set aside or kept as variants ({share(copies, found.rows)} of all files). "
        f"The distance is between 256-bit perceptual hashes."
    )
    more = f" The first {len(groups)} are shown." if len(groups) < count else ""
    return Section("duplicates", title, escape(lead + more), tag("div", *groups, class_="groups"))


def _group(members: list[Row]) -> Html:
    shown = []
    for row, bits in distances(members)[:GROUP_MEMBERS]:
        if is_kept(row):
            verdict = tag("b", "kept")
        else:
            verdict = escape("distance unknown" if bits is None else counted(bits, "bit") + " away")
        size = f"{row['format'] or '?'} {row['width']}×{row['height']}"
        variant = "" if is_kept(row) or row["skip_reason"] or row["error"] else ", a variant, kept too"
        words = (verdict, variant, tag("small", size))
        shown.append(
            _shown(row, *words, side=SMALL_SIDE, max_bytes=SMALL_BYTES, class_="kept" if is_kept(row) else None)
        )
    rest = len(members) - len(shown)
    more = tag("small", f"and {counted(rest, 'more copy', 'more copies')}") if rest > 0 else None
    return tag("div", tag("div", *shown, class_="group"), more)


def _shown(row: Row, *below: Html | str, side: int, max_bytes: int, class_: str | None = None) -> Html:
    """One picture of the catalogue with what is said below it, or a placeholder that says why it cannot be shown."""
    name, image = Path(row["uri"]).name, opened(row["uri"])
    if isinstance(image, str):
        return figure(blank(image), *below, class_=class_)
    classes = [name for name in (class_, "veiled" if is_veiled(row) else None) if name]
    shown = picture(image, side=side, max_bytes=max_bytes, alt=name)
    return figure(shown, *below, class_=" ".join(classes) or None)


def is_veiled(row: Row) -> bool:
    """Does the tagger take the picture for questionable or explicit?"""
    rating = row.get("rating")
    if not rating or any(rating[name] is None for name in schema.RATINGS):
        return False
    return max(schema.RATINGS, key=lambda name: float(rating[name])) in VEILED


def opened(path: str | Path) -> Image.Image | str:
    """The picture at `path` as RGB, or in words why it cannot be shown."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(ANY_SIZE.max_file_bytes + 1)
    except OSError as error:
        return "the file is gone" if isinstance(error, FileNotFoundError) else f"not readable: {error.strerror}"
    if len(data) > ANY_SIZE.max_file_bytes:
        return "the file is too large to show"
    try:
        return open_picture(data, ANY_SIZE).image
    except Refused as reason:
        return reason.reason
