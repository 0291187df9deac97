"""Contact sheets of words: for each word its highest and its lowest scored pictures, so that one sees where bounds lie.

Reads: the pictures' files.

Kind: pure, but for files.
"""

from collections.abc import Sequence
from typing import Final

from sote.cluster.page import Html, Section, code, counted, join, nothing, number, tag
from sote.data.caption_profile import Profile, Scale
from sote.data.examples import Row
from sote.data.gallery import Album
from sote.data.survey import Ends, Survey

# At most 14 words with 8 pictures: 500 kB, 700 kB as text.
SIDE, MOST_BYTES = 200, 4_500
SCORE: Final = "{}_score"


def words(found: Survey, album: Album, profile: Profile) -> Section:
    """A row of pictures for each word of both scales, the highest word first."""
    title = "The best and the worst of each word"
    scales = (("Aesthetic", "aesthetic", profile.aesthetic), ("Quality", "quality", profile.quality))
    blocks = [
        tag("div", tag("h3", heading), *rows, class_="block")
        for heading, name, scale in scales
        if (rows := _rows(found, album, name, scale))
    ]
    if not blocks:
        return Section("words", title, Html(""), nothing("No picture has a word yet."))
    lead = (
        "Each line runs from the highest to the lowest score of its word; copies are left out. The last pictures of a "
        "line and the first of the next lie on either side of a bound: where they look alike, the bound says nothing, "
        "so move it in the profile and run "
    )
    return Section("words", title, join([lead, code("sote curate RECIPE --stage caption"), "."]), join(blocks))


def bounds(scale: Scale) -> list[tuple[str, float, float]]:
    """Each word of a scale with the bounds that its scores lie between, the highest word first."""
    edges = [1.0, *(bound for bound, _ in scale.steps), 0.0]
    names = [*(word for _, word in scale.steps), scale.rest]
    return [(name, edges[at + 1], edges[at]) for at, name in enumerate(names)]


def _rows(found: Survey, album: Album, name: str, scale: Scale) -> list[Html]:
    score = SCORE.format(name)
    return [
        _row(ends, album, score, head=(word, f"{low:g} to {high:g}"))
        for word, low, high in bounds(scale)
        if (ends := found.ends.get((score, word)))
    ]


def _row(ends: Ends, album: Album, score: str, *, head: tuple[str, str]) -> Html:
    word, span = head
    shown = [_frames(rows, album, score) for rows in (ends.highest, ends.lowest) if rows]
    left = ends.count - len(ends.highest) - len(ends.lowest)
    gap = tag("span", f"{number(left)} more", class_="gap") if left > 0 and len(shown) == 2 else None
    names = tag("div", tag("b", word), tag("small", span), tag("small", counted(ends.count, "picture")), class_="name")
    return tag("div", names, tag("div", *([shown[0], gap, *shown[1:]] if shown else []), class_="film"), class_="reel")


def _frames(rows: Sequence[Row], album: Album, score: str) -> Html:
    return join(album.figure(row, f"{row[score]:.3f}", side=SIDE, max_bytes=MOST_BYTES) for row in rows)
