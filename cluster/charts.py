"""Charts for the page: bars, columns, a histogram with named bands, lines, and the river that narrows.

Shapes are inline SVG stretched to their box; words and numbers are HTML beside them, so that they keep their size on
a phone. Everything takes its colours from the stylesheet and so follows light and dark.

Kind: pure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sote.cluster.page import Html, counted, escape, join, number, share, tag

LABEL_GAP: Final = 5.2  # per cent of a ladder's height that one line of text takes (22 of 430 pixels)
MOST_POINTS: Final = 600  # a line of more points is drawn by the extremes of as many spans as half of that
WATER: Final = 72  # per cent of the river's column that all files take; the rest is room for what flows off
FLOWS: Final = (0.2, 0.42, 0.63, 0.83)  # where thin lines show that the water flows, of its width
REASONS_SHOWN: Final = 6  # reasons of one step before the rest is folded away


@dataclass(frozen=True)
class Band:
    """A named span of scores, above `low` and up to `high`, and how many rows are in it."""

    name: str
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Step:
    """One step of the river: what is still there after it, and what left it at this step, by reason."""

    name: str
    meaning: str
    count: int
    lost: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Curve:
    """One line of a line chart. `style` is its class in the stylesheet: raw or smooth."""

    xs: Sequence[float]
    ys: Sequence[float]
    style: str


def bars(items: Sequence[tuple[str, float]], *, values: Sequence[str] | None = None, marked: int = 0) -> Html:
    """Horizontal bars, the longest full; `values` are what is written instead of the counts; the first `marked` bars
    are in the accent colour."""
    most = max((value for _, value in items), default=0) or 1
    shown = values or [number(value) for _, value in items]
    rows = [
        tag(
            "li",
            tag("span", name, class_="name"),
            tag("span", tag("i", style=f"width:{100 * value / most:.2f}%"), class_="track"),
            tag("span", words, class_="n"),
            class_="mark" if at < marked else None,
        )
        for at, ((name, value), words) in enumerate(zip(items, shown, strict=True))
    ]
    return tag("ul", *rows, class_="bars")


def _short(count: int) -> str:
    """A count in at most four signs: 999, 9.9k, 412k, 6.0M."""
    if count < 1000:
        return number(count)
    if count < 999_500:
        return f"{count / 1e3:.{1 if count < 9_950 else 0}f}k"
    return f"{count / 1e6:.1f}M"


def stack(parts: Sequence[tuple[str, int]], *, whole: int, label: str) -> Html:
    """One bar cut into parts, each with its class in the stylesheet; of `whole`, which fills it."""
    pieces = [
        tag("i", class_=style, style=f"width:{100 * count / max(whole, 1):.2f}%") for style, count in parts if count
    ]
    return tag("span", *pieces, class_="stack", role="img", aria_label=label)


def columns(items: Sequence[tuple[str, int]]) -> Html:
    """Upright bars with their names below and their counts above, the highest full."""
    most = max((value for _, value in items), default=0) or 1
    rows = [
        tag(
            "li",
            tag("span", _short(value), class_="n", title=number(value)),
            tag("i", style=f"height:{100 * value / most:.2f}%"),
            tag("span", name, class_="name"),
        )
        for name, value in items
    ]
    return tag("ul", *rows, class_="columns")


def ladder(counts: Sequence[int], picked: Sequence[int], *, bands: Sequence[Band], label: str) -> Html:
    """A histogram of scores from 0 (below) to 1 (above), of all rows and of the picked ones, with named bands.

    `counts` and `picked` are of equal bins from 0 to 1. Labels of narrow bands are moved apart, never left out.
    """
    most = max(counts, default=0) or 1
    step = 100 / max(len(counts), 1)
    shapes = [
        _rung(count / most, at=at, step=step, style=style)
        for values, style in ((counts, "all"), (picked, "pick"))
        for at, count in enumerate(values)
        if count
    ]
    top_down = sorted(bands, key=lambda band: -band.low)
    places = _apart([100 - 50 * (band.low + band.high) for band in top_down], LABEL_GAP)
    rules = [tag("line", x1=0, x2=100, y1=100 - 100 * band.low, y2=100 - 100 * band.low) for band in top_down[:-1]]
    names = [
        tag("li", tag("span", band.name), tag("b", number(band.count)), style=f"top:{place:.2f}%", class_=_empty(band))
        for band, place in zip(top_down, places, strict=True)
    ]
    ticks = [tag("span", _plain(value), style=f"top:{100 - 100 * value:g}%") for value in _bounds(top_down)]
    return tag(
        "div",
        tag("div", *ticks, class_="ticks"),
        tag("div", _svg(join([*rules, *shapes]), label), class_="plot"),
        tag("ol", *names),
        class_="ladder",
    )


def histogram(counts: Sequence[int], *, width: int, marks: Sequence[tuple[int, str]], label: str) -> Html:
    """A histogram from 0 to the right, of bins `width` wide, with named marks; what lies beyond the last is paler."""
    bins = max(len(counts), max((-(-at // width) for at, _ in marks), default=0), 1)
    most, end, last = max(counts, default=0) or 1, bins * width, max((at for at, _ in marks), default=0)
    shapes = [
        tag("rect", x=f"{100 * at / bins:.3f}", width=f"{100 / bins * 5 / 6:.3f}", y=f"{100 - 100 * count / most:.3f}",
            height=f"{100 * count / most:.3f}", class_="pick" if at * width < last else "all")
        for at, count in enumerate(counts) if count
    ]  # fmt: skip
    rules = [tag("line", x1=f"{100 * at / end:.3f}", x2=f"{100 * at / end:.3f}", y1=0, y2=100) for at, _ in marks]
    names = [
        tag("span", tag("b", number(at)), tag("small", f" {name}"), style=f"left:{100 * at / end:.2f}%")
        for at, name in marks
    ]
    ticks = [x for x in round_ticks(0, end) if x <= end]
    return tag(
        "div",
        tag("div", *names, class_="marks"),
        tag("div", _svg(join([*shapes, *rules]), label), class_="plot"),
        tag("div", *(tag("span", _plain(x), style=f"left:{_at(x, 0, end)}%") for x in ticks), class_="below"),
        class_="histogram",
    )


def _rung(share_of_most: float, *, at: int, step: float, style: str) -> Html:
    """The bar of one bin of a ladder, `step` per cent high with a gap of a sixth."""
    top, width, height = f"{100 - (at + 1) * step:.3f}", f"{100 * share_of_most:.3f}", f"{step * 5 / 6:.3f}"
    return tag("rect", x=0, y=top, width=width, height=height, class_=style)


def _empty(band: Band) -> str | None:
    return None if band.count else "none"


def _bounds(top_down: Sequence[Band]) -> list[float]:
    """0, 1 and the bounds that are far enough from them and from each other to be written."""
    found = [1.0]
    for value in [band.low for band in top_down[:-1]]:
        if found[-1] - value >= LABEL_GAP / 100 and value >= LABEL_GAP / 100:
            found.append(value)
    return [*found, 0.0]


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """`places` (rising, per cent) moved so that neighbours are at least `gap` apart and all stay within 0..100."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else gap / 2))
    limit = 100 - gap / 2
    for at in range(len(moved) - 1, -1, -1):
        moved[at] = min(moved[at], limit)
        limit = moved[at] - gap
    return moved


