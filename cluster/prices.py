"""What a run costs on the nodes of a cluster's profile: hours by the clock times nodes held, times their price.

Hours are handed in as plain numbers; whose they are says what they rest on. Prices are the profile's own: where it has
none, there is none here. All nodes of a pass are held for as long as it takes, and the head for the whole run.

Kind: pure, but for the picture for a terminal.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich import box
from rich.console import Group as Parts
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sote.cluster.cluster_profile import ClusterProfile, Group, Price, Use
from sote.cluster.errors import UserError
from sote.cluster.page import duration, number

SECONDS_AN_HOUR: Final = 3600
HEAD: Final = "head"
THROUGHOUT: Final = "throughout"
WHOLE_FROM: Final = 100  # in the profile's currency; from here on amounts are shown without the part behind the point
TENTHS_FROM: Final = 10  # node-hours
NOT_IN_IT: Final = (
    "Not in it: nodes that start, wait or stay when their pass is over, storage, traffic; and on spot nodes the work "
    "that is done again when one is taken away, which was not measured."
)


@dataclass(frozen=True)
class Pass:
    """One pass of a run: hours by the clock, and the nodes that it holds meanwhile, by the name of their group.

    `hours` is None where nothing is known about them. `instead`: it is another way for a pass that stands before, or
    is looked at for itself, and does not count in the total. `note` is said beside it.
    """

    what: str
    hours: float | None
    nodes: Mapping[str, int]
    instead: bool = False
    note: str = ""


@dataclass(frozen=True)
class Fleet:
    """All nodes that may do a work: their cores, accelerators by name, and nodes by group, each at `max_nodes`."""

    cores: int
    devices: dict[str, int]
    nodes: dict[str, int]


@dataclass(frozen=True)
class Line:
    """One group in one pass. Amounts are in the profile's currency, None where the profile has no such price."""

    what: str
    group: str
    nodes: int
    hours: float | None
    price: Price | None = None
    is_spot: bool = False
    instead: bool = False
    note: str = ""

    @property
    def node_hours(self) -> float | None:
        return None if self.hours is None else self.hours * self.nodes

    @property
    def on_demand(self) -> float | None:
        return self._amount(None if self.price is None else self.price.on_demand)

    @property
    def spot(self) -> float | None:
        return self._amount(None if self.price is None else self.price.spot)

    @property
    def cheapest(self) -> float | None:
        """The spot amount, or that on demand where there is no spot price."""
        return self.on_demand if self.spot is None else self.spot

    @property
    def as_profile(self) -> float | None:
        """What the profile's own kind of node costs: spot where the group says so."""
        return self.spot if self.is_spot else self.on_demand

    def _amount(self, price: float | None) -> float | None:
        return None if price is None or self.node_hours is None else price * self.node_hours


