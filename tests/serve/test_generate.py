"""`sote generate` in this process, on the stand-ins."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sote.serve.pictures import comment_of

Sote = Callable[..., tuple[int, str, str]]


@pytest.fixture
def recipe(weights: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(images: int = 1) -> Path:
        path = tmp_path / "serve.toml"
        path.write_text(
            f'run = "{tmp_path / "run"}"\n[model]\nprior = "{weights / "prior"}"\ndecoder = "{weights / "decoder"}"\n'
            f"[defaults]\nwidth = 256\nheight = 384\nprior_steps = 4\ndecoder_steps = 4\nimages = {images}\n"
        )
        return path

    return make


@pytest.mark.parametrize(("ending", "form"), [(".png", "PNG"), (".JPG", "JPEG"), (".webp", "WEBP")])
def test_a_prompt_becomes_a_file_of_the_ending_s_format_with_its_parameters(
    sote: Sote, recipe: Callable[..., Path], tmp_path: Path, ending: str, form: str
) -> None:
    out = tmp_path / f"picture{ending}"
    code, said, error = sote("generate", str(recipe()), "a red circle", "--out", str(out), "--seed", "7")
    assert (code, error) == (0, "")
    assert said.startswith(f"{out}  seed 7  ")
    assert len(said.splitlines()) == 1
    with Image.open(out) as image:
        assert image.format == form
        assert image.size == (256, 384)
        found = comment_of(image)
    assert found is not None
    assert found.startswith("a red circle\n")
    assert "Seed: 7" in found
    assert not (tmp_path / "run").exists()


def test_several_pictures_are_numbered_and_one_of_them_can_be_asked_for_alone(
    sote: Sote, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    code, said, _ = sote("generate", str(recipe(2)), "a cat", "--out", str(tmp_path / "cat.png"), "--seed", "3")
    assert code == 0
    assert [line.split("  ")[:2] for line in said.splitlines()] == [
        [str(tmp_path / "cat-1.png"), "seed 3"],
        [str(tmp_path / "cat-2.png"), "seed 4"],
    ]
    assert not (tmp_path / "cat.png").exists()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("x.gif", "the ending says the format; known: .png, .jpg, .jpeg, .webp"),
        ("x", "the ending says the format"),
        ("nowhere/x.png", "no such folder: "),
        ("there.png", "there.png is there already; name another file"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_loaded(
    sote: Sote, recipe: Callable[..., Path], tmp_path: Path, out: str, words: str
) -> None:
    (tmp_path / "there.png").write_bytes(b"mine")
    code, said, error = sote("generate", str(recipe()), "a cat", "--out", str(tmp_path / out))
    assert (code, said) == (2, "")
    assert len(error.splitlines()) == 1
    assert words in error
    assert (tmp_path / "there.png").read_bytes() == b"mine"


def test_missing_weights_and_a_prompt_beyond_all_bounds_are_one_line(
    sote: Sote, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe()
    code, _, error = sote("generate", str(path), "cat " * 6000, "--out", str(tmp_path / "x.png"))
    assert code == 2
    assert error.startswith("sote: prompt: ")
    path.write_text(path.read_text().replace("/prior", "/nothing"))
    code, _, error = sote("generate", str(path), "a cat", "--out", str(tmp_path / "x.png"))
    assert code == 2
    assert len(error.splitlines()) == 1
    assert "model.prior" in error
    assert not (tmp_path / "x.png").exists()
