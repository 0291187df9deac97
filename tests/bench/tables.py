"""BENCHMARKS.md: the newest of each row of all machines, bench by bench, and what was not run and why."""

from collections.abc import Iterator, Sequence
from typing import Any

from benches import BENCHES, LONG_ALONE, Bench
from results import newest
from rows import figure

Kept = dict[str, Any]
HEAD = f"""# Benchmarks

`make bench` writes this file: every bench that a machine can run, ours and the peer's way in the same run. What is not
here was not measured. Only `make bench BENCH=--long` runs {", ".join(LONG_ALONE[:-1])} and {LONG_ALONE[-1]}.

The ratio says how many times better ours is, whichever way is better for the unit; **below 1 the peer's is better**. A
commit with `+` had changes that were not committed. "Busy" is a machine that had more than a tenth of a core at other
work when the bench began. `?` in place of either: not known. What each bench does not show: `tests/bench/NOTES.md`.
"""
BUSY_CORES = 0.1  # at other work before a bench begins
CHANGED = {True: "+", False: "", None: "?"}
COLUMNS = ("what", "ours", "peer", "ratio", "machine", "date", "commit", "command")


def markdown(machines: Sequence[Kept]) -> str:
    """The whole file."""
    rows = newest([row for machine in machines for row in machine["rows"]])
    parts = [HEAD, *_machines(machines)]
    for bench in BENCHES:
        shown = [row for row in rows if row["bench"] == bench.name and not row["detail"]]
        if shown:
            parts += _bench(bench, shown, hidden=sum(row["bench"] == bench.name for row in rows) - len(shown))
    plots = [plot for machine in machines for plot in machine["plots"]]
    if plots:
        parts += ["## Growth\n", *(_plot(plot) for plot in plots)]
    return "\n".join([*parts, "## Not measured\n", *_missing(machines, {row["bench"] for row in rows})]) + "\n"


def _machines(machines: Sequence[Kept]) -> Iterator[str]:
    yield "## Machines\n"
    for machine in machines:
        yield f"- `{machine['machine']}`: {machine['hardware'] or 'hardware as its name says'}"
    if not machines:
        yield "- none yet"
    yield ""


def _bench(bench: Bench, rows: Sequence[Kept], *, hidden: int) -> Iterator[str]:
    yield f"## {bench.name.capitalize()}: {bench.about}\n"
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|---|---:|---:|---:|---|---|---|---|"
    yield from map(_line, rows)
    yield ""
    if hidden:
        yield f"{hidden} rows more are in the results alone.\n"


def _line(row: Kept) -> str:
    peer = "" if row["peer"] is None else f"{figure(row['peer'])} ({row['peer_is']})"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    if row["ratio"] is not None and row["ratio"] < 1:
        ratio = f"**{ratio}**"
    busy_cores = row["busy_cores"]
    busy = ", ?" if busy_cores is None else ", busy" if busy_cores > BUSY_CORES else ""
    cells = (
        row["what"] + (f" ({row['note']})" if row["note"] else ""),
        f"{figure(row['ours'])} {row['unit']}",
        peer,
        ratio,
        f"{row['machine']}{busy}",
        row["date"][:10],
        f"{(row['commit'] or 'unknown')[:10]}{CHANGED[row['dirty']]}",
        f"`{row['command']}`",
    )
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _plot(plot: Kept) -> str:
    names = list(plot["lines"])
    xs = sorted({point[0] for points in plot["lines"].values() for point in points})
    at = {name: dict(map(tuple, points)) for name, points in plot["lines"].items()}
    lines = [
        f"{plot['title']} ({plot['y']}; {plot['machine']}, {plot['date'][:10]}, `{plot['command']}`)\n",
        f"| {plot['x']} | " + " | ".join(names) + " |",
        "|---:|" + "---:|" * len(names),
    ]
    for x in xs:
        cells = [figure(at[name][x]) if x in at[name] else "" for name in names]
        lines.append(f"| {x:,.0f} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _missing(machines: Sequence[Kept], measured: set[str]) -> Iterator[str]:
    said = set()
    for machine in machines:
        for each in machine["not_measured"]:
            said.add(each["bench"])
            yield f"- {each['bench']}, on {machine['machine']}: {each['why']}"
    for bench in BENCHES:
        if bench.name not in measured | said:
            yield f"- {bench.name}: no figures are kept yet"
