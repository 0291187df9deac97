"""The report's counts: scores and their words, tags, characters, years and ratings, length of captions.

Kind: pure, but for CLIP's vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from sote.cluster import charts
from sote.cluster.charts import Band
from sote.cluster.page import Html, Section, counted, escape, join, nothing, number, share, table, tag
from sote.data import schema, tokens
from sote.data.caption_profile import Profile, Scale
from sote.data.sheets import bounds
from sote.data.survey import Survey, named
from sote.data.tag_counts import Pair

MOST_TAGS: Final = 30
MOST_CHARACTERS: Final = 20
MOST_PAIRS: Final = 20
MOST_BUCKETS: Final = 12
BIN_TOKENS: Final = 8
WINDOW_NAMES: Final = ("one window", "two", "three")


def scores(found: Survey, profile: Profile) -> Section:
    """Histograms of both scores with the bounds of the words drawn in."""
    scales = (("Aesthetic", "aesthetic", profile.aesthetic), ("Quality", "quality", profile.quality))
    pair = [
        tag("div", tag("h3", title), charts.ladder(
            [int(count) for count in found.scores[f"{name}_score"].every],
            [int(count) for count in found.scores[f"{name}_score"].picked],
            bands=bands(scale, found.words[name]), label=title))
        for title, name, scale in scales
    ]  # fmt: skip
    lead = (
        "What the two models gave, from 0 at the foot to 1, and the words that scores become in a caption; the numbers "
        "at the right count the pictures that carry the word. A word that hardly any picture carries cannot be learnt, "
        "and one that nearly all carry says nothing: move its bound in the profile."
    )
    legend = charts.key((("pick", "picked"), ("all", "set aside")))
    return Section("scores", "Scores and their words", escape(lead), join([tag("div", *pair, class_="pair"), legend]))


def bands(scale: Scale, counts: Counter[str]) -> list[Band]:
    """The words of a scale as bands from 0 to 1, lowest first, with how many rows carry each."""
    return [Band(name, low, high, counts[name]) for name, low, high in bounds(scale)][::-1]


def tags(found: Survey) -> Section:
    """The most common general tags, ratings and buckets."""
    general = found.tags.general
    common = named(general.items(), MOST_TAGS)
    lead = (
        f"{counted(len(general), 'different tag')} on {counted(found.tags.tagged, 'tagged picture')}, above the "
        f"threshold of the caption. Look among the {len(common)} most common for what you do not see in the pictures: "
        "that is a habit of the tagger, and a higher general_threshold in [caption] takes the worst of it."
    )
    ratings = [(name, found.ratings[name]) for name in schema.RATINGS]
    buckets = named(found.buckets.items(), MOST_BUCKETS)
    blocks = [
        _block("Ratings", charts.bars(ratings, marked=len(ratings))) if found.tags.tagged else None,
        _block("Most common buckets", charts.bars(buckets, marked=len(buckets))) if buckets else None,
    ]
    shares = [f"{number(count)} · {share(count, found.tags.tagged)}" for _, count in common]
    body = [tag("div", charts.bars(common, values=shares, marked=len(common)), class_="twice")]
    body.append(tag("div", *[block for block in blocks if block is not None], class_="pair block"))
    return Section("tags", "Tags and ratings", escape(lead), join(body))


def characters(found: Survey) -> Section:
    """Who stands in the pictures, how many at once, and who with whom."""
    title, counts = "Characters, alone and together", found.tags
    if not counts.characters:
        return Section("characters", title, Html(""), nothing("The tagger knows no character in these pictures."))
    common = named(counts.characters.items(), MOST_CHARACTERS)
    lead = (
        f"{counted(len(counts.characters), 'character')} that the tagger knows, above the caption's threshold. Two "
        "that are nearly always seen together cannot be asked for apart: add pictures of the rarer one alone."
    )
    cast = [(_cast_name(size), counts.cast[size]) for size in sorted(counts.cast)]
    pairs = [_pair(pair) for pair in counts.pairs[:MOST_PAIRS]]
    body = [
        tag("div", _block("Most common", charts.bars(common, marked=len(common))),
            _block("In one picture", charts.bars(cast, marked=len(cast))), class_="pair"),
    ]  # fmt: skip
    heads = ("seen together", "pictures", "of the rarer one's")
    shown = table(heads, pairs) if pairs else nothing("No two characters share a picture.")
    body.append(tag("div", tag("h3", "Most common pairs"), shown, class_="block"))
    return Section("characters", title, escape(lead), join(body))


def _cast_name(size: int) -> str:
    return counted(size, "character") if size else "none"


def _pair(pair: Pair) -> tuple[str, str, str]:
    names = " + ".join(name.replace("_", " ") for name in (pair.first, pair.second))
    return names, number(pair.count), share(pair.count, min(pair.of_first, pair.of_second))


def dates(found: Survey) -> Section:
    """When the pictures were posted, and the words of it."""
    title = "Years"
    years = [(str(year), found.years[year]) for year in _span(found.years)]
    if not years:
        return Section("years", title, Html(""), nothing("No picture has a year."))
    lead = (
        f"Years of the posts; {number(found.undated)} of {counted(found.picked, 'picked picture')} have none and carry "
        'no date word unless their source names one. Give such a source date = ["sidecar", "folder"] or a date_word.'
    )
    words = [(word, count) for word, count in found.words["date"].most_common()]
    body = [charts.columns(years)]
    body += (
        [tag("div", _block("Date words", charts.bars(words, marked=len(words))), class_="pair block")] if words else []
    )
    return Section("years", title, escape(lead), join(body))


def lengths(found: Survey) -> Section:
    """How long captions are in tokens, with the windows of text that trainers read."""
    title = "Length of captions"
    captions = [row["caption"] for row in found.captions]
    if not captions:
        return Section("length", title, Html(""), nothing("No picked picture has a caption."))
    counts = tokens.lengths(captions)
    some = f"{number(len(captions))} captions of picked pictures"
    some += f", drawn by hash from {number(found.picked)}," if len(captions) < found.picked else ""
    middle, long, longest = np.quantile(counts, (0.5, 0.95, 1.0), method="lower")
    lead = (
        f"Tokens of {some} with CLIP's vocabulary, start and end counted: half have {middle} or fewer, "
        f"95\u202f% {long} or fewer, the longest {longest}. A trainer of one window never sees what lies beyond "
        f"{tokens.WINDOWS[0]}: what matters most must stand first in the profile's groups, or tags be shuffled."
    )
    marks = list(zip(tokens.WINDOWS, WINDOW_NAMES, strict=True))
    fits = tokens.within(counts)
    names = [f"fit {name}" for name in WINDOW_NAMES] + ["longer"]
    drawn = charts.histogram(
        tokens.histogram(counts, bin_tokens=BIN_TOKENS), width=BIN_TOKENS, marks=marks, label=title
    )
    shares = [f"{number(count)} · {share(count, len(captions))}" for count in fits]
    bars = charts.bars(list(zip(names, fits, strict=True)), values=shares, marked=len(marks))
    return Section("length", title, escape(lead), join([drawn, tag("div", tag("div", bars), class_="pair block")]))


def _block(title: str, body: Html) -> Html:
    return tag("div", tag("h3", title), body)


def _span(years: Iterable[int]) -> Sequence[int]:
    """Every year from the first to the last; the known ones only, if they are more than half a century apart."""
    known = sorted(years)
    if not known or known[-1] - known[0] > 50:
        return known
    return range(known[0], known[-1] + 1)
