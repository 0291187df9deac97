import ast
import json
import re
from pathlib import Path

import diffusers
import pytest

from sote.train import card, card_use
from tests.train.test_card import curated, trained  # noqa: F401  a fixture
from tests.train.test_card_adherence import SAID


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_a_card_says_how_to_paint_in_each_program(curated: Path, tmp_path: Path) -> None:  # noqa: F811
    text = section(card.write(trained(tmp_path / "base", curated)).read_text(), "How to use")
    assert [line for line in text.splitlines() if line.startswith("### ")] == [
        "### Diffusers",
        "### ComfyUI",
        "### SD.Next",
        "### Sote",
    ]
    assert "`sote export RUN OUT" in text  # nothing is exported yet
    assert "`sote_main.safetensors`" in text
    assert "width=1024, height=1536" in text
    assert 'prompt, negative_prompt = "newest, extremely aesthetic, best quality"' in text
    assert "read the first 77 tokens of a prompt" in text  # this one was trained with 227


def test_the_code_for_diffusers_is_python_with_names_that_diffusers_has(curated: Path, tmp_path: Path) -> None:  # noqa: F811
    text = card.write(trained(tmp_path / "base", curated)).read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    [imported] = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert all(hasattr(diffusers, alias.name) for alias in imported.names)


def test_limits_come_from_the_records(curated: Path, tmp_path: Path) -> None:  # noqa: F811
    known = section(card.write(trained(tmp_path / "base", curated)).read_text(), "Limitations")
    assert "Its base is no published model" not in known
    assert "up to 1,048,576 pixels" in known
    assert "Nothing was read of the text in its pictures" in known  # this curation has no reader
    assert "empty caption" not in known
    own = trained(tmp_path / "own", curated, model={"prior": "mine.safetensors"}, captions={"dropout": 0.0})
    said = section(card.write(own).read_text(), "Limitations")
    assert "Its base is no published model" in said
    assert "It has never seen an empty caption" in said


@pytest.mark.parametrize(("side", "first"), [(None, (1024, 1536)), (1024, (1024, 1536)), (512, (512, 512))])
def test_sizes_are_the_seeds_for_what_was_trained_as_it_was(side: int | None, first: tuple[int, int]) -> None:
    assert card_use.sizes(side)[0] == first


def test_adherence_stands_in_the_card_of_a_run_that_counted_it(curated: Path, tmp_path: Path) -> None:  # noqa: F811
    run = trained(tmp_path / "base", curated)
    assert "## Prompt adherence" not in card.write(run).read_text()
    (run / "adherence.json").write_text(json.dumps(SAID))
    assert "finetuned 13 of 16 (81 %)" in section(card.write(run).read_text(), "Prompt adherence")
