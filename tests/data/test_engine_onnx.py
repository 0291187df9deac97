"""Graphs of all layouts met, as files: what is taken, what is refused and in which words."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sote.cluster import devices
from sote.cluster.devices import Device
from sote.cluster.errors import RunFailed, WeightsError
from sote.data import onnxfile
from sote.data.engine_onnx import OnnxEngine, input_side

SIDE, TAGS = 8, 5


def write_model(
    folder: Path,
    *,
    shape: tuple[Any, ...] = ("n", SIDE, SIDE, 3),
    kind: int = TensorProto.FLOAT,
    more: tuple[str, ...] = (),
    listed: bool = False,
    operator: str = "Sigmoid",
) -> Path:
    """A graph of a sigmoid of the mean of each picture. `more` are other inputs; `listed` puts weights among them."""
    weight = numpy_helper.from_array(np.ones((3, TAGS), onnx.helper.tensor_dtype_to_np_dtype(kind)), "weight")
    inputs = [helper.make_tensor_value_info("pixels", kind, shape)]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in more]
    if listed:
        inputs.insert(0, helper.make_tensor_value_info("weight", kind, [3, TAGS]))
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["sums"]),
        helper.make_node(operator, ["sums"], ["chances"]),
    ]
    outputs = [helper.make_tensor_value_info("chances", kind, ["n", TAGS])]
    graph = helper.make_graph(nodes, "test", inputs, outputs, [weight])
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def opened(path: Path, **given: Any) -> OnnxEngine:
    chosen = {"engine": "cpu", "device": devices.cpu(), "dtype": "float32", "rows": 4, "threads": 1}
    return OnnxEngine(path, **(chosen | given))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"shape": ("n", 3, SIDE, SIDE)}, r"takes float32 \[n, 3, 8, 8\], expected"),  # NCHW
        ({"shape": ("n", "h", "w", 3)}, r"takes float32 \[n, h, w, 3\], expected"),
        ({"kind": TensorProto.FLOAT16}, r"takes float16 \[n, 8, 8, 3\], expected"),
        ({"kind": TensorProto.DOUBLE}, r"takes double \[n, 8, 8, 3\], expected"),
        ({"more": ("scale",)}, r"takes float32 \[n, 8, 8, 3\] and int64 \[1\], expected"),
    ],
    ids=["NCHW", "no fixed side", "float16", "float64", "two inputs"],
)
def test_a_file_with_other_inputs_is_refused_in_one_line_that_says_what_it_takes(
    tmp_path: Path, given: dict[str, Any], found: str
) -> None:
    path = write_model(tmp_path, **given)
    for look in (input_side, opened):
        with pytest.raises(WeightsError, match=rf"model\.onnx: {found} one float32 \[batch, side, side, 3\]") as raised:
            look(path)
        assert "\n" not in str(raised.value)


def test_weights_that_an_old_file_lists_among_its_inputs_are_no_inputs(tmp_path: Path) -> None:
    path = write_model(tmp_path, listed=True)
    assert [each.name for each in onnxfile.inputs(path)] == ["pixels"]
    assert opened(path)(np.zeros((2, SIDE, SIDE, 3), np.uint8)).tolist() == [[0.5] * TAGS] * 2


def test_a_batch_that_the_graph_fixes_is_told(tmp_path: Path) -> None:
    assert opened(write_model(tmp_path, shape=(2, SIDE, SIDE, 3))).fixed_rows == 2
    assert opened(write_model(tmp_path)).fixed_rows is None


def test_an_operator_that_onnx_runtime_does_not_know_is_the_files_fault(tmp_path: Path) -> None:
    path = write_model(tmp_path, operator="SigmoidOfTomorrow")
    assert input_side(path) == SIDE
    with pytest.raises(
        WeightsError, match=r"model\.onnx: cannot be opened by ONNX Runtime on cpu \(.*SigmoidOfTomorrow"
    ):
        opened(path)


@pytest.mark.parametrize(
    ("engine", "kind", "why"),
    [
        ("cuda", "cpu", r"made for another kind of device; install onnxruntime-gpu and an NVIDIA driver"),
        ("openvino", "cuda", r"made for another kind of device; install onnxruntime-ep-openvino"),
        ("migraphx", "rocm", r"ONNX Runtime [\d.]+ is built without; install onnxruntime-migraphx"),
        ("openvino", "xpu", r"its plugin offers no such device; install onnxruntime-ep-openvino and Intel's driver"),
    ],
)
def test_an_engine_that_does_not_work_here_names_itself_the_device_and_what_to_install(
    tmp_path: Path, engine: str, kind: devices.Kind, why: str
) -> None:
    device = Device(kind, "Some Card")
    message = rf"engine {engine} does not work on Some Card \({kind}\): .*{why}"
    with pytest.raises(RunFailed, match=message) as raised:
        opened(write_model(tmp_path), engine=engine, device=device)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(bool(devices.found()), reason="this machine has an accelerator")
def test_a_provider_that_onnx_runtime_silently_leaves_out_is_an_error(tmp_path: Path) -> None:
    """It is built for CUDA, and opens the model on the CPU where there is no device."""
    with pytest.raises(
        RunFailed, match=r"engine cuda does not work on H200 \(cuda\): ONNX Runtime fell back to CPUExec"
    ):
        opened(write_model(tmp_path), engine="cuda", device=Device("cuda", "H200"))
