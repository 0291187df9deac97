"""Run a batch in pieces that fit the memory of the device: halve and try again where it runs out.

Kind: pure.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A device's memory that one model may plan with: two models share an accelerator, and some is the driver's.
SHARE = 0.4
# What is said when memory runs out, by those that have no exception class of their own for it
SIGNS = (
    "out of memory",  # CUDA and ROCm ("CUDA failure 2: out of memory", "HIP out of memory"), torch's allocators
    "OUT_OF_DEVICE_MEMORY",  # Intel: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY, ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY
    "OUT_OF_HOST_MEMORY",  # Intel: UR_RESULT_ERROR_OUT_OF_HOST_MEMORY
    "OUT_OF_RESOURCES",  # Intel: PI_ERROR_OUT_OF_RESOURCES, CL_OUT_OF_RESOURCES
    "can't allocate memory",  # torch on the CPU: DefaultCPUAllocator
    "Failed to allocate memory",  # ONNX Runtime: BFCArena, "Failed to allocate memory for requested buffer of size"
    "ALLOC_FAILED",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "bad_alloc",  # C++: std::bad_alloc, as ONNX Runtime passes it on
)

Array = NDArray[Any]


class Pieces:
    """How many rows of a batch run at once: `rows` at first, fewer from the moment that memory ran out.

    `fill` gives every piece exactly that many rows, filled up with zeros, for engines that are built for one shape.
    Below `least` rows nothing is halved: the error is passed on.
    """

    def __init__(self, rows: int, *, fill: bool = False, least: int = 1) -> None:
        self.rows, self._fill, self._least = max(rows, 1), fill, least

    def run(self, f: Callable[..., Array], *arrays: Array) -> Array:
        """f on pieces of all arrays' rows (their first axis), its results as one array of as many rows."""
        count, at = len(arrays[0]), 0
        done: list[Array] = []
        while at < count or not done:
            piece = [array[at : at + self.rows] for array in arrays]
            kept = len(piece[0])
            if self._fill and kept < self.rows:
                piece = [_filled(array, self.rows) for array in piece]
            result = self._try(f, piece)
            if result is not None:
                done.append(result[:kept])
                at += kept
        return done[0] if len(done) == 1 else np.concatenate(done)

    def _try(self, f: Callable[..., Array], piece: list[Array]) -> Array | None:
        """The result; or None and fewer rows from now on."""
        rows = len(piece[0])
        try:
            return f(*piece)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or rows <= self._least:
                raise
        # only here, outside of the handler, does nothing hold what the failed run had allocated
        free_memory()
        self.rows = max(rows // 2, self._least)
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, ONNX Runtime or numpy says that memory ran out."""
    torch: Any = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return any(sign in str(error) for sign in SIGNS)


def free_memory() -> None:
    """Give back what torch's allocators keep for later."""
    torch: Any = sys.modules.get("torch")
    for device in (torch.cuda, torch.xpu) if torch is not None else ():
        if device.is_available() and device.is_initialized():
            device.empty_cache()


def first_rows(most: int, *, memory_bytes: int | None, row_bytes: int, model_bytes: int = 0) -> int:
    """How many rows to begin with: `most`, halved until they and the model fit a device of `memory_bytes`.

    `row_bytes` is what one row takes while it runs, an estimate; None as memory takes `most`.
    """
    rows = most
    while memory_bytes is not None and rows > 1 and rows * row_bytes + model_bytes > memory_bytes * SHARE:
        rows = (rows + 1) // 2
    return rows


def _filled(array: Array, rows: int) -> Array:
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])
