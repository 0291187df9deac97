"""What the doctor says of this machine, against other ways of asking it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from rich.console import Console

from sote.cluster import devices, doctor
from sote.cluster.devices import Device
from sote.cluster.weights import KNOWN


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return doctor.examine(Path())


def test_cores_memory_and_disk_are_those_of_the_machine(report: doctor.Report) -> None:
    assert report.cores == len(os.sched_getaffinity(0))
    assert report.memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < report.free_memory_bytes < report.memory_bytes
    assert report.free_disk_bytes > 0


def test_engines_are_what_the_libraries_say_and_an_accelerator_needs_a_device(report: doctor.Report) -> None:
    engines = {engine.name: engine for engine in report.engines}
    assert engines["torch"].version == torch.__version__
    assert engines["onnxruntime"].version == onnxruntime.__version__
    assert (engines["torch"].accelerator == "cuda") == torch.cuda.is_available()
    assert (engines["onnxruntime"].accelerator is None) or torch.cuda.is_available()


def test_every_device_and_the_cpu_stand_with_the_engine_that_the_tagger_takes_there(report: doctor.Report) -> None:
    assert [device for device, _ in report.taggers] == [*devices.found(), devices.cpu()]
    assert report.taggers[-1][1] == "cpu"
    first = report.taggers[0][1]
    assert report.placements[0].engine == ("torch" if first == "torch" else f"onnxruntime ({first})")


def test_a_device_without_an_engine_says_what_to_install(report: doctor.Report) -> None:
    arc = Device("xpu", "Intel Arc A770", memory_bytes=16 * 10**9)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(doctor.render(replace(report, devices=(arc,), taggers=((arc, None), *report.taggers))))
    line = next(line for line in captured.get().splitlines() if "Arc A770" in line)
    for part in ("torch does not see it", "16.0 GB", "xpu", "install onnxruntime-ep-openvino"):
        assert part in line


def test_every_known_weight_is_listed_and_placed(report: doctor.Report) -> None:
    assert [state.weights for state in report.weights] == list(KNOWN)
    missing = {state.weights.key for state in report.weights if state.path is None}
    keys = {weights.key for weights in KNOWN}
    for part, _, needed in doctor.WORK:
        assert keys.issuperset(needed), part
    for placement, (part, engine, needed) in zip(report.placements, doctor.WORK, strict=True):
        assert placement.part == part
        if engine != doctor.TAGGER:
            assert placement.engine == engine
        assert set(placement.missing) == missing.intersection(needed)


def test_the_picture_for_a_terminal_names_every_weight_with_its_licence(report: doctor.Report) -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(doctor.render(report))
    text = captured.get()
    assert all(weights.key in text and weights.licence in text for weights in KNOWN)


def test_importing_the_doctor_loads_no_engine() -> None:
    code = "import sys, sote.cluster.doctor; print([m for m in ('torch', 'ray', 'onnxruntime') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_cluster_that_does_not_answer_is_the_users_error() -> None:
    command = [sys.executable, "-m", "sote.cluster.cli", "doctor", "--address", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # this process may be connected
    code, out, error = done.returncode, done.stdout, done.stderr
    assert (code, out) == (2, "")
    assert error.startswith("sote: --address 127.0.0.1:1: no Ray cluster answers there")
    assert error.count("\n") == 1
