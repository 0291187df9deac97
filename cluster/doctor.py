"""What this machine can do: cores, memory, disk, accelerators, engines, weights, and what would run where.

Nothing is started or loaded but the libraries themselves, which are asked what they see.

Kind: wiring.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sote.cluster import devices, weights
from sote.cluster.devices import Device
from sote.cluster.page import number
from sote.cluster.weights import Weights

GB: Final = 1_000_000_000
TAGGER: Final = "tagger"
# What each part of the river runs its models with (see data/score.py, data/text.py, data/encode.py, train/loop.py,
# serve/cascade.py), and by which key its weights are known. The tagger's engine depends on the device.
WORK: Final = (
    ("tag", TAGGER, ("wd-swinv2-tagger-v3",)),
    ("score", "torch", ("aesthetic-shadow-v2", "clip-vit-b-32-openai", "aes-b32-v0")),
    ("text", "torch", ("llava-1.5-7b",)),
    ("latents", "torch", ("stable-cascade-effnet",)),
    ("train", "torch", ("stable-cascade-prior",)),
    ("serve", "torch", ("sotediffusion-wuerstchen3", "sotediffusion-wuerstchen3-decoder")),
)


@dataclass(frozen=True)
class Engine:
    """A library that runs models: what it is built for, and the kind of accelerator that works with it now."""

    name: str
    version: str
    built_for: tuple[str, ...]
    accelerator: str | None


@dataclass(frozen=True)
class WeightsState:
    """One entry of the known weights, and where it lies here, if it does."""

    weights: Weights
    path: Path | None


@dataclass(frozen=True)
class Placement:
    """Which engine and device a part of the river would take, and the keys of its default weights that are missing."""

    part: str
    engine: str
    device: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All that was found. Bytes are those of the machine; `cores` are those this process may use.

    `taggers` has for each device, the CPU last, the engine that the tagger would take there; None if there is none.
    """

    cores: int
    memory_bytes: int
    free_memory_bytes: int
    disk: Path
    free_disk_bytes: int
    devices: tuple[Device, ...]
    taggers: tuple[tuple[Device, str | None], ...]
    engines: tuple[Engine, ...]
    weights: tuple[WeightsState, ...]
    placements: tuple[Placement, ...]


def examine(disk: Path = Path()) -> Report:
    """Look at this machine; the free space is that of the disk on which the folder `disk` lies."""
    found = devices.found()
    engines = tuple(engine for engine in (_torch(), _onnxruntime(found)) if engine is not None)
    taggers = tuple((each, _tagger(each)) for each in (*found, devices.cpu()))
    states = tuple(WeightsState(known, weights.present(known)) for known in weights.KNOWN)
    memory, free = _memory()
    return Report(
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory,
        free_memory_bytes=free,
        disk=disk.resolve(),
        free_disk_bytes=shutil.disk_usage(disk).free,
        devices=found,
        taggers=taggers,
        engines=engines,
        weights=states,
        placements=tuple(_placements(engines, states, taggers[0])),
    )


