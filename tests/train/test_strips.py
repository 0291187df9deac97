"""The strips of sample pictures in the report."""

from pathlib import Path

from PIL import Image

from sote.cluster.storage import RunFolder
from sote.train import strips


def lines(root: Path, *, steps: range, prompts: tuple[str, ...] = ("a lake", "a <hill>")) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for step in steps:
        for seed, prompt in enumerate(prompts):
            file = f"images/samples/step-{step}-{seed}.png"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 96), (step % 256, 90, 120)).save(root / file)
            found.append({"kind": "sample", "step": step, "file": file, "prompt": prompt, "seed": seed})
    return found


def test_a_prompt_is_a_row_and_a_step_a_column(tmp_path: Path) -> None:
    section = strips.section(RunFolder(tmp_path), lines(tmp_path, steps=range(10, 40, 10)))
    assert section is not None
    assert section.body.count('class="reel"') == 2
    assert section.body.count("data:image/webp") == 6
    assert "a &lt;hill&gt;" in section.body
    assert [section.body.count(f"step {step}<") for step in (10, 20, 30)] == [2, 2, 2]


def test_of_many_steps_the_first_the_last_and_some_between_are_shown(tmp_path: Path) -> None:
    assert strips.spread(range(100), 8) == [0, 14, 28, 42, 57, 71, 85, 99]
    section = strips.section(RunFolder(tmp_path), lines(tmp_path, steps=range(1, 21), prompts=("a lake",)))
    assert section is not None
    assert section.body.count("<figure") == strips.MOST_COLUMNS
    assert "8 of the 20 moments" in section.lead


def test_a_picture_that_is_gone_broken_or_was_never_painted_is_a_placeholder_that_says_so(tmp_path: Path) -> None:
    samples = lines(tmp_path, steps=range(1, 4), prompts=("a lake", "a hill"))
    (tmp_path / str(samples[0]["file"])).unlink()
    (tmp_path / str(samples[1]["file"])).write_bytes(b"no picture")
    section = strips.section(RunFolder(tmp_path), samples[:-1])
    assert section is not None
    for words in ("No such file or directory", "cannot be read", "not painted"):
        assert words in section.body


def test_without_samples_there_is_no_section(tmp_path: Path) -> None:
    assert strips.section(RunFolder(tmp_path), []) is None
