"""A cluster on paper held against what the parts of the river ask for."""

from sote.cluster import fleet
from sote.cluster.devices import Device
from sote.cluster.fleet import Demand
from sote.cluster.nodes import Answer, Node, differences

TAG = Demand("tag", 4_000_000_000, is_onnx=True, rate=lambda name: 10.0 if "L4" in name else None, core_flop_rate=0.5)
TRAIN = Demand("train", 80_000_000_000, workers=8, on_cpu=False)
L4 = Device("cuda", "NVIDIA L4", 0, 24_150_000_000)


def node(kind: str, slots: int, *, python: str = "3.11.7", device: Device | None = None, gb: int | None = None) -> Node:
    devices = () if device is None else (device,) * slots
    answer = Answer(python, "2.60.0", "1", (), 1, 1, 1, devices, ("cuda",) * len(devices) + ("cpu",))
    resources = {"CPU": 4.0} | ({"GPU": float(slots)} if slots else {})
    labels = {"accel": kind} | ({"device-memory-gb": str(gb)} if gb else {})
    return Node(kind, kind, "10.0.0.1", False, resources, labels, answer)


def test_nodes_that_run_another_python_are_named_in_a_line() -> None:
    lines = differences([node("cpu", 0), node("cpu", 0, python="3.9.1")])
    assert any(line.startswith("Python differs: 3.") and "3.9.1" in line for line in lines)


def test_a_cpu_node_with_slots_takes_models_and_one_without_does_not_where_there_are_devices() -> None:
    with_slots, without = node("cpu", 2), node("cpu", 0)
    assert fleet.taking([with_slots, without], TAG) == [with_slots]
    assert fleet.taking([without], TAG) == [without]
    assert fleet.engine(with_slots, TAG) == "cpu"
    assert fleet.speed([with_slots, without], TAG) == "2.0 (cores bind)"


def test_a_part_that_needs_devices_says_what_it_asks_for_and_the_largest_group_of_alike_ones() -> None:
    here = [node("cuda", 4, device=L4, gb=24), node("cpu", 0)]
    assert fleet.why_not(here, TRAIN) == (
        "asks for 8 x 1 GPU with 80.0 GB of its own memory; here are 4 GPUs and 8 CPUs on 2 nodes, and the largest "
        "device has 24 GB; the largest group of alike ones: 4 x cuda of 24 GB"
    )
    assert fleet.why_not(here, TAG) is None


def test_devices_add_up_until_the_cores_that_prepare_pictures_bind() -> None:
    here = [node("cuda", 2, device=L4, gb=24)]
    assert fleet.speed(here, TAG) == "20.0 (devices bind)"
    slow = Demand("tag", 4_000_000_000, rate=TAG.rate, core_rate=2.5)
    assert fleet.speed(here, slow) == "10.0 (cores bind)"


def test_a_device_whose_speed_nobody_knows_is_named_instead_of_guessed() -> None:
    unknown = Device("cuda", "Some Card", 0, 24_150_000_000)
    assert fleet.speed([node("cuda", 1, device=unknown, gb=24)], TAG) == "not known for Some Card"
