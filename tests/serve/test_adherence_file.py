"""What a file of measured paintings must hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sote.cluster.errors import RunFolderError
from sote.cluster.storage import RunFolder
from sote.serve import adherence_file
from tests.serve.measured import measure, write


def test_a_run_in_which_nothing_was_measured_has_none(tmp_path: Path) -> None:
    assert adherence_file.read(RunFolder(tmp_path)) is None


def test_what_a_model_knew_is_the_sum_of_its_groups_but_the_concept(tmp_path: Path) -> None:
    content = measure(tmp_path, prompts=3)
    content["groups"]["concept"] = {"base": [0, 2], "finetuned": [2, 2], "control": [0, 2]}
    write(tmp_path, content)
    measured = adherence_file.read(RunFolder(tmp_path))
    assert measured is not None
    tags = sum(len(prompt["wanted"]) for prompt in content["prompts"])
    assert [measured.known(name) for name in adherence_file.NAMES] == [(tags - 3, tags), (tags, tags), (0, tags)]


def lose_a_model(content: dict[str, Any]) -> None:
    del content["models"]["control"]


def lose_a_picture(content: dict[str, Any]) -> None:
    content["models"]["base"]["images"].pop()


def find_too_much(content: dict[str, Any]) -> None:
    content["concept"]["base"] = [3, 2]


def bound_twice(content: dict[str, Any]) -> None:
    content["goals"][0]["most"] = 1.0


def lose_the_groups(content: dict[str, Any]) -> None:
    del content["groups"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lose_a_model, "models: nothing of control"),
        (lose_a_picture, r"models\.base: not as many images"),
        (find_too_much, "more hits than there were to be had"),
        (bound_twice, r"goals\.0: .*one of `least` and `most`"),
        (lose_the_groups, "groups: Field required"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(
    spoil: Callable[[dict[str, Any]], None], said: str, tmp_path: Path
) -> None:
    content = measure(tmp_path, prompts=2)
    spoil(content)
    write(tmp_path, content)
    with pytest.raises(RunFolderError, match=said) as raised:
        adherence_file.read(RunFolder(tmp_path))
    assert "\n" not in str(raised.value)
