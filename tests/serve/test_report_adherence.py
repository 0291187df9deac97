"""The report's chapter on what was learnt."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sote.cluster import storage
from sote.cluster.page import Chapter
from sote.cluster.storage import RunFolder
from sote.data.recipe import CurateRecipe, Source
from sote.serve import report_adherence
from sote.serve.report import write_report
from tests.serve.measured import CONCEPT, measure, write

BLANK = "\u202f"  # before the sign of per cent


def chapter(run: Path) -> Chapter:
    found = report_adherence.chapter(RunFolder(run))
    assert found is not None
    return found


def words(html: str) -> str:
    """The text of a page, without tags."""
    return re.sub(r"<[^>]+>", "", html.replace(BLANK, " "))


def test_without_a_measure_there_is_no_chapter(tmp_path: Path) -> None:
    assert report_adherence.chapter(RunFolder(tmp_path)) is None


def test_the_headline_and_the_bars_say_the_same_figures(tmp_path: Path) -> None:
    content = measure(tmp_path)
    tags = sum(len(prompt["wanted"]) for prompt in content["prompts"])
    answer = chapter(tmp_path).sections[0]
    assert words(answer.lead).startswith(f"{tags} of the {tags} tags that were asked for, the new concept")
    assert f"Before the finetune {tags - 3} of {tags} were there" in words(answer.lead)
    assert f'aria-label="base: {tags - 3} of {tags}"' in answer.body
    assert f"{tags - 3}/{tags}" in words(answer.body)
    assert answer.body.count('class="trial m-control"') == len(content["groups"]) + 1


def test_goals_are_met_or_not_in_words(tmp_path: Path) -> None:
    measure(tmp_path)
    body = words(chapter(tmp_path).sections[0].body)
    assert "colours and shapesat least 80 %50 %✗ not met" in body
    assert "learntat least 70 %100 %✓ met" in body
    assert "tookat most 1512.5✓ met" in body


def test_the_concept_stands_before_and_after_with_chance_marked(tmp_path: Path) -> None:
    measure(tmp_path)
    concept = chapter(tmp_path).sections[1]
    assert f"never seen {CONCEPT}. After the finetune 2 of 2 paintings show it (100 %), before 1 of 2" in words(
        concept.lead
    )
    assert concept.body.count('class="chance" style="left:12.50%"') == 3
    assert concept.body.count("<img") == 8
    assert f'alt="{CONCEPT}, finetuned, number 2"' in concept.body


def test_each_prompt_says_of_each_model_which_tags_are_there(tmp_path: Path) -> None:
    content = measure(tmp_path, prompts=1)
    sheet = chapter(tmp_path).sections[2].body
    tags = len(content["prompts"][0]["wanted"])
    said = re.findall(r'aria-label="(\w+): (found|missing)"', sheet)
    assert said[:3] == [("base", "missing"), ("finetuned", "found"), ("control", "missing")]
    assert said.count(("base", "found")) == tags - 1
    assert said.count(("control", "missing")) == tags
    assert f"base {tags - 1}/{tags}" in words(sheet)
    assert sheet.count("<img") == 3


def test_a_long_list_is_folded_and_none_is_left_out(tmp_path: Path) -> None:
    measure(tmp_path, prompts=14)
    sheet = chapter(tmp_path).sections[2]
    assert sheet.lead.startswith("12 of the 14 prompts")
    shown, folded = sheet.body.split("<details>")
    assert shown.count('class="asked"') == 12
    assert "The other 2 prompts" in folded
    assert sorted(map(int, re.findall(r"seed (\d+)</small>", sheet.body))) == list(range(14))


@pytest.mark.parametrize("has_control", [True, False])
def test_the_loss_of_the_control_is_drawn_beside_the_finetunes(tmp_path: Path, has_control: bool) -> None:
    measure(tmp_path)
    for run in (tmp_path, tmp_path / "control")[: 1 + has_control]:
        run.mkdir(exist_ok=True)
        lines = [{"time": 1.0, "kind": "step", "step": step, "loss": 1 / step} for step in range(1, 9)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    body = chapter(tmp_path).sections[1].body
    assert body.count("<polyline") == 2 * has_control


def test_a_picture_that_is_gone_is_said_and_hostile_words_are_escaped(tmp_path: Path) -> None:
    content = measure(tmp_path)
    content["prompts"][0]["prompt"] = "<script>x</script>"
    content["models"]["base"]["label"] = '"><b'
    write(tmp_path, content)
    (tmp_path / "images" / "base-0.png").unlink()
    (tmp_path / "images" / "base-1.png").write_bytes(b"broken")
    body = "".join(section.body for section in chapter(tmp_path).sections)
    assert "images/base-0.png: No such file or directory" in body
    assert "images/base-1.png: cannot be read" in body
    assert "<script" not in body
    assert '"><b"' not in body


def test_eighty_prompts_of_noise_stay_under_three_megabytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    sizes = []
    for prompts in (1, 4):
        content = measure(tmp_path, prompts=prompts, of_concept=16)
        for name in {file for model in content["models"].values() for file in model["images"]}:
            Image.fromarray(noise).save(tmp_path / name)
        sizes.append(sum(len(section.body.encode()) for section in chapter(tmp_path).sections))
    whole = sizes[0] + 79 * (sizes[1] - sizes[0]) / 3
    assert 1_000_000 < whole < 2_700_000  # the concept's are no noise


def test_the_report_has_the_chapter_before_the_images_and_loads_nothing(tmp_path: Path) -> None:
    recipe = CurateRecipe(run=str(tmp_path / "run"), sources=(Source(name="a", path=str(tmp_path)),))
    with storage.open_run(recipe, verb="curate", command="sote curate x.toml") as folder:
        measure(folder.root)
        line: dict[str, Any] = {"time": 1.0, "kind": "image", "file": "images/base-0.png", "prompt": "p", "seed": 1}
        folder.metrics.write_text(json.dumps(line) + "\n")
    text = write_report(folder.root).read_text(encoding="utf-8")
    assert re.findall(r'<section id="([^"]+)"', text) == ["adherence", "concept", "prompts", "images"]
    assert "Asked for what it knew, it paints 100" in text
    assert not re.search(r"(src|href)=\"(?!data:image/|#)", text)
