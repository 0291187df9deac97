"""Which accelerator a worker has, and which engine that means for a model in ONNX: NVIDIA, AMD, Intel or the CPU.

A machine without an accelerator is told apart by its driver files alone: torch is imported only where there is one.
Inside Ray a worker has what Ray lent it; all vendors' accelerators are Ray's resource "GPU". A node joins the pool as a
CPU when it is started with `--num-gpus=1 --labels accel=cpu`. What a node has is said by its labels: `accel`, and
`device-memory-gb`, a tier; work asks for a tier, not for a make. `python -m sote.cluster.detect` finds them out.

Kind: wiring.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, Literal, get_args

from sote.cluster.errors import RunFailed

Kind = Literal["cuda", "rocm", "xpu", "cpu"]
LABEL = "accel"  # the node label that says what a node's workers compute on
MEMORY_LABEL = "device-memory-gb"  # the node label that says which tier of memory each of its accelerators has
GB = 1_000_000_000
# What cards are sold with, in GB. A label is one of these and not a number, because Ray's selectors compare words.
MEMORY_TIERS = (2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192, 256, 288)
# Cards show up to 1.1 % less than they are sold with: a T4 of 16 GB has 15.83e9 bytes for torch
SHORT_OF_SOLD = 0.02
# Environment variables that hide devices from a process; Ray sets them for what it lends (ray/_private/accelerators)
MASKS: dict[str, str] = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
TORCH_NAMES: dict[str, str] = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu"}  # torch calls ROCm's devices cuda, too
INTEL = "0x8086"  # PCI vendor
# The engine of ONNX Runtime that fits each kind, its provider's name, and what to install where it is missing
ONNX_ENGINE: dict[str, str] = {"cuda": "cuda", "rocm": "migraphx", "xpu": "openvino", "cpu": "cpu"}
PROVIDERS: dict[str, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
INSTALL: dict[str, str] = {
    "tensorrt": "onnxruntime-gpu, and TensorRT's libraries (pip install tensorrt-cu13)",
    "cuda": "onnxruntime-gpu and an NVIDIA driver for CUDA 13",
    "migraphx": "onnxruntime-migraphx in place of onnxruntime-gpu, and ROCm",
    "openvino": "onnxruntime-ep-openvino and Intel's driver",
    "cpu": "onnxruntime",
    "torch": "timm, and torch built for the device",
}
PLUGIN = "onnxruntime_ep_openvino"


@dataclass(frozen=True)
class Device:
    """What one worker computes on. `index` counts the devices of its kind that this process sees.

    `memory_bytes` is the accelerator's own memory; None for the CPU.
    """

    kind: Kind
    name: str
    index: int = 0
    memory_bytes: int | None = None

    @property
    def torch_name(self) -> str:
        """What torch.device takes."""
        return "cpu" if self.kind == "cpu" else f"{TORCH_NAMES[self.kind]}:{self.index}"


@dataclass(frozen=True)
class Lent:
    """What Ray lent to this worker: ids of accelerators, none for a worker that asked for none; its node's label."""

    ids: tuple[str, ...]
    label: str | None


def tier(memory_bytes: int) -> int | None:
    """The tier of memory that an accelerator of that size is of; None below the lowest."""
    reached = [each for each in MEMORY_TIERS if each * GB * (1 - SHORT_OF_SOLD) <= memory_bytes]
    return reached[-1] if reached else None


def labels_of(devices: Sequence[Device]) -> dict[str, str]:
    """The labels of a node with these accelerators, all of one kind; the smallest says the memory. None: a CPU node."""
    if not devices:
        return {LABEL: "cpu"}
    known = [device.memory_bytes for device in devices if device.memory_bytes is not None]
    reached = tier(min(known)) if known else None
    return {LABEL: devices[0].kind} | ({MEMORY_LABEL: str(reached)} if reached else {})


def selector(memory_bytes: int) -> dict[str, str]:
    """Ray's label selector for nodes whose accelerators have that much memory, or do not say how much they have.

    Ray's "!in(...)" takes nodes that lack the label, so that nodes started without labels are part of the pool.
    """
    small = [str(each) for each in MEMORY_TIERS if each * GB < memory_bytes]
    return {MEMORY_LABEL: f"!in({','.join(small)})"} if small else {}


def suffices(labels: Mapping[str, str], memory_bytes: int) -> bool:
    """Whether a node with these labels is one that `selector` takes."""
    said = labels.get(MEMORY_LABEL)
    return said is None or said not in {str(each) for each in MEMORY_TIERS if each * GB < memory_bytes}


def here() -> Device:
    """What this process may compute on: inside a Ray worker what Ray lent it, elsewhere the first accelerator it sees.

    Raises RunFailed where Ray lent an accelerator and none works: the CPU is never taken in silence.
    """
    lent = _lent()
    if lent is None:
        return next(iter(found()), cpu())
    return cpu() if lent.label == "cpu" or not lent.ids else lent_one(lent, found())


def lent_one(lent: Lent, seen: Collection[Device]) -> Device:
    """The one of the devices that this process sees that Ray lent to it."""
    if lent.label is not None and lent.label not in get_args(Kind):
        raise RunFailed(f"node label {LABEL}={lent.label}: is not known, expected one of {', '.join(get_args(Kind))}")
    fitting = [device for device in seen if lent.label in (None, device.kind)]
    if not fitting:
        what = {None: "accelerator", "cuda": "NVIDIA device", "rocm": "AMD device", "xpu": "Intel device"}[lent.label]
        raise RunFailed(
            f"Ray lent a worker accelerator {lent.ids[0]}, but it sees no {what}: install the driver and torch for it, "
            f"or start the node with `ray start --labels {LABEL}=cpu`"
        )
    mask = os.environ.get(MASKS[fitting[0].kind])
    place = _place(lent.ids[0], mask)
    if place >= len(fitting):
        raise RunFailed(f"Ray lent a worker accelerator {lent.ids[0]}, but it sees only {len(fitting)}")
    return fitting[place]


