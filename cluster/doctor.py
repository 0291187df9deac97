"""What this machine can do: cores, memory, disk, accelerators, engines, weights, and what would run where.

Nothing is started or loaded but the libraries themselves, which are asked what they see.

Kind: wiring.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sote.cluster import weights
from sote.cluster.page import number
from sote.cluster.weights import Weights

GB: Final = 1_000_000_000
# nvidia-smi answers within a second; ten are enough for a machine with many cards that are asleep.
DRIVER_SECONDS: Final = 10
# What each part of the river runs its models with (see data/tag.py, data/score.py, data/text.py, data/encode.py,
# train/loop.py, serve/cascade.py), and by which key its weights are known.
WORK: Final = (
    ("tag", "onnxruntime", ("wd-swinv2-tagger-v3",)),
    ("score", "torch", ("aesthetic-shadow-v2", "clip-vit-b-32-openai", "aes-b32-v0")),
    ("text", "torch", ("llava-1.5-7b",)),
    ("latents", "torch", ("stable-cascade-effnet",)),
    ("train", "torch", ("stable-cascade-prior",)),
    ("serve", "torch", ("sotediffusion-wuerstchen3", "sotediffusion-wuerstchen3-decoder")),
)


@dataclass(frozen=True)
class Device:
    """One accelerator. `memory_bytes` is its own memory; `seen_by` is who reported it (torch, driver)."""

    name: str
    memory_bytes: int
    seen_by: str


@dataclass(frozen=True)
class Engine:
    """A library that runs models: what it is built for, and whether an accelerator works with it now."""

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
    """All that was found. Bytes are those of the machine; `cores` are those this process may use."""

    cores: int
    memory_bytes: int
    free_memory_bytes: int
    disk: Path
    free_disk_bytes: int
    devices: tuple[Device, ...]
    engines: tuple[Engine, ...]
    weights: tuple[WeightsState, ...]
    placements: tuple[Placement, ...]


def examine(disk: Path = Path()) -> Report:
    """Look at this machine; the free space is that of the disk on which the folder `disk` lies."""
    torch_engine, devices = _torch()
    engines = tuple(engine for engine in (torch_engine, _onnxruntime()) if engine is not None)
    states = tuple(WeightsState(known, weights.present(known)) for known in weights.KNOWN)
    memory, free = _memory()
    return Report(
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory,
        free_memory_bytes=free,
        disk=disk.resolve(),
        free_disk_bytes=shutil.disk_usage(disk).free,
        devices=devices or _driver_devices(),
        engines=engines,
        weights=states,
        placements=tuple(_placements(engines, states)),
    )


def _memory() -> tuple[int, int]:
    """Bytes of memory of this machine: all, and what programs could still take (Linux: /proc/meminfo, in KiB)."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024


def _torch() -> tuple[Engine | None, tuple[Device, ...]]:
    if util.find_spec("torch") is None:
        return None, ()
    import torch  # seconds to import: only when somebody asks

    built_for = ["cpu"]
    if torch.version.cuda:
        built_for.append(f"CUDA {torch.version.cuda}")
    if torch.version.hip:
        built_for.append(f"ROCm {torch.version.hip}")
    devices, accelerator = [], None
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if module.is_available():
            accelerator = accelerator or kind
            found = [module.get_device_properties(at) for at in range(module.device_count())]
            devices += [Device(each.name, int(each.total_memory), "torch") for each in found]
    return Engine("torch", str(torch.__version__), tuple(built_for), accelerator), tuple(devices)


def _onnxruntime() -> Engine | None:
    if util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    built_for = tuple(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    accelerator = "cuda" if "CUDA" in built_for and _cuda_devices() else None
    return Engine("onnxruntime", str(onnxruntime.__version__), built_for, accelerator)


def _cuda_devices() -> int:
    """How many CUDA devices the driver lends to this process. A library built for CUDA says nothing of a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def _driver_devices() -> tuple[Device, ...]:
    """NVIDIA cards that the driver knows although torch does not see them; none where there is no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return ()
    rows = [line.rpartition(",") for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
    # nvidia-smi reports MiB; a card without memory of its own says [N/A]
    return tuple(Device(name.strip(), int(mib) << 20, "driver") for name, _, mib in rows if mib.strip().isdigit())


def _placements(engines: Sequence[Engine], states: Sequence[WeightsState]) -> list[Placement]:
    by_name = {engine.name: engine for engine in engines}
    absent = {state.weights.key for state in states if state.path is None}
    found = []
    for part, name, keys in WORK:
        engine = by_name.get(name)
        device = "not installed" if engine is None else engine.accelerator or "cpu"
        found.append(Placement(part, name, device, tuple(key for key in keys if key in absent)))
    return found


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
    if not report.devices:
        return Text("No accelerator: everything runs on the CPU.")
    unseen = " (torch does not see it)"
    lines = [
        f"{each.name}, {_size(each.memory_bytes)}{unseen if each.seen_by == 'driver' else ''}"
        for each in report.devices
    ]  # fmt: skip
    return Text("\n".join(lines))


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