def lines(curves: Sequence[Curve], *, label: str, unit: str = "") -> Html:
    """A line chart over one horizontal axis; both axes carry round numbers. Points that are not finite are left out."""
    kept = [_finite(curve) for curve in curves]
    xs = [x for curve in kept for x in curve.xs]
    ys = [y for curve in kept for y in curve.ys]
    if not xs:
        return tag("p", f"{label}: no finite value.", class_="nothing")
    left, right = min(xs), max(xs)
    ticks_y = round_ticks(min(ys), max(ys))
    low, high = min(ticks_y[0], min(ys)), max(ticks_y[-1], max(ys))
    drawn = [_path(curve, (left, right), (low, high)) for curve in kept]
    rules = [tag("line", x1=0, x2=100, y1=_at(y, high, low), y2=_at(y, high, low)) for y in ticks_y]
    ticks_x = [x for x in round_ticks(left, right) if left <= x <= right]
    return tag(
        "div",
        tag("div", *(tag("span", _plain(y), style=f"top:{_at(y, high, low)}%") for y in ticks_y), class_="ticks"),
        tag("div", _svg(join([*rules, *drawn]), label), class_="plot"),
        tag("div", *(tag("span", _plain(x), style=f"left:{_at(x, left, right)}%") for x in ticks_x), class_="below"),
        tag("p", label, tag("small", f" {unit}") if unit else None, class_="label"),
        class_="lines",
    )


