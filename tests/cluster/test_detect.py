"""The flags of `ray start` that say what a machine has, against Ray's own parser of labels."""

import subprocess
import sys

import pytest
from ray._private.label_utils import parse_node_labels_string

from sote.cluster import detect, devices
from sote.cluster.devices import Device
from sote.cluster.errors import UserError

L4 = Device("cuda", "NVIDIA L4", 0, 24_150_000_000)
ARC = Device("xpu", "Intel(R) Arc(TM) A770 Graphics", 0, 16_225_000_000)
INSIDE = Device("xpu", "Intel(R) UHD Graphics 770", 0, 2_100_000_000)


def test_cards_are_counted_and_labelled_so_that_ray_takes_the_words() -> None:
    written, _ = detect.flags((L4, L4))
    assert written == ["--num-gpus=2", "--labels=accel=cuda,device-memory-gb=24"]
    assert parse_node_labels_string(written[1].partition("=")[2]) == devices.labels_of((L4,))


def test_an_arc_is_said_outright_because_ray_does_not_see_it_without_dpctl() -> None:
    assert detect.flags((ARC,))[0] == ["--num-gpus=1", "--labels=accel=xpu,device-memory-gb=16"]


def test_of_several_kinds_the_one_with_the_most_memory_is_taken_and_the_other_named_with_the_reason() -> None:
    written, why = detect.flags((L4, INSIDE))
    assert written == ["--num-gpus=1", "--labels=accel=cuda,device-memory-gb=24"]
    assert "1 x NVIDIA L4 (cuda); not 1 x Intel(R) UHD Graphics 770 (xpu): a node is of one kind" in why
    assert (
        detect.flags((Device("cuda", "GT 710", 0, 2_100_000_000), ARC))[0][1]
        == "--labels=accel=xpu,device-memory-gb=16"
    )


def test_cards_of_different_size_are_labelled_by_the_smallest() -> None:
    written, why = detect.flags((L4, Device("cuda", "NVIDIA T4", 1, 15_830_000_000)))
    assert written[1] == "--labels=accel=cuda,device-memory-gb=16"
    assert "the label says the smallest" in why


def test_a_machine_without_a_card_is_a_cpu_node_that_takes_models_only_in_slots() -> None:
    assert detect.flags(())[0] == ["--num-gpus=0", "--labels=accel=cpu"]
    assert detect.flags((), slots=2)[0] == ["--num-gpus=2", "--labels=accel=cpu"]
    with pytest.raises(UserError, match=r"--slots 2: is for machines without an accelerator; here is 1 x NVIDIA L4"):
        detect.flags((L4,), slots=2)


def test_the_command_prints_the_flags_of_this_machine_alone_on_standard_output() -> None:
    command = [sys.executable, "-m", "sote.cluster.detect", *([] if devices.found() else ["--slots", "1"])]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    slots = 0 if devices.found() else 1
    assert ended.stdout.split() == detect.flags(devices.found(), slots=slots)[0]
    assert ended.stderr.startswith("sote: ")
