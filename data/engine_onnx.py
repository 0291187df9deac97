"""The tagger's network in ONNX Runtime: TensorRT, CUDA, MIGraphX, OpenVINO (its plugin package) or the CPU.

model.onnx takes float32 BGR 0..255 [B,S,S,3] and gives probabilities [B,T]: it normalises and has its sigmoid inside.
An engine that is not there, or that leaves the heavy nodes of the graph to the CPU, is an error.
Shape suffixes: B rows of the batch, T tags, HWC height, width, colour.

Kind: actor.
"""

import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from sote.cluster import devices
from sote.cluster.devices import INSTALL, PROVIDERS, Device
from sote.cluster.errors import RunFailed, WeightsError
from sote.data import fitting, onnxfile

MODEL = "model.onnx"
# A CPU can be asked for by name on any worker
RUNS_ON = {
    "tensorrt": ("cuda",),
    "cuda": ("cuda",),
    "migraphx": ("rocm",),
    "openvino": ("xpu", "cpu"),
    "cpu": ("cuda", "rocm", "xpu", "cpu"),
}
# Most of a network's work is in these; where one of them runs on the CPU, the accelerator waits for it
HEAVY = frozenset({"Conv", "Gemm", "MatMul", "FusedMatMul", "FusedConv", "FusedGemm", "Attention"})

# what ONNX Runtime raises for a file that is no model, or none that it knows; anything else is the machine's failure
NOT_A_MODEL = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NotImplemented,
)
# what it raises while it runs, memory that runs out among it; none of them is a RuntimeError
FAILED_RUN = (ort_errors.RuntimeException, ort_errors.Fail, ort_errors.EPFail)

log = logging.getLogger(__name__)


