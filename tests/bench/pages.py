"""The page of `make bench`: ours beside the peers, growth as plots, all figures, and what was not measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rows import Plot, figure

from sote.cluster import charts, page
from sote.cluster.charts import Curve
from sote.cluster.page import Html, Node, Section, join, tag

CHANGED = {True: " (changed)", False: "", None: " (?)"}
STYLES = ("t0", "t2", "t3", "t1")
Kept = dict[str, Any]


def drawn(plot: Plot) -> Html:
    """A plot as the project's line chart; where it is logarithmic the axes say powers of ten."""
    curves = [
        Curve(*_points(points, is_log=plot.is_log), style)
        for points, style in zip(plot.lines.values(), STYLES, strict=False)
    ]
    unit = f"{plot.y} over {plot.x}" + (", both as powers of ten (3 is 1,000)" if plot.is_log else "")
    return charts.lines(curves, label=plot.title, unit=unit)


def _points(points: Sequence[tuple[float, float]], *, is_log: bool) -> tuple[list[float], list[float]]:
    kept = [(x, y) for x, y in points if not is_log or (x > 0 and y > 0)]
    scale = math.log10 if is_log else float
    return [scale(x) for x, _ in kept], [scale(y) for _, y in kept]


def report(machine: Kept, others: Sequence[Kept]) -> str:
    """The page of one machine's results; `others` are named with theirs."""
    rows, plots = machine["rows"], machine["plots"]
    beside = [row for row in rows if row["peer"] is not None]
    sections = [
        Section("peers", "Beside the peers", Html("Above 1 ours is better, below 1 the peer&#39;s."), _ratios(beside)),
        Section("growth", "Growth", Html("What was measured, point by point."), join([_plot(each) for each in plots])),
        Section(
            "figures", "All figures", Html("Medians of runs in turn where a peer stands beside."), _all(rows, others)
        ),
        Section("not-measured", "Not measured", Html("And why."), _missing(machine["not_measured"])),
    ]
    header = tag("div", tag("h1", "Benchmarks"), tag("p", machine["hardware"] or machine["machine"]))
    said = ". Each row says its commit and its command; (?): whether that had changes is not known."
    footer = tag("p", "Written by ", page.code("make bench"), said)
    return page.page(title="Benchmarks", header=header, sections=sections, footer=footer)


def _ratios(rows: Sequence[Kept]) -> Html:
    if not rows:
        return page.nothing("No bench with a peer has run yet.")
    lines: list[list[Node]] = [
        [
            row["what"],
            f"{figure(row['ours'])} {row['unit']}",
            f"{figure(row['peer'])} {row['unit']}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            row["peer_is"],
        ]
        for row in rows
    ]
    return page.table(["what", "ours", "peer", "ratio", "the peer"], lines, words_from=4)


def _plot(plot: Kept) -> Html:
    made = Plot(plot["title"], plot["x"], plot["y"], plot["lines"], plot["is_log"])
    named = zip(plot["lines"], STYLES, strict=False)
    return tag(
        "div",
        drawn(made),
        charts.key([(style, name) for name, style in named]),
        _numbers(plot["lines"], x=plot["x"], y=plot["y"]),
    )


def _numbers(lines: Mapping[str, Sequence[Sequence[float]]], *, x: str, y: str) -> Html:
    xs = sorted({point[0] for points in lines.values() for point in points})
    at = {name: {point[0]: point[1] for point in points} for name, points in lines.items()}
    table = page.table(
        [x, *(f"{name}, {y}" for name in lines)],
        [[f"{each:,.0f}", *(figure(at[name][each]) if each in at[name] else "" for name in lines)] for each in xs],
        numbers_from=0,
    )
    return tag("details", tag("summary", "the numbers"), table)


def _all(rows: Sequence[Kept], others: Sequence[Kept]) -> Html:
    lines: list[list[Node]] = [
        [
            f"{row['bench']}: {row['what']}",
            f"{figure(row['ours'])} {row['unit']}",
            row["date"][:10],
            f"{row['commit'] or 'unknown'}{CHANGED[row['dirty']]}",
            page.code(row["command"]),
        ]
        for row in rows
    ]
    more = [f"{each['machine']} ({len(each['rows'])} rows)" for each in others]
    beside = tag("p", f"Other machines in BENCHMARKS.md: {', '.join(more)}.") if more else None
    table = page.table(["what", "ours", "date", "commit", "command"], lines, words_from=2)
    return join([table, beside])


def _missing(missing: Sequence[Kept]) -> Html:
    if not missing:
        return page.nothing("Everything was.")
    return tag("ul", *(tag("li", f"{each['bench']}: {each['why']}") for each in missing))