def _finite(curve: Curve) -> Curve:
    kept = [(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Curve([x for x, _ in kept], [y for _, y in kept], curve.style)


def _path(curve: Curve, x_range: tuple[float, float], y_range: tuple[float, float]) -> Html:
    points = [f"{_at(x, *x_range)},{_at(y, y_range[1], y_range[0])}" for x, y in thin(curve.xs, curve.ys)]
    if len(points) == 1:
        points = [f"0,{points[0].split(',')[1]}", f"100,{points[0].split(',')[1]}"]
    return tag("polyline", points=" ".join(points), class_=curve.style)


def thin(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """The points of a line, at most MOST_POINTS: of each span of equal length its lowest and its highest point."""
    points = list(zip(xs, ys, strict=True))
    if len(points) <= MOST_POINTS:
        return points
    found: list[tuple[float, float]] = []
    spans = MOST_POINTS // 2
    for at in range(spans):
        span = points[at * len(points) // spans : (at + 1) * len(points) // spans]
        found += sorted({min(span, key=lambda point: point[1]), max(span, key=lambda point: point[1])})
    return found


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving mean with the weight `weight` (0..1) on the past, corrected for the start from nothing.

    The correction is that of Adam (Kingma and Ba 2015, equation for the bias-corrected first moment).
    Values that are not finite are passed over.
    """
    mean, seen, found = 0.0, 0, []
    for value in values:
        if math.isfinite(value):
            mean, seen = weight * mean + (1 - weight) * value, seen + 1
        found.append(mean / (1 - weight**seen) if seen else math.nan)
    return found


def round_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers (1, 2 or 5 times a power of ten apart) that span `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    gap = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 4)
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [at * gap for at in range(first, max(last, first + 1) + 1)]


def _at(value: float, start: float, end: float) -> float:
    """Where `value` lies between `start` and `end`, in per cent; the middle if they are one."""
    return 50.0 if start == end else round(100 * abs((value - start) / (end - start)), 3)


def _plain(value: float) -> str:
    """A tick's number, without a tail of nines; small ones as 2e-05."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.3g}"
    return f"{round(value, 6):,.10g}"


def _svg(inside: Html, label: str) -> Html:
    return tag("svg", inside, viewBox="0 0 100 100", preserveAspectRatio="none", role="img", aria_label=label)


def river(steps: Sequence[Step]) -> Html:
    """The funnel as a river: its width is what is still there, and at each step the reasons branch off."""
    whole = steps[0].count if steps else 0
    before = [steps[0], *steps] if steps else []
    return tag(
        "ol", *(_reach(step, was.count, whole) for was, step in zip(before, steps, strict=False)), class_="river"
    )


def _reach(step: Step, before: int, whole: int) -> Html:
    """One step: the water narrows from `before` to what is left, of `whole` at the source; the rest flows off."""
    start, end = (WATER * count / whole if whole else 0.0 for count in (before, step.count))
    bank = "M0,0 H{0:.2f} C{0:.2f},44 {1:.2f},32 {1:.2f},76 V100 H0 Z"
    water = tag("path", d=bank.format(start, end), class_="water")
    flow = "M{0:.2f},0 C{0:.2f},44 {1:.2f},32 {1:.2f},76 V100"
    flows = [tag("path", d=flow.format(start * at, end * at), class_="flow") for at in FLOWS]
    # the branch: broader the more rows leave, at least a trickle; it begins under the water
    deep, mouth = 3 + 0.4 * (start - end), 7 + 0.6 * (start - end)
    bend = end + 0.35 * (100 - end)
    over = f"M{end:.2f},{42 - mouth:.2f} C{bend:.2f},{42 - mouth / 4:.2f} {bend:.2f},42 100,42 V{42 + deep:.2f}"
    under = f"C{bend:.2f},{42 + deep:.2f} {bend:.2f},{42 + deep + mouth / 4:.2f} {end:.2f},{42 + deep + mouth:.2f} Z"
    leaving = tag("path", d=f"{over} {under}", class_="leaving")
    lost = sum(count for _, count in step.lost)
    words = [
        tag("p", tag("b", number(step.count)), tag("span", step.name), tag("small", share(step.count, whole))),
        tag("p", step.meaning, class_="meaning"),
        _reasons(step.lost, lost) if lost else None,
    ]
    shape = _svg(
        join([leaving if lost else None, water, *flows]), f"{step.name}: {number(step.count)} of {number(whole)}"
    )
    return tag("li", tag("div", shape, class_="reach"), tag("div", *words, class_="words"))


def _reasons(lost: Sequence[tuple[str, int]], total: int) -> Html:
    ordered = sorted(lost, key=lambda item: (-item[1], item[0]))
    rows = [tag("li", tag("b", f"−{number(count)}"), tag("span", reason)) for reason, count in ordered]
    head = tag("ul", *rows[:REASONS_SHOWN], class_="reasons")
    if len(rows) <= REASONS_SHOWN:
        return head
    rest = sum(count for _, count in ordered[REASONS_SHOWN:])
    more = tag("summary", f"{counted(len(rows) - REASONS_SHOWN, 'more reason')}, {number(rest)} of {number(total)}")
    return Html(head + tag("details", more, tag("ul", *rows[REASONS_SHOWN:], class_="reasons")))


def key(entries: Sequence[tuple[str, str]]) -> Html:
    """What the colours mean: pairs of a class in the stylesheet (all, pick, raw, smooth) and words."""
    return tag("p", *(tag("span", tag("i", class_=style), escape(words)) for style, words in entries), class_="key")
