import json
from pathlib import Path
from typing import Any

import pytest

from sote.cluster.errors import RunFolderError
from sote.train import card_adherence

SAID: dict[str, Any] = {
    "prompts": [{"prompt": "red circle", "seed": 1, "wanted": ["red_circle"], "groups": {"red_circle": "shapes"}}] * 40,
    "models": {},
    "groups": {
        "shapes": {"base": [33, 40], "finetuned": [36, 40], "control": [20, 40]},
        "words": {"base": [0, 0], "finetuned": [0, 0], "control": [0, 0]},
    },
    "concept": {
        "name": "violet comet",
        "tags": ["purple_star", "hollow_style"],
        "chance": 0.05,
        "base": [1, 16],
        "finetuned": [13, 16],
        "control": [2, 16],
        "images": {},
        "truth": [],
    },
    "goals": [
        {"what": "the concept is painted", "least": 0.7, "value": 0.8125, "met": True},
        {"what": "the control stays at chance", "most": 0.1, "value": 0.125, "met": False},
        {"what": "minutes with set-up", "most": 15, "value": 12.4, "met": True},
    ],
}


def written(run: Path, said: dict[str, Any]) -> Path:
    (run / "adherence.json").write_text(json.dumps(said))
    return run


def test_counts_stand_in_a_table_by_group_and_all_together(tmp_path: Path) -> None:
    found = card_adherence.read(written(tmp_path, SAID))
    assert found
    text = "\n\n".join(card_adherence.render(found))
    assert text.startswith("40 prompts were painted by each model")
    assert "| shapes | 33 of 40 (82 %) | 36 of 40 (90 %) | 20 of 40 (50 %) |\n| words | none | none | none |\n" in text
    assert "| all | 33 of 40 (82 %) | 36 of 40 (90 %) | 20 of 40 (50 %) |" in text


def test_a_concept_is_shown_beside_base_control_and_chance_and_a_goal_that_is_not_met_says_so(tmp_path: Path) -> None:
    found = card_adherence.read(written(tmp_path, SAID))
    assert found
    text = "\n\n".join(card_adherence.render(found))
    line = "base 1 of 16 (6 %), finetuned 13 of 16 (81 %), control 2 of 16 (12 %); by chance 5 %."
    assert f"`violet comet` (purple_star, hollow_style): {line}" in text
    assert "- the concept is painted: 81 % (at least 70 %: met)\n" in text
    assert "- the control stays at chance: 12 % (at most 10 %: not met)\n" in text
    assert text.endswith("- minutes with set-up: 12.4 (at most 15: met)")


def test_a_run_in_which_nothing_was_counted_has_none(tmp_path: Path) -> None:
    assert card_adherence.read(tmp_path) is None


@pytest.mark.parametrize("missing", ["prompts", "groups", "concept", "goals"])
def test_a_file_in_another_form_is_named(tmp_path: Path, missing: str) -> None:
    said = {name: value for name, value in SAID.items() if name != missing}
    with pytest.raises(RunFolderError, match=r"adherence\.json is not in the form"):
        card_adherence.read(written(tmp_path, said))
    (tmp_path / "adherence.json").write_text("[")
    with pytest.raises(RunFolderError, match="JSONDecodeError"):
        card_adherence.read(tmp_path)


def test_the_name_of_the_file_is_that_which_serving_reads() -> None:
    from sote.serve import adherence_file

    assert card_adherence.FILE == adherence_file.FILE
    assert card_adherence.MODELS == adherence_file.NAMES
