"""What is asked against what there is, on paper; with a real cluster in test_nodes.py."""

from sote.cluster.capacity import Bundle, Place, lacking, shortage

CPU = Place({"CPU": 4.0}, {"accel": "cpu"})
SMALL = Place({"CPU": 4.0, "GPU": 2.0}, {"accel": "cuda", "device-memory-gb": "8"})
LARGE = Place({"CPU": 4.0, "GPU": 1.0}, {"accel": "xpu", "device-memory-gb": "16"})
PLAIN = Place({"CPU": 4.0, "GPU": 1.0}, {})
TEXT = Bundle(cpus=1, gpus=1, device_bytes=15_300_000_000)


def test_what_is_there_is_not_missing() -> None:
    assert shortage([Bundle(cpus=4, count=3)], [CPU, SMALL, LARGE]) is None
    assert shortage([TEXT, Bundle(gpus=1, count=2)], [CPU, SMALL, LARGE]) is None
    assert shortage([], []) is None


def test_each_bundle_must_fit_one_node_though_the_sum_would_do() -> None:
    assert lacking([Bundle(cpus=6)], [CPU, SMALL]) == (Bundle(cpus=6), 0)
    assert shortage([Bundle(cpus=6)], [CPU, SMALL]) == (
        "asks for 6 CPU; here are 2 GPUs and 8 CPUs on 2 nodes, and one node has at most 4 CPU"
    )


def test_a_device_that_is_too_small_is_named_with_the_largest_that_is_there() -> None:
    assert shortage([TEXT], [CPU, SMALL]) == (
        "asks for 1 CPU and 1 GPU with 15.3 GB of its own memory; here are 2 GPUs and 8 CPUs on 2 nodes, and the "
        "largest device has 8 GB"
    )


def test_a_node_that_does_not_say_its_memory_is_taken_for_enough() -> None:
    assert shortage([TEXT], [CPU, PLAIN]) is None


def test_workers_that_do_not_all_fit_are_counted() -> None:
    eight = Bundle(cpus=1, gpus=1, count=8)
    assert lacking([eight], [SMALL, LARGE]) == (eight, 3)
    assert shortage([eight], [SMALL, LARGE]) == (
        "asks for 8 x 1 CPU and 1 GPU; here are 3 GPUs and 8 CPUs on 2 nodes, and 3 of 8 fit"
    )


def test_a_small_wish_does_not_take_the_large_device_that_another_one_needs() -> None:
    assert lacking([Bundle(gpus=1, count=2), TEXT], [LARGE, SMALL]) is None


def test_no_node_at_all_is_said_as_it_is() -> None:
    assert shortage([Bundle(gpus=1)], []) == "asks for 1 GPU; here are 0 GPUs and 0 CPUs on 0 nodes"