@dataclass(frozen=True)
class Total:
    """The sum of what has a price; `without` names the groups and passes that have none."""

    amount: float
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A run, priced. `hours` are those of all passes that count, one after the other."""

    name: str
    currency: str
    lines: tuple[Line, ...]
    hours: float
    notes: tuple[str, ...] = field(default=())

    @property
    def on_demand(self) -> Total:
        """If every node is paid for on demand."""
        return self._total(lambda line: line.on_demand)

    @property
    def spot(self) -> Total:
        """If every node that has a spot price is one that may be taken away."""
        return self._total(lambda line: line.cheapest)

    @property
    def as_profile(self) -> Total:
        """As the profile has it: spot in the groups with `spot = true`."""
        return self._total(lambda line: line.as_profile)

    def _total(self, amount: Callable[[Line], float | None]) -> Total:
        found = [(line.group, amount(line)) for line in self.lines if not line.instead]
        missing = dict.fromkeys(group for group, it in found if it is None)
        return Total(sum(it for _, it in found if it is not None), tuple(missing))


def estimate(profile: ClusterProfile, passes: Sequence[Pass], *, notes: Sequence[str] = ()) -> Estimate:
    """Price the passes, which follow one another. Raises UserError for a group that the profile has not."""
    lines: list[Line] = []
    for each in passes:
        lines += (_line(profile, each, name, count) for name, count in each.nodes.items())
    counted = [each.hours for each in passes if not each.instead]
    hours = sum(it for it in counted if it is not None)
    if counted:
        known = hours if None not in counted else None
        lines.append(Line(THROUGHOUT, HEAD, 1, known, profile.head.price))
    return Estimate(profile.name, profile.currency, tuple(lines), hours, (*notes, NOT_IN_IT))


def fleet(profile: ClusterProfile, use: Use) -> Fleet:
    """All nodes that do the work `use`. Raises UserError if there is none."""
    groups = profile.of_use(use)
    if not groups:
        uses = ", ".join(dict.fromkeys(it for group in profile.groups for it in group.use))
        raise UserError(
            f"cluster {profile.name!r}: groups: none is of use {use!r}, which this recipe needs; there is {uses}"
        )
    devices: dict[str, int] = {}
    for group in groups:
        if group.device is not None:
            devices[group.device] = devices.get(group.device, 0) + group.devices * group.max_nodes
    return Fleet(
        cores=sum(group.cpus * group.max_nodes for group in groups),
        devices=devices,
        nodes={group.name: group.max_nodes for group in groups},
    )


def fitting(profile: ClusterProfile, use: Use, *, slots: float, gigabytes: float | None = None) -> tuple[Group, ...]:
    """The groups that can do the work `use` alone: `slots` accelerators over all their nodes, each with `gigabytes`.

    No slots: CPU nodes do. Raises UserError in one line that says what each group lacks if there is none.
    """
    fleet(profile, use)
    found, lacks = [], []
    for group in profile.of_use(use):
        there = group.slots * group.max_nodes
        if there < slots:
            lacks.append(f"{group.name} has {there} at most")
        elif slots and gigabytes and group.device_memory_gb is not None and group.device_memory_gb < gigabytes:
            lacks.append(f"one of {group.name} has {group.device_memory_gb} GB")
        else:
            found.append(group)
    if not found:
        size = f" of {gigabytes:.0f} GB" if gigabytes else ""
        raise UserError(
            f"cluster {profile.name!r}: groups: this recipe needs {slots:g} accelerators{size} in one group of use "
            f"{use!r}; {', '.join(lacks)}; raise max_nodes or name another device"
        )
    return tuple(found)


def nodes_for(group: Group, slots: float) -> int:
    """So many nodes of the group have that many slots; at least one."""
    return max(math.ceil(slots / group.slots), 1) if group.slots else 1


def _line(profile: ClusterProfile, each: Pass, name: str, nodes: int) -> Line:
    for group in profile.groups:
        if group.name == name:
            return Line(each.what, name, nodes, each.hours, group.price, group.spot, each.instead, each.note)
    known = ", ".join(group.name for group in profile.groups)
    raise UserError(f"cluster {profile.name!r}: groups: there is no {name!r}; known: {known}")


def render(priced: Estimate) -> RenderableType:
    """The estimate as a table, at most 100 columns wide, and what it rests on."""
    title = f"Cost on the cluster {priced.name}, in {priced.currency}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, side in (("pass", "left"), ("group", "left"), *((it, "right") for it in RIGHT)):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=name == "pass")
    last = ""
    for line in priced.lines:
        what = line.what if line.what != last else "  or" if line.instead else ""
        last = line.what
        cells = (
            _hours(line.hours),
            "" if line.node_hours is None else number(line.node_hours, _digits(line.node_hours)),
        )
        spot = "" if line.price is not None and line.price.spot is None else _cell(line.spot, line)
        style = "dim" if line.instead else None
        table.add_row(what, _kind(line), str(line.nodes), *cells, _cell(line.on_demand, line), spot, style=style)
    if any(not line.instead for line in priced.lines):
        table.add_section()
        sums = (_sum(priced.on_demand), _sum(priced.spot))
        table.add_row("total", "", "", _hours(priced.hours), "", *sums, style="bold")
    return Parts(table, *(Text(note, style="dim") for note in _said(priced)))


RIGHT: Final = ("nodes", "hours", "node-hours", "on demand", "spot")


def _said(priced: Estimate) -> list[str]:
    said = [f"{line.what}: {line.note}" for line in priced.lines if line.note]
    whole, mixed = priced.on_demand, priced.as_profile
    if any(line.is_spot and not line.instead for line in priced.lines):
        said.append(f"As the profile has it, spot where it says so: {_sum(mixed)} {priced.currency}.")
    if whole.without:
        said.append(f"No price, and so not in the total: {', '.join(whole.without)}. Say it in the profile.")
    return list(dict.fromkeys([*said, *priced.notes]))


def _kind(line: Line) -> str:
    return f"{line.group} (spot)" if line.is_spot else line.group


def _cell(amount: float | None, line: Line) -> str:
    if line.hours is None:
        return "not known"
    return "no price" if amount is None else _money(amount)


def _sum(total: Total) -> str:
    if total.without and not total.amount:
        return "no price"
    return f"{_money(total.amount)}{' + ?' if total.without else ''}"


def _money(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= WHOLE_FROM else f"{amount:,.2f}"


def _digits(value: float) -> int:
    """Behind the point."""
    return 2 if value < TENTHS_FROM else 1


def _hours(hours: float | None) -> str:
    return "not known" if hours is None else duration(hours * SECONDS_AN_HOUR)