def _place(lent_id: str, mask: str | None) -> int:
    """Which of the visible devices an id names: its place in the mask, or the id itself where nothing is masked."""
    if mask:
        listed = mask.split(",")
        return listed.index(lent_id) if lent_id in listed else 0
    return int(lent_id) if lent_id.isdigit() else 0


def _lent() -> Lent | None:
    """None outside of a Ray worker; a driver is outside."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_actor_id() is None and context.get_task_id() is None:
        return None
    return Lent(tuple(str(each) for each in ray.get_gpu_ids()), context.get_node_labels().get(LABEL))


def found() -> tuple[Device, ...]:
    """Every accelerator that this process sees, NVIDIA's first; empty where there is none."""
    return (*_nvidia(), *_amd(), *_intel())


def cpu() -> Device:
    """The CPU as a device."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Device("cpu", names[0] if names else os.uname().machine)


def _nvidia() -> tuple[Device, ...]:
    """Asked of the driver, so that it needs no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    devices = []
    for at in range(count.value):
        handle, name, memory = ctypes.c_int(0), ctypes.create_string_buffer(256), ctypes.c_size_t(0)
        driver.cuDeviceGet(ctypes.byref(handle), at)
        driver.cuDeviceGetName(name, len(name), handle)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
        devices.append(Device("cuda", name.value.decode(), at, memory.value))
    return tuple(devices)


def _amd() -> tuple[Device, ...]:
    """Asked of torch where the kernel has AMD's compute driver."""
    if not Path("/dev/kfd").exists() or util.find_spec("torch") is None:
        return ()
    import torch

    return _torch_devices("rocm", torch.cuda) if torch.version.hip else ()


def _intel() -> tuple[Device, ...]:
    """Asked of torch where the kernel has an Intel device to compute on; the small ones in processors count, too."""
    vendors = Path("/sys/class/drm").glob("renderD*/device/vendor")
    if util.find_spec("torch") is None or not any(path.read_text().strip() == INTEL for path in vendors):
        return ()
    import torch

    return _torch_devices("xpu", torch.xpu)


def _torch_devices(kind: Kind, module: Any) -> tuple[Device, ...]:
    if not module.is_available():
        return ()
    all_of_them = [module.get_device_properties(at) for at in range(module.device_count())]
    return tuple(Device(kind, str(each.name), at, int(each.total_memory)) for at, each in enumerate(all_of_them))


def pick_engine(device: Device, *, offered: Collection[str], prefer_torch: bool = False) -> str | None:
    """The engine that "auto" means on `device`, of those that are `offered` there; None if none fits.

    ONNX Runtime's for the device, else torch. `prefer_torch` (a narrower dtype, or compiling) turns that order on an
    accelerator. The CPU is never taken for an accelerator's work.
    """
    order = [ONNX_ENGINE[device.kind], "torch"]
    if prefer_torch and device.kind != "cpu":
        order.reverse()
    return next((engine for engine in order if engine in offered), None)


def offered_engines(device: Device) -> tuple[str, ...]:
    """The engines that are installed here for `device`. Whether one works is seen when a model is opened on it."""
    return (*_onnx_engines(device), *(("torch",) if _torch_works(device) else ()))


def _onnx_engines(device: Device) -> tuple[str, ...]:
    if util.find_spec("onnxruntime") is None:
        return ()
    import onnxruntime

    built = set(onnxruntime.get_available_providers())
    fitting = {"cuda": ("tensorrt", "cuda"), "rocm": ("migraphx",), "xpu": (), "cpu": ("cpu",)}[device.kind]
    found_here = [engine for engine in fitting if PROVIDERS[engine] in built]
    return (*found_here, *(("openvino",) if openvino_device(device) is not None else ()))


def openvino_device(device: Device) -> Any:
    """The OrtEpDevice with which OpenVINO's plugin runs on `device`, or None. It offers Intel's devices alone."""
    if device.kind not in ("xpu", "cpu") or util.find_spec(PLUGIN) is None:
        return None
    wanted = "GPU" if device.kind == "xpu" else "CPU"
    return next((each for each in _openvino_devices(wanted) if device.index == _openvino_index(each)), None)


@functools.cache
def _openvino_devices(kind: str) -> tuple[Any, ...]:
    import onnxruntime
    import onnxruntime_ep_openvino as plugin  # type: ignore[import-not-found,unused-ignore]

    if not any(each.ep_name == PROVIDERS["openvino"] for each in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(PLUGIN, plugin.get_library_path())
    offered = [each for each in onnxruntime.get_ep_devices() if each.ep_name == PROVIDERS["openvino"]]
    return tuple(each for each in offered if each.ep_metadata.get("ov_device", "").partition(".")[0] == kind)


def _openvino_index(ep_device: Any) -> int:
    """OpenVINO's names are GPU, or GPU.0, GPU.1 where there are several."""
    number = ep_device.ep_metadata.get("ov_device", "").partition(".")[2]
    return int(number) if number.isdigit() else 0


def _torch_works(device: Device) -> bool:
    if util.find_spec("torch") is None or util.find_spec("timm") is None:
        return False
    if device.kind == "cpu":
        return True
    import torch

    if device.kind == "xpu":
        return bool(torch.xpu.is_available())
    return bool(torch.cuda.is_available()) and (torch.version.hip is not None) == (device.kind == "rocm")
