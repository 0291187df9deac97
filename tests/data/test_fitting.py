"""Batches in pieces: real functions that run out of memory above a number of rows, as torch and ONNX Runtime say it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from sote.data.fitting import Pieces, first_rows, is_out_of_memory

Array = NDArray[Any]


def doubles(most: int, *, seen: list[int], error: Callable[[], BaseException]) -> Callable[[Array], Array]:
    """A function that can take at most so many rows."""

    def run(rows: Array) -> Array:
        seen.append(len(rows))
        if len(rows) > most:
            raise error()
        return rows * 2

    return run


def torch_says() -> BaseException:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def intel_says() -> BaseException:
    return RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)")


@pytest.mark.parametrize("error", [torch_says, intel_says, MemoryError], ids=["torch", "intel", "python"])
def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_the_size_is_kept(
    error: Callable[[], BaseException],
) -> None:
    pieces, seen, rows = Pieces(16), list[int](), np.arange(32).reshape(16, 2)
    f = doubles(5, seen=seen, error=error)
    np.testing.assert_array_equal(pieces.run(f, rows), rows * 2)
    assert seen == [16, 8, 4, 4, 4, 4]
    seen.clear()
    np.testing.assert_array_equal(pieces.run(f, rows[:6]), rows[:6] * 2)
    assert seen == [4, 2]  # nothing is tried again that did not fit
    assert pieces.rows == 4


def test_halving_begins_at_the_rows_that_failed_and_keeps_what_is_done() -> None:
    pieces, seen = Pieces(100), list[int]()
    rows = np.arange(10)
    np.testing.assert_array_equal(pieces.run(doubles(3, seen=seen, error=torch_says), rows), rows * 2)
    assert seen == [10, 5, 2, 2, 2, 2, 2]


def test_one_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Pieces(8).run(doubles(0, seen=[], error=torch_says), np.arange(8))


def test_another_error_is_passed_on_at_once() -> None:
    seen: list[int] = []
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Pieces(8).run(
            doubles(0, seen=seen, error=lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied")), np.arange(8)
        )
    assert seen == [8]


def test_pieces_of_one_shape_are_filled_up_with_zeros_and_the_filling_is_cut_off() -> None:
    seen: list[Array] = []

    def run(rows: Array, others: Array) -> Array:
        seen.append(rows)
        return rows + others

    rows = np.arange(1, 8)
    np.testing.assert_array_equal(Pieces(3, fill=True).run(run, rows, rows), rows * 2)
    assert [piece.tolist() for piece in seen] == [[1, 2, 3], [4, 5, 6], [7, 0, 0]]


def test_a_graph_of_a_fixed_batch_is_never_halved() -> None:
    with pytest.raises(MemoryError):
        Pieces(4, fill=True, least=4).run(doubles(2, seen=[], error=MemoryError), np.arange(4))


def test_no_rows_give_no_rows() -> None:
    assert Pieces(4).run(lambda rows: rows[:, :1], np.zeros((0, 3))).shape == (0, 1)
    assert Pieces(4, fill=True).run(lambda rows: rows[:, :1], np.zeros((0, 3))).shape == (0, 1)


def test_what_torch_really_says_when_the_cpu_has_no_memory_is_understood() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_what_onnx_runtime_really_says_when_the_cpu_has_no_memory_is_understood() -> None:
    graph = helper.make_graph(
        [helper.make_node("Expand", ["one", "shape"], ["many"])],
        "test",
        [
            helper.make_tensor_value_info("one", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("many", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with pytest.raises((ort_errors.RuntimeException, ort_errors.Fail)) as raised:
        session.run(None, {"one": np.ones(1, np.float32), "shape": np.array([1 << 50], np.int64)})
    assert is_out_of_memory(raised.value)


def test_the_first_rows_are_halved_until_they_and_the_model_fit_the_share_of_the_memory() -> None:
    gb = 10**9
    assert first_rows(16, memory_bytes=None, row_bytes=gb) == 16
    assert first_rows(16, memory_bytes=80 * gb, row_bytes=gb) == 16
    assert first_rows(16, memory_bytes=24 * gb, row_bytes=gb) == 8  # 0.4 of 24 GB is 9.6 GB
    assert first_rows(16, memory_bytes=24 * gb, row_bytes=gb, model_bytes=2 * gb) == 4
    assert first_rows(16, memory_bytes=gb, row_bytes=gb) == 1  # one row is always tried
