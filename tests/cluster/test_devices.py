"""Which device a worker takes: what Ray lent it, told apart by masks and labels, and never the CPU in silence."""

import subprocess
import sys
from pathlib import Path

import pytest

from sote.cluster import devices
from sote.cluster.devices import Device, Lent
from sote.cluster.errors import RunFailed

CUDA = tuple(Device("cuda", "NVIDIA H200", at, 150 * 10**9) for at in range(4))
XPU = (Device("xpu", "Intel Arc A770", 0, 16 * 10**9),)


def test_outside_of_ray_the_first_accelerator_is_taken_or_the_cpu() -> None:
    assert devices.here() == next(iter(devices.found()), devices.cpu())


def test_the_cpu_is_named_and_has_no_memory_of_its_own() -> None:
    device = devices.cpu()
    assert (device.kind, device.memory_bytes, device.torch_name) == ("cpu", None, "cpu")
    assert device.name in Path("/proc/cpuinfo").read_text()


def test_a_machine_without_accelerators_is_known_without_torch() -> None:
    code = (
        "import sys; from sote.cluster import devices; found = devices.found();"
        "print(bool(found) or 'torch' not in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "True"


def test_the_device_that_ray_lent_is_taken_by_its_place_in_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as Ray sets it: one device is seen, it is number 0
    assert devices.lent_one(Lent(("3",), None), CUDA[:1]) == CUDA[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3,5")
    assert devices.lent_one(Lent(("5",), None), CUDA[:3]) == CUDA[2]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # Ray was told to leave it alone: all are seen
    assert devices.lent_one(Lent(("3",), "cuda"), CUDA) == CUDA[3]


def test_the_label_of_the_node_says_whose_device_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZE_AFFINITY_MASK", raising=False)
    assert devices.lent_one(Lent(("0",), "xpu"), (*CUDA, *XPU)) == XPU[0]
    with pytest.raises(RunFailed, match=r"node label accel=gpu: is not known, expected one of cuda, rocm, xpu, cpu"):
        devices.lent_one(Lent(("0",), "gpu"), CUDA)


@pytest.mark.parametrize(("label", "what"), [(None, "accelerator"), ("xpu", "Intel device"), ("rocm", "AMD device")])
def test_an_accelerator_that_was_lent_and_is_not_seen_is_an_error_that_says_the_mend(
    label: str | None, what: str
) -> None:
    with pytest.raises(RunFailed, match=rf"it sees no {what}: .*--labels accel=cpu") as raised:
        devices.lent_one(Lent(("0",), label), ())
    assert "\n" not in str(raised.value)


def test_an_accelerator_beyond_those_that_are_seen_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(RunFailed, match="lent a worker accelerator 7, but it sees only 4"):
        devices.lent_one(Lent(("7",), None), CUDA)


def test_a_ray_worker_that_was_lent_nothing_takes_the_cpu(local_ray: None) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def device() -> Device:
        return devices.here()

    assert ray.get(device.remote()) == devices.cpu()


@pytest.mark.parametrize(
    ("kind", "offered", "narrow", "engine"),
    [
        ("cuda", {"tensorrt", "cuda", "torch"}, False, "cuda"),  # TensorRT only by name: it builds for minutes
        ("cuda", {"cuda", "torch"}, True, "torch"),
        ("cuda", {"torch"}, False, "torch"),
        ("cuda", {"cpu"}, False, None),
        ("rocm", {"migraphx", "torch"}, False, "migraphx"),
        ("rocm", {"torch"}, False, "torch"),
        ("xpu", {"openvino", "torch"}, False, "openvino"),
        ("xpu", {"cuda", "cpu"}, False, None),
        ("cpu", {"openvino", "cpu", "torch"}, False, "cpu"),
        ("cpu", {"cpu", "torch"}, True, "cpu"),  # wider than asked, and 16-bit numbers are slow there
        ("cpu", {"torch"}, False, "torch"),
    ],
)
def test_auto_takes_what_fits_the_device_and_never_the_cpu_for_an_accelerator(
    kind: devices.Kind, offered: set[str], narrow: bool, engine: str | None
) -> None:
    assert devices.pick_engine(Device(kind, "x"), offered=offered, prefer_torch=narrow) == engine


def test_torch_calls_amds_devices_cuda() -> None:
    assert [Device(kind, "x", 2).torch_name for kind in ("cuda", "rocm", "xpu", "cpu")] == [
        "cuda:2",
        "cuda:2",
        "xpu:2",
        "cpu",
    ]


@pytest.mark.parametrize(
    ("memory_bytes", "expected"),
    [(15_830_000_000, 16), (16_225_000_000, 16), (8_350_000_000, 8), (25_400_000_000, 24), (1_500_000_000, None)],
    ids=["T4", "A770", "RTX 3070", "RTX 3090", "a small one"],
)
def test_a_card_is_of_the_tier_that_it_is_sold_with_though_it_shows_a_little_less(
    memory_bytes: int, expected: int | None
) -> None:
    assert devices.tier(memory_bytes) == expected


def test_the_labels_of_a_node_say_its_kind_and_the_memory_of_its_smallest_accelerator() -> None:
    small = Device("cuda", "NVIDIA L4", 4, 24_150_000_000)
    assert devices.labels_of((*CUDA, small)) == {"accel": "cuda", "device-memory-gb": "24"}
    assert devices.labels_of(CUDA) == {"accel": "cuda", "device-memory-gb": "141"}
    assert devices.labels_of((Device("xpu", "Intel", 0, None),)) == {"accel": "xpu"}
    assert devices.labels_of(()) == {"accel": "cpu"}


def test_a_selector_takes_tiers_that_suffice_and_nodes_that_do_not_say() -> None:
    assert devices.selector(0) == {}
    assert devices.selector(15_600_000_000) == {"device-memory-gb": "!in(2,4,6,8,10,12)"}
    assert devices.suffices({"device-memory-gb": "16"}, 15_600_000_000)
    assert not devices.suffices({"device-memory-gb": "12"}, 15_600_000_000)
    assert devices.suffices({"accel": "cuda"}, 15_600_000_000)