class OnnxEngine:
    """model.onnx, opened on `device` by the engine of that name. `rows` is the batch that TensorRT is built for."""

    def __init__(
        self, model: Path, *, engine: str, device: Device, dtype: str, rows: int, threads: int | None = None
    ) -> None:
        self.name, self.side = engine, input_side(model)
        self.model_bytes = model.stat().st_size
        self.dtype = "tf32" if (engine, dtype) == ("tensorrt", "float32") else dtype
        self._model, self._threads = model, threads
        self._session = _open(model, engine=engine, device=device, dtype=dtype, rows=rows, threads=threads)
        given, wanted = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self._input, self._output = given.name, wanted.name
        self.fixed_rows = given.shape[0] if isinstance(given.shape[0], int) else None
        # these build kernels for each shape that they meet
        self.wants_one_shape = engine in ("tensorrt", "migraphx", "openvino")
        self.is_reference = engine == "cpu"
        log.info("tagger ready engine=%s device=%s dtype=%s model=%s", engine, device.name, self.dtype, model)

    def __call__(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 BGR [B,S,S,3] -> probabilities float32 [B,T]."""
        try:
            (found_BT,) = self._session.run([self._output], {self._input: pixels_BHWC.astype(np.float32)})
        except FAILED_RUN as error:
            if fitting.is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise
        return np.asarray(found_BT, np.float32)

    def reference(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The same, by the CPU in float32; opened for this call alone."""
        session = _open(self._model, engine="cpu", device=devices.cpu(), dtype="float32", rows=1, threads=self._threads)
        rows = self.fixed_rows or len(pixels_BHWC)
        pieces = fitting.Pieces(rows, fill=self.fixed_rows is not None, least=rows)
        return pieces.run(
            lambda piece: session.run([self._output], {self._input: piece.astype(np.float32)})[0], pixels_BHWC
        )


def input_side(model: Path) -> int:
    """The side in pixels of the square that the graph takes; reads the head of the file, not its weights.

    Raises WeightsError for a graph that takes anything else than one float32 [batch, side, side, 3].
    """
    inputs = onnxfile.inputs(model)
    if len(inputs) == 1:
        shape = inputs[0].shape
        squares = len(shape) == 4 and shape[3] == 3 and shape[1] == shape[2]
        if squares and isinstance(shape[1], int) and inputs[0].type == onnxfile.FLOAT:
            return shape[1]
    shown = " and ".join(str(each) for each in inputs) or "nothing"
    raise WeightsError(f"{model}: takes {shown}, expected one float32 [batch, side, side, 3] with a fixed side")


def _open(
    model: Path, *, engine: str, device: Device, dtype: str, rows: int, threads: int | None
) -> ort.InferenceSession:
    """Open the model on `engine`. A silent fall-back to another one is an error."""
    _refuse_absent(model, engine=engine, device=device)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    threads = threads or len(os.sched_getaffinity(0))
    if engine in ("cuda", "tensorrt"):
        import torch  # noqa: F401  its CUDA libraries are the ones that ONNX Runtime then finds
    if engine == "cpu":
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # other actors share the cores: threads that wait must not spin
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        if engine == "openvino":
            options.add_provider_for_devices([_openvino(model, device)], _openvino_options(device, threads))
            session = ort.InferenceSession(model, options)
        else:
            session = ort.InferenceSession(model, options, providers=_providers(model, engine, device, dtype, rows))
    except NOT_A_MODEL as error:
        first = " ".join(str(error).split())[:300]
        raise WeightsError(f"{model}: cannot be opened by ONNX Runtime on {engine} ({first})") from None
    _refuse_fall_back(session, model, engine=engine, device=device)
    return session


def _refuse_absent(model: Path, *, engine: str, device: Device) -> None:
    if device.kind not in RUNS_ON[engine]:
        raise _missing(model, engine=engine, device=device, why="it is made for another kind of device")
    # the plugin's provider is not among those that ONNX Runtime is built with
    if engine != "openvino" and PROVIDERS[engine] not in ort.get_available_providers():
        raise _missing(model, engine=engine, device=device, why=f"this ONNX Runtime {ort.__version__} is built without")


def _providers(model: Path, engine: str, device: Device, dtype: str, rows: int) -> list[Any]:
    """The provider and its options, and for TensorRT the one that takes what it leaves."""
    at = {"device_id": str(device.index)}
    # float32 means float32: TF32 keeps ten bits of each factor
    cuda = (PROVIDERS["cuda"], at | {"use_tf32": "0"})
    if engine == "tensorrt":
        return [(PROVIDERS[engine], at | _tensorrt_options(model, dtype, rows)), cuda]
    return [{"cuda": cuda, "migraphx": (PROVIDERS["migraphx"], at), "cpu": PROVIDERS["cpu"]}[engine]]


def _tensorrt_options(model: Path, dtype: str, rows: int) -> dict[str, str]:
    """One profile for the batch; engines take minutes to build and are kept. Never float16: layer norms overflow."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sote" / "tensorrt"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    name, side = onnxfile.inputs(model)[0].name, input_side(model)
    shape = f"{name}:{rows}x{side}x{side}x3"
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_bf16_enable": "1" if dtype == "bfloat16" else "0",
        "trt_profile_min_shapes": shape,
        "trt_profile_opt_shapes": shape,
        "trt_profile_max_shapes": shape,
    }


def _openvino(model: Path, device: Device) -> Any:
    found = devices.openvino_device(device)
    if found is None:
        raise _missing(model, engine="openvino", device=device, why="its plugin offers no such device")
    return found


def _openvino_options(device: Device, threads: int) -> dict[str, str]:
    """float32 on every device: of itself it takes bf16 or float16, which gave these models nonsense."""
    name = "GPU" if device.kind == "xpu" else "CPU"
    of_cpu = {"INFERENCE_NUM_THREADS": threads} if name == "CPU" else {}
    return {"load_config": json.dumps({name: {"INFERENCE_PRECISION_HINT": "f32", **of_cpu}})}


def _refuse_fall_back(session: ort.InferenceSession, model: Path, *, engine: str, device: Device) -> None:
    """ONNX Runtime goes on without a provider that it cannot load, and gives single nodes to the CPU without a word."""
    if (first := session.get_providers()[0]) != PROVIDERS[engine]:
        raise _missing(model, engine=engine, device=device, why=f"ONNX Runtime fell back to {first}")
    if engine == "cpu":
        return
    on_cpu = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == PROVIDERS["cpu"]
        for node in part.get_nodes()
        if node.op_type in HEAVY
    )
    if on_cpu:
        nodes = ", ".join(f"{count} {name}" for name, count in on_cpu.most_common())
        raise _missing(model, engine=engine, device=device, why=f"it leaves to the CPU: {nodes}")


def _missing(model: Path, *, engine: str, device: Device, why: str) -> RunFailed:
    return RunFailed(
        f"{model}: engine {engine} does not work on {device.name} ({device.kind}): {why}; "
        f"install {INSTALL[engine]}, or name another engine in tag.engine"
    )
