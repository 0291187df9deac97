import pytest

from sote.data import costs
from sote.data.costs import Machine


def test_a_device_is_known_by_its_vendors_longer_name() -> None:
    assert costs.peak_of("NVIDIA H200") == costs.DEVICES["H200"]
    assert costs.peak_of("NVIDIA GeForce RTX 4090") == costs.DEVICES["RTX 4090"]
    assert costs.peak_of("NVIDIA L40S") == costs.DEVICES["L40S"]  # not L4
    with pytest.raises(KeyError):
        costs.peak_of("abacus")


def test_a_pass_takes_as_long_as_the_resource_that_binds() -> None:
    machine = Machine(cores=64, devices={"H200": 1})
    flop = {"tag": (1e6 * 131.1e9, "bfloat16"), "score": (1e6 * 588.5e9, "bfloat16")}
    found = costs.overlapped("pixels", machine, core_seconds=1e6 * 0.04, flop=flop)
    assert found.cores == pytest.approx(1e6 * 0.04 / 64 / 3600)
    assert found.devices == pytest.approx((131.1 / (989 * 0.20) + 588.5 / (989 * 0.45)) * 1e9 * 1e6 / 1e12 / 3600)
    assert (found.hours, found.binds) == (found.devices, "accelerators")
    few = costs.overlapped("pixels", Machine(cores=4, devices={"H200": 1}), core_seconds=1e6 * 0.04, flop=flop)
    assert (few.hours, few.binds) == (few.cores, "CPU cores")


def test_cores_do_both_where_there_is_no_accelerator() -> None:
    found = costs.overlapped("tag", Machine(2, {}), core_seconds=7200.0, flop={"tag": (90e9 * 3600, "float32")})
    assert (found.cores, found.devices, found.binds) == (pytest.approx(2.0), 0.0, "CPU cores")
