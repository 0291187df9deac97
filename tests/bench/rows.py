"""What a bench hands over, as JSON: rows of ours beside the peer's way, plots of growth, and what it did not measure.

A bench adds `--json FILE` with `add_option` and ends with `write`; run.py reads the file with `read` and adds machine,
date, commit and command.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Better = Literal["higher", "lower"]
NOBODY = ""


@dataclass(frozen=True)
class Row:
    """One figure. `what` is its name within the bench; `peer_is` says what the peer's figure is of.

    A row of `detail` is kept in the results and left out of BENCHMARKS.md.
    """

    what: str
    ours: float
    unit: str
    better: Better = "higher"
    peer: float | None = None
    peer_is: str = NOBODY
    note: str = ""
    detail: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer's: below 1 the peer's is better. None without a peer."""
        if not self.peer or not self.ours:
            return None
        return self.ours / self.peer if self.better == "higher" else self.peer / self.ours

    def line(self) -> str:
        """For people, on the terminal."""
        said = f"{self.what:<62} {figure(self.ours):>11} {self.unit}"
        if self.peer is None:
            return said
        ratio = NOBODY if self.ratio is None else f": {self.ratio:.2f} times"
        return f"{said}, {self.peer_is} {figure(self.peer)}{ratio}"


@dataclass(frozen=True)
class Plot:
    """Growth: lines by name, each of points (x, y). With `is_log` both axes are drawn as powers of ten."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    is_log: bool = False


@dataclass(frozen=True)
class Answer:
    """All that a bench hands over."""

    rows: Sequence[Row] = ()
    plots: Sequence[Plot] = ()
    not_measured: Sequence[str] = field(default=())


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a bench be told where its answer goes."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, for `make bench`")


def write(path: Path | None, answer: Answer) -> None:
    """Hand over, or do nothing without a path. The file is there whole or not at all."""
    if path is None:
        return
    put(path, json.dumps(asdict(answer), indent=1) + "\n")


def read(path: Path) -> Answer:
    """What `write` wrote."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    plots = tuple(
        Plot(**each | {"lines": {name: [(x, y) for x, y in points] for name, points in each["lines"].items()}})
        for each in found["plots"]
    )
    return Answer(tuple(Row(**each) for each in found["rows"]), plots, tuple(found["not_measured"]))


def put(path: Path, text: str) -> None:
    """Write a file under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def in_turn(ways: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, float]:
    """The median of each way's figures; in a round each has its turn, so that all see the same machine."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(way())
    return {name: statistics.median(values) for name, values in taken.items()}


def figure(value: float) -> str:
    """A number with three or four digits that say something: 12,345; 12.3; 0.0123."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