def _memory() -> tuple[int, int]:
    """Bytes of memory of this machine: all, and what programs could still take (Linux: /proc/meminfo, in KiB)."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024


def _torch() -> Engine | None:
    if util.find_spec("torch") is None:
        return None
    import torch  # seconds to import: only when somebody asks

    built_for = ["cpu"]
    if torch.version.cuda:
        built_for.append(f"CUDA {torch.version.cuda}")
    if torch.version.hip:
        built_for.append(f"ROCm {torch.version.hip}")
    if torch.version.xpu:
        built_for.append(f"XPU {torch.version.xpu}")
    working = [name for name, module in (("cuda", torch.cuda), ("xpu", torch.xpu)) if module.is_available()]
    return Engine("torch", str(torch.__version__), tuple(built_for), working[0] if working else None)


def _onnxruntime(found: Sequence[Device]) -> Engine | None:
    """What it is built for says nothing of a device: a provider works where the device is there, too."""
    if util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    built_for = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    if util.find_spec(devices.PLUGIN) is not None:
        built_for.append("OpenVINO (plugin)")
    working = [each.kind for each in found if set(devices.offered_engines(each)) - {"torch"}]
    return Engine("onnxruntime", str(onnxruntime.__version__), tuple(built_for), working[0] if working else None)


def _tagger(device: Device) -> str | None:
    """The engine that "auto" takes on a device for a tagger that has its ONNX file."""
    return devices.pick_engine(device, offered=devices.offered_engines(device))


def _placements(
    engines: Sequence[Engine], states: Sequence[WeightsState], tagger: tuple[Device, str | None]
) -> list[Placement]:
    by_name = {engine.name: engine for engine in engines}
    absent = {state.weights.key for state in states if state.path is None}
    found = []
    for part, name, keys in WORK:
        if name == TAGGER:
            first, chosen = tagger
            name, device = _library(chosen), str(first.kind)
        else:
            engine = by_name.get(name)
            device = "not installed" if engine is None else engine.accelerator or "cpu"
        found.append(Placement(part, name, device, tuple(key for key in keys if key in absent)))
    return found


def _library(engine: str | None) -> str:
    """An engine with the library that it is part of."""
    return "no engine" if engine is None else engine if engine == "torch" else f"onnxruntime ({engine})"


def render(report: Report) -> RenderableType:
    """The report for a terminal."""
    machine = (
        f"{report.cores} cores, {_size(report.memory_bytes)} of memory ({_size(report.free_memory_bytes)} free), "
        f"{_size(report.free_disk_bytes)} free at {report.disk}"
    )
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "diffusers") if util.find_spec(name))
    parts: list[RenderableType] = [Text(machine), Text(packages, style="dim"), Text()]
    parts += [_devices(report), _engines(report), Text(), _places(report), Text(), _weights(report)]
    if any(state.path is None for state in report.weights):
        parts += [Text(), Text("`sote check RECIPE` says how to fetch what a recipe needs and is missing.")]
    return Group(*parts)


def _devices(report: Report) -> RenderableType:
    """Each accelerator and the CPU, with the engine that the tagger would take there."""
    torch_sees = {"cpu"} | {str(each.accelerator) for each in report.engines if each.name == "torch"}
    table = _table("device", "memory", "kind", "tagger's engine")
    for device, engine in report.taggers:
        unseen = "" if device.torch_name.partition(":")[0] in torch_sees else " (torch does not see it)"
        size = "" if device.memory_bytes is None else _size(device.memory_bytes)
        missing = Text(f"none: install {devices.INSTALL[devices.ONNX_ENGINE[device.kind]]}", style="yellow")
        table.add_row(device.name + unseen, size, device.kind, missing if engine is None else _library(engine))
    if report.devices:
        return Group(table, Text())
    return Group(Text("No accelerator: everything runs on the CPU."), table, Text())


def _engines(report: Report) -> Table:
    table = _table("engine", "version", "built for", "runs on")
    for each in report.engines:
        table.add_row(each.name, each.version, ", ".join(each.built_for), each.accelerator or "cpu")
    return table


def _places(report: Report) -> Table:
    table = _table("would run", "with", "on", "default weights")
    for each in report.placements:
        missing = Text(f"{len(each.missing)} missing", style="yellow") if each.missing else Text("present")
        table.add_row(each.part, each.engine, each.device, missing)
    return table


def _weights(report: Report) -> Table:
    table = _table("weights", "", "size", "what it is, and its licence")
    for each in report.weights:
        known = each.weights
        there = Text("present", style="green") if each.path else Text("missing", style="yellow")
        words = Text.assemble(known.what, "\n", (known.licence, "dim"))
        table.add_row(known.key, there, _size(known.bytes) if known.bytes else "?", words)
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head, justify="right" if head == "size" else "left", no_wrap=head in ("weights", ""))
    return table


def _size(size_bytes: int) -> str:
    """Bytes for people, decimal as disks are sold."""
    return f"{number(size_bytes / GB, 1)} GB" if size_bytes >= GB / 10 else f"{number(size_bytes / 1e6, 1)} MB"
