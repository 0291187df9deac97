"""A cluster held against the river: for each part the nodes that can run it, its engine there, how fast, and why not.

What the parts need comes from those who know it (the door asks data/, train/ and serve/); here it is held against what
the nodes have. A label is believed: it says what a node was started as, and where its driver shows no such device, the
row of the node says so.

Kind: wiring.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sote.cluster import capacity, devices, nodes
from sote.cluster.capacity import Bundle, Place
from sote.cluster.devices import GB, INSTALL, ONNX_ENGINE
from sote.cluster.nodes import Node
from sote.cluster.page import counted, number

Rate = Callable[[str], float | None]


@dataclass(frozen=True)
class Demand:
    """What a part of the river asks of a cluster. `rate` is images a second on one device by its name, None if it is
    not known; `core_rate` those that one core prepares, None where nothing is prepared. `workers` must run at once.

    `on_cpu`: it runs where no device is, too, as slow as that is. `is_onnx`: a model in ONNX, whose engine the device
    decides; else torch.
    """

    name: str
    device_bytes: int
    workers: int = 1
    on_cpu: bool = True
    is_onnx: bool = False
    rate: Rate = lambda _: None
    core_rate: float | None = None
    core_flop_rate: float | None = None  # images a second of one core that computes the models itself


def render(found: Sequence[Node], demands: Sequence[Demand]) -> RenderableType:
    """The cluster for a terminal."""
    parts: list[RenderableType] = [_nodes(found), Text(), _parts(found, demands)]
    lines = [*nodes.differences(list(found)), *_missing(found)]
    if lines:
        parts += [Text(), *(Text(line, style="yellow") for line in lines)]
    return Group(*parts)


def _nodes(found: Sequence[Node]) -> Table:
    table = _table("node", "role", "cores", "memory", "store", "disk free", "computes on", "device", "state")
    for node in found:
        answer = node.answer
        sizes = (answer.memory_bytes, answer.free_disk_bytes) if answer else (None, None)
        table.add_row(
            f"{node.ip} {node.id[:6]}",
            "head" if node.is_head else "worker",
            f"{node.cpus:g}",
            _size(sizes[0]),
            _size(int(node.resources.get("object_store_memory", 0))),
            _size(sizes[1]),
            _computes(node),
            _shown(node),
            _state(node),
        )
    return table


def _computes(node: Node) -> str:
    if not node.slots:
        return "cpu"
    memory = f" of {node.device_gb} GB" if node.device_gb else ""
    return f"{node.slots} x {node.kind}{memory}" if node.kind != "cpu" else f"cpu, {counted(node.slots, 'slot')}"


def _shown(node: Node) -> str:
    """What the node's drivers show."""
    if node.answer is None:
        return ""
    names = Counter(device.name for device in node.answer.devices)
    return ", ".join(f"{count} x {name}" for name, count in names.items()) or "none"


def _state(node: Node) -> Text:
    if node.answer is None:
        return Text(node.silence or "did not answer", style="red")
    if node.answer.sote is None:
        return Text("has no sote", style="yellow")
    if node.slots and node.kind != "cpu" and not any(each.kind == node.kind for each in node.answer.devices):
        return Text(f"started as {node.kind}, shows none", style="yellow")
    return Text("answers", style="green")


def engine(node: Node, demand: Demand) -> str | None:
    """What would run a part on a node: an engine; None where what it needs is not installed there."""
    if node.answer is None or not node.answer.engines:
        return None
    if not demand.is_onnx:
        return None if "torch" in node.answer.missing else "torch"
    kinds = [*(device.kind for device in node.answer.devices), "cpu"]
    return next((each for kind, each in zip(kinds, node.answer.engines, strict=True) if kind == node.kind), None)


def why_not(found: Sequence[Node], demand: Demand) -> str | None:
    """One line: what the part asks for and what there is; None where it can run."""
    has_devices = any(node.slots for node in found)
    if demand.on_cpu and not has_devices:
        return None
    places = [Place(node.resources, node.labels) for node in found]
    bundle = Bundle(gpus=1, device_bytes=demand.device_bytes, count=demand.workers)
    missing = capacity.shortage([bundle], places)
    if missing is None or demand.workers == 1:
        return missing
    alike = Counter[tuple[str, int | None]]()
    for node in found:
        alike[node.kind, node.device_gb] += node.slots
    (kind, memory), most = max(alike.items(), key=lambda item: item[1])
    largest = f"{most} x {kind}{f' of {memory} GB' if memory else ''}" if most else "none"
    return f"{missing}; the largest group of alike ones: {largest}"


def taking(found: Sequence[Node], demand: Demand) -> list[Node]:
    """The nodes that would run a part."""
    with_slots = [node for node in found if node.slots]
    if demand.on_cpu and not with_slots:
        return [node for node in found if node.cpus]
    return [node for node in with_slots if devices.suffices(node.labels, demand.device_bytes)]


def speed(found: Sequence[Node], demand: Demand) -> str:
    """Images a second that the cluster would do of a part, what binds it, and the devices whose speed is not known."""
    total, unknown = 0.0, Counter[str]()
    for node in taking(found, demand):
        names = [device.name for device in node.answer.devices if device.kind == node.kind] if node.answer else []
        if node.kind == "cpu" or not node.slots:
            total += node.cpus * (demand.core_flop_rate or 0.0)
            continue
        for name in names:
            rate = demand.rate(name)
            total += rate or 0.0
            unknown[name] += rate is None
    prepared = sum(node.cpus for node in found) * (demand.core_rate or float("inf"))
    with_devices = any(node.slots and node.kind != "cpu" for node in found)
    binds = "devices" if total < prepared and with_devices else "cores"
    words = [f"{number(min(total, prepared), 1 if total >= 1 else 3)} ({binds} bind)"] if total else []
    words += [f"not known for {', '.join(name for name, count in unknown.items() if count)}"] if +unknown else []
    return ", ".join(words)


def _parts(found: Sequence[Node], demands: Sequence[Demand]) -> Table:
    table = _table("would run", "needs of a device", "on", "images/s", "or why not")
    for demand in demands:
        missing = why_not(found, demand)
        takers = [] if missing else taking(found, demand)
        kinds = Counter((node.kind, engine(node, demand)) for node in takers)
        places = ", ".join(
            f"{counted(count, f'{kind} node')} ({name or 'no engine'})" for (kind, name), count in kinds.items()
        )
        words = speed(takers and found, demand)
        needs = f"{number(demand.device_bytes / GB, 1)} GB" + (f" x {demand.workers}" if demand.workers > 1 else "")
        table.add_row(demand.name, needs, places, words, Text(missing or _engineless(takers, demand), style="yellow"))
    return table


def _engineless(takers: Sequence[Node], demand: Demand) -> str:
    """What to install on nodes that would take a part and have no engine for it."""
    without = sorted({node.kind for node in takers if node.answer is not None and engine(node, demand) is None})
    wanted = {kind: INSTALL[ONNX_ENGINE[kind]] if demand.is_onnx else INSTALL["torch"] for kind in without}
    return "; ".join(f"{kind}: no device with an engine there, {wanted[kind]}" for kind in without)


def _missing(found: Sequence[Node]) -> list[str]:
    absent = Counter[str]()
    for node in found:
        absent.update(node.answer.missing if node.answer else ())
    return [f"{name} is missing on {counted(count, 'node')}" for name, count in sorted(absent.items())]


def _size(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{number(size_bytes / GB, 1)} GB"


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head, justify="right" if head in ("cores", "memory", "store", "disk free") else "left")
    return table
