"""Tags that prompts may not have, and a tagger (a small real graph) that looks at pictures."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sote.cluster.errors import RunFailed, UserError, WeightsError
from sote.serve import safety
from sote.serve.recipe import SafetyPart
from sote.serve.safety import BlockList, Looker


def found(prompt: str, *blocked: str) -> tuple[str, ...]:
    return BlockList.of(SafetyPart(blocked_tags=blocked)).found(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "red dress",
        "1girl, red dress, solo",
        "1girl, Red_Dress",
        "(red dress:1.3), 1girl",
        "((red dress))",
        "[red  dress]",
        "(red:1.2) (dress:0.9)",
        "\uff32ed dress",
        "re\u200bd dress",
        "1girl\nred dress",
        "1girl、red dress",
        "a girl in a red dress, sitting",
        "short red dress",
        "a red dress.",
    ],
)
def test_a_blocked_tag_is_found_however_it_is_written(prompt: str) -> None:
    assert found(prompt, "red_dress") == ("red_dress",)


@pytest.mark.parametrize(
    "prompt", ["", "dress, red", "red, dress", "red dresses", "darkred dress", "dress red", "red short dress", "red"]
)
def test_other_tags_are_not_taken_for_it(prompt: str) -> None:
    assert found(prompt, "red dress") == ()


def test_a_word_is_found_in_a_sentence_and_not_inside_of_another_word() -> None:
    assert found("a black cat, sitting", "cat") == ("cat",)
    assert found("cathedral, concatenate, cats", "cat") == ()


def test_tags_with_marks_are_found() -> None:
    assert found("1girl, :3, solo", ":3") == (":3",)
    assert found("^_^", "^_^") == ("^_^",)
    for prompt in (r"saber \(fate\)", "saber_(fate)", "Saber (Fate), 1girl", r"(saber \(fate\):1.2)"):
        assert found(prompt, "saber (fate)") == ("saber (fate)",)
    assert found("saber", "saber (fate)") == ()


def test_all_blocked_tags_are_named_in_the_order_of_the_list() -> None:
    assert found("a, b, c", "c", "x", "a") == ("c", "a")
    assert found("a", *()) == ()


SIDE, RATINGS = 8, "9999999,general,9,0\n9999998,sensitive,9,0\n9999997,questionable,9,0\n9999996,explicit,9,0\n"
LABELS = f"tag_id,name,category,count\n{RATINGS}1,very_red,0,9\n2,very_green,0,8\n3,very_blue,0,7\n"
# Output t is sigmoid(0.1 * mean of a channel of BGR - offset): a picture of 255 gives sigmoid(12.7) = 1.00, 0 gives 0
CHANNEL, OFFSET = (2, 2, 2, 1, 2, 1, 0), (12.8, 12.8, 12.8, 12.8, 12.8, 12.8, 12.8)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagger(tmp_path_factory.mktemp("tagger"))


def write_tagger(folder: Path, *, root_below: float = -1.0) -> Path:
    """`root_below`: the root of blue less this is added, so that darker blue than this gives NaN."""
    weight = np.zeros((3, 7), np.float32)
    weight[CHANNEL, range(7)] = 0.1
    constants = {"weight": weight, "offset": np.array(OFFSET, np.float32)}
    constants |= {"below": np.array([root_below], np.float32), "none": np.zeros(1, np.float32)}
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "offset"], ["logits"]),
        helper.make_node("Sub", ["mean", "below"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),
        helper.make_node("ReduceMin", ["root"], ["least"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["least", "none"], ["nothing"]),
        helper.make_node("Add", ["logits", "nothing"], ["moved"]),
        helper.make_node("Sigmoid", ["moved"], ["chances"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ("n", SIDE, SIDE, 3))],
        [helper.make_tensor_value_info("chances", TensorProto.FLOAT, ["n", 7])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx"
    )
    (folder / "selected_tags.csv").write_text(LABELS)
    return folder


def looker(folder: Path, *withheld: str, probability: float = 0.5) -> Looker:
    part = SafetyPart(tagger=str(folder), withheld_tags=withheld, withheld_probability=probability)
    made = Looker.of(part, threads=1)
    assert made is not None
    return made


def picture(red: int, green: int, blue: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((24, 24, 3), (red, green, blue), np.uint8)


def test_a_picture_is_flagged_for_the_withheld_tags_that_it_has(tagger: Path) -> None:
    looks = looker(tagger, "Very Red", "very_green", "explicit")
    assert looks.flagged(picture(255, 0, 0)) == ("Very Red 1.00",)
    assert looks.flagged(picture(255, 255, 0)) == ("Very Red 1.00", "very_green 1.00", "explicit 1.00")
    assert looks.flagged(picture(0, 0, 255)) == ()  # very_blue is not withheld


def test_the_recipe_says_from_which_probability_on(tagger: Path) -> None:
    # sigmoid(13.7 - 12.8) = 0.71
    assert looker(tagger, "very_red", probability=0.7).flagged(picture(137, 0, 0)) == ("very_red 0.71",)
    assert looker(tagger, "very_red", probability=0.72).flagged(picture(137, 0, 0)) == ()


def test_a_tag_that_the_tagger_does_not_know_is_refused_before_it_is_loaded(tagger: Path) -> None:
    part = SafetyPart(tagger=str(tagger), withheld_tags=("very_red", "vary_green"))
    for raising in (safety.check, Looker.of):
        with pytest.raises(UserError, match=r"safety\.withheld_tags: the tagger knows no 'vary_green'"):
            raising(part)


def test_a_tagger_that_is_not_there_names_its_field(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"safety\.tagger: .* is neither a path here nor known by key"):
        safety.check(SafetyPart(tagger=str(tmp_path / "nowhere")))
    with pytest.raises(WeightsError, match=r"selected_tags\.csv|model\.onnx"):
        safety.check(SafetyPart(tagger=str(tmp_path)))


def test_without_a_tagger_nobody_looks() -> None:
    assert Looker.of(SafetyPart()) is None
    safety.check(SafetyPart())


def test_a_picture_that_the_tagger_cannot_judge_is_not_handed_out(tmp_path: Path) -> None:
    looks = looker(write_tagger(tmp_path, root_below=100), "very_red")
    assert looks.flagged(picture(255, 255, 255)) == ("very_red 1.00",)
    with pytest.raises(RunFailed, match="not finite"):
        looks.flagged(picture(255, 255, 9))
