"""Small hand-made graphs stand for the tagger: their outputs are known by arithmetic."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from sote.cluster import devices
from sote.cluster.devices import Device
from sote.cluster.errors import RunFailed, WeightsError
from sote.data.recipe import TagPart
from sote.data.tag import Tagger, engine_name, input_side

SIDE = 8
RATINGS = "9999999,general,9,0\n9999998,sensitive,9,0\n9999997,questionable,9,0\n9999996,explicit,9,0\n"
HEADER = "tag_id,name,category,count\n"
LABELS = HEADER + RATINGS + "1,very_blue,0,9\n2,very_green,0,8\n3,very_red,0,7\n4,some_artist,1,6\n5,miku_(x),4,5\n"
OUTPUTS = 9
# Output t is a sigmoid of mean(channel) / 10 - offset: three tags listen to one channel each, in the order BGR.
CHANNEL = (0, 0, 0, 0, 0, 1, 2, 0, 2)
OFFSET = (12.8, 30.0, 30.0, 30.0, 12.8, 12.8, 12.8, -9.0, 15.0)


def write_tagger(
    folder: Path, *, shape: tuple[Any, ...] = ("batch_size", SIDE, SIDE, 3), sigmoid: bool = True, root: bool = False
) -> Path:
    """A tagger folder. `root` takes the root of what is below 100 levels of blue: NaN for a dark picture."""
    weight = np.zeros((3, OUTPUTS), np.float32)
    weight[CHANNEL, range(OUTPUTS)] = 0.1
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "offset"], ["logits"]),
    ]
    if root:
        nodes += [
            helper.make_node("Sub", ["mean", "hundred"], ["above"]),
            helper.make_node("Sqrt", ["above"], ["root"]),
        ]
        nodes += [helper.make_node("ReduceMean", ["root"], ["one"], axes=[1], keepdims=1)]
        nodes += [helper.make_node("Add", ["logits", "one"], ["moved"])]
    last = "moved" if root else "logits"
    nodes.append(helper.make_node("Sigmoid" if sigmoid else "Identity", [last], ["chances"]))
    constants = {"weight": weight, "offset": np.array(OFFSET, np.float32), "hundred": np.array([100], np.float32)}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("chances", TensorProto.FLOAT, [shape[0], OUTPUTS])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (folder / "selected_tags.csv").write_text(LABELS)
    return folder


def pictures(*blue_green_red: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.stack([np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in blue_green_red])


def batch_of(pixels: NDArray[np.uint8], sound: list[bool] | None = None) -> dict[str, NDArray[Any]]:
    rows = len(pixels)
    return {"tagger_input": pixels, "sound": np.array(sound or [True] * rows), "row": np.arange(rows)}


def names(tags_json: str) -> list[str]:
    return [name for name, _, _ in json.loads(tags_json)]


def test_pixels_reach_the_graph_as_bgr_from_0_to_255(tmp_path: Path) -> None:
    tagger = Tagger(write_tagger(tmp_path), threads=1)
    out = tagger(batch_of(pictures((255, 0, 0), (0, 255, 0), (0, 0, 255))))
    assert [names(tags) for tags in out["tags_json"]] == [["very_blue"], ["very_green"], ["very_red", "miku_(x)"]]
    # sigmoid((255 / 10) - 12.8)
    assert out["rating"][0, 0] == pytest.approx(1 / (1 + np.exp(-12.7)), abs=1e-6)


def test_tags_come_in_the_order_of_the_csv_with_their_category_and_not_below_the_floor(tmp_path: Path) -> None:
    tagger = Tagger(write_tagger(tmp_path), threads=1)
    (tags,) = tagger(batch_of(pictures((128, 128, 255))))["tags_json"]
    assert [(name, category) for name, _, category in json.loads(tags)] == [
        ("very_blue", "general"),
        ("very_green", "general"),
        ("very_red", "general"),
        ("miku_(x)", "character"),
    ]  # artists (category 1) are not used
    low = tagger(batch_of(pictures((90, 0, 0))))["tags_json"][0]
    assert json.loads(low) == []  # sigmoid(9 - 12.8) = 0.022


def test_a_probability_is_written_so_that_it_is_the_same_float32_again(tmp_path: Path) -> None:
    tagger = Tagger(write_tagger(tmp_path), threads=1)
    pixels = pictures((131, 7, 9))
    written = json.loads(tagger(batch_of(pixels))["tags_json"][0])[0][1]
    assert np.float32(written) == tagger.probabilities(pixels)[0, 4]
    assert len(str(written)) < 12


def test_rows_that_are_not_sound_get_nothing_and_no_error(tmp_path: Path) -> None:
    tagger = Tagger(write_tagger(tmp_path), threads=1)
    out = tagger(batch_of(pictures((255, 0, 0), (255, 0, 0)), [False, True]))
    assert np.isnan(out["rating"][0]).all()
    assert out["tags_json"][0] is None
    assert list(out["tag_error"]) == [None, None]
    assert names(out["tags_json"][1]) == ["very_blue"]
    assert "tagger_input" not in out
    assert list(out["row"]) == [0, 1]
    none = tagger(batch_of(pictures((255, 0, 0)), [False]))
    assert none["tags_json"][0] is None


def test_a_row_that_is_not_finite_is_that_rows_error_only(tmp_path: Path) -> None:
    tagger = Tagger(write_tagger(tmp_path, root=True), threads=1)
    out = tagger(batch_of(pictures((10, 10, 10), (255, 255, 255))))
    assert list(out["tag_error"]) == ["tag: not finite", None]
    assert out["tags_json"][0] is None
    assert np.isnan(out["rating"][0]).all()
    assert np.isfinite(out["rating"][1]).all()


def test_a_graph_of_a_fixed_batch_is_filled_up_and_says_the_same(tmp_path: Path) -> None:
    pixels = pictures(*((16 * at, 255 - 16 * at, 99) for at in range(7)))
    free = Tagger(write_tagger(tmp_path / "free"), threads=1).probabilities(pixels)
    fixed = Tagger(write_tagger(tmp_path / "fixed", shape=(3, SIDE, SIDE, 3)), threads=1).probabilities(pixels)
    np.testing.assert_allclose(fixed, free, atol=1e-6)


def test_the_side_is_read_without_opening_the_model(tmp_path: Path) -> None:
    assert input_side(write_tagger(tmp_path)) == SIDE
    assert input_side(write_tagger(tmp_path / "large", shape=("n", 448, 448, 3))) == 448


@pytest.mark.parametrize(
    "shape", [("n", 3, SIDE, SIDE), ("n", "side", "side", 3), ("n", SIDE, 2 * SIDE, 3), ("n", SIDE, SIDE)]
)
def test_a_graph_of_another_layout_is_refused(tmp_path: Path, shape: tuple[Any, ...]) -> None:
    folder = write_tagger(tmp_path, shape=shape)
    with pytest.raises(
        WeightsError, match=r"model\.onnx: takes float32 \[n, .*expected one float32 \[batch, side, side, 3\]"
    ):
        input_side(folder)
    with pytest.raises(WeightsError, match=r"model\.onnx"):
        Tagger(folder, threads=1)


def test_a_graph_that_gives_logits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="expected a graph with its sigmoid inside"):
        Tagger(write_tagger(tmp_path, sigmoid=False), threads=1)


def test_a_graph_of_one_row_runs_a_batch_row_by_row(tmp_path: Path) -> None:
    pixels = pictures((255, 0, 0), (0, 255, 0), (0, 0, 255))
    one = Tagger(write_tagger(tmp_path, shape=(1, SIDE, SIDE, 3)), threads=1)
    assert [names(tags) for tags in one(batch_of(pixels))["tags_json"]] == [
        ["very_blue"],
        ["very_green"],
        ["very_red", "miku_(x)"],
    ]


def test_the_reference_engine_says_what_it_is_and_that_it_differs_by_nothing(tmp_path: Path) -> None:
    facts = Tagger(write_tagger(tmp_path), part=TagPart(engine="cpu"), threads=1).facts
    assert facts == {
        "stage": "tag",
        "device": devices.cpu().name,
        "engine": "cpu",
        "dtype": "float32",
        "compile": False,
        "max_difference": 0.0,
    }


@pytest.mark.parametrize("engine", ["cuda", "cpu", "openvino", "migraphx"])
def test_a_narrow_dtype_with_an_engine_that_has_none_is_refused(engine: Any) -> None:
    with pytest.raises(ValidationError, match=f"engine '{engine}' computes in float32; for bfloat16 name torch"):
        TagPart(engine=engine, dtype="bfloat16")


def test_auto_says_what_to_install_for_an_accelerator_that_no_engine_here_is_made_for(tmp_path: Path) -> None:
    amd = Device("rocm", "AMD Instinct MI300X", memory_bytes=192 * 10**9)
    with pytest.raises(RunFailed, match=r"no engine for AMD Instinct MI300X \(rocm\).*install onnxruntime-migraphx"):
        engine_name(write_tagger(tmp_path), part=TagPart(), device=amd)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + "6,one_more,0,1\n", r"selected_tags\.csv: has 10 rows, but the model gives \(9,\)"),
        (HEADER + "1,solo,0,9\n" + RATINGS, "expected the ratings general, sensitive, questionable, explicit as its"),
        (LABELS.replace("general,9", "safe,9"), "expected the ratings"),
        ("name,count\nsolo,1\n", "expected columns tag_id,name,category,count"),
        (LABELS.replace("miku_(x),4", "miku_(x),four"), "with a number as category"),
        (
            LABELS.replace("miku_(x),4", "miku_(x),8"),
            r"line 10: category of 'miku_\(x\)' is 8, expected one of 0 general,",
        ),
        (LABELS.replace("miku_(x),4", "very_red,4"), "'very_red' stands there 2 times; one tag is one row"),
        (LABELS.replace("miku_(x),4", ",4"), "line 10: has no name"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: str, message: str) -> None:
    folder = write_tagger(tmp_path)
    (folder / "selected_tags.csv").write_text(labels)
    with pytest.raises(WeightsError, match=message):
        Tagger(folder, threads=1)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.onnx: no such file"):
        input_side(tmp_path / "nowhere")
    folder = write_tagger(tmp_path)
    whole = (folder / "model.onnx").read_bytes()
    for broken in (b"this is no model", whole[:60]):
        (folder / "model.onnx").write_bytes(broken)
        with pytest.raises(WeightsError, match=r"model\.onnx: is not an ONNX model"):
            input_side(folder)
        with pytest.raises(WeightsError, match=r"model\.onnx: is not an ONNX model"):
            Tagger(folder, part=TagPart(engine="cpu"))


@pytest.mark.skipif(bool(devices.found()), reason="this machine has an accelerator")
@pytest.mark.parametrize("engine", ["cuda", "tensorrt", "migraphx", "openvino"])
def test_an_engine_that_is_not_there_is_an_error_in_one_line_and_no_fall_back(tmp_path: Path, engine: Any) -> None:
    with pytest.raises(
        RunFailed, match=rf"engine {engine} does not work on .*\(cpu\).*; install .*onnxruntime"
    ) as raised:
        Tagger(write_tagger(tmp_path), part=TagPart(engine=engine))
    assert "\n" not in str(raised.value)
