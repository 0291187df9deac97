"""The README's strip of paintings."""

from pathlib import Path

import pytest
from PIL import Image

from sote.cluster.errors import RunFolderError
from sote.cluster.storage import RunFolder
from sote.data import world_prompts
from sote.serve import adherence_file, strip
from tests.serve.measured import measure, write


def test_the_strip_is_one_light_card_of_the_width_of_a_readme(tmp_path: Path) -> None:
    measure(tmp_path, prompts=8)
    with Image.open(strip.make(tmp_path, tmp_path / "strip.png")) as image:
        assert image.size == (strip.WIDTH, strip.HEIGHT)
        assert image.format == "PNG"
        corner, paper = image.getpixel((0, 0)), image.getpixel((strip.WIDTH // 2, 4))
    assert corner == (0, 0, 0, 0)
    assert paper == (0xFB, 0xFA, 0xF6, 255)


def test_a_column_shows_the_base_above_the_finetuned_model(tmp_path: Path) -> None:
    content = measure(tmp_path, prompts=1)
    for name, colour in (("base", (255, 0, 0)), ("finetuned", (0, 0, 255))):
        Image.new("RGB", (64, 64), colour).save(tmp_path / content["models"][name]["images"][0])
    with Image.open(strip.make(tmp_path, tmp_path / "strip.png")) as image:
        x, y = strip.MARGIN + strip.NAMES_WIDTH + strip.SIDE // 2, strip.PICTURES_TOP + strip.SIDE // 2
        assert image.getpixel((x, y)) == (255, 0, 0, 255)
        assert image.getpixel((x, y + strip.SIDE + strip.GAP)) == (0, 0, 255, 255)


def test_making_it_again_gives_the_same_bytes(tmp_path: Path) -> None:
    measure(tmp_path)
    first = strip.make(tmp_path, tmp_path / "a.png").read_bytes()
    assert strip.make(tmp_path, tmp_path / "b.png").read_bytes() == first


def test_prompts_are_spread_over_the_list_without_those_of_the_concept(tmp_path: Path) -> None:
    content = measure(tmp_path, prompts=13)
    for at in (0, 12):
        content["prompts"][at]["groups"] = dict.fromkeys(content["prompts"][at]["wanted"], world_prompts.CONCEPT)
    write(tmp_path, content)
    measured = adherence_file.read(RunFolder(tmp_path))
    assert measured is not None
    shown = strip.chosen(measured)
    assert len(shown) == strip.PROMPTS
    assert (shown[0], shown[-1]) == (1, 11)


def test_a_caption_is_short() -> None:
    wanted = ("red_circle", "1_shape", "large_shape", "center_of_picture", "flat_style", "blue_background",
              "simple_background")  # fmt: skip
    prompt = adherence_file.Prompt(prompt="", seed=1, wanted=wanted, groups={})
    assert strip.caption(prompt) == "red circle, large, center, flat, blue background"
    several = prompt.model_copy(update={"wanted": ("2_shapes", "green_background", "striped_background")})
    assert strip.caption(several) == "2 shapes, green striped background"


def test_a_run_without_a_measure_or_a_picture_makes_no_strip(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"has no adherence\.json"):
        strip.make(tmp_path, tmp_path / "strip.png")
    measure(tmp_path)
    (tmp_path / "images" / "finetuned-0.png").unlink()
    with pytest.raises(RunFolderError, match=r"finetuned-0\.png: cannot be read as a picture"):
        strip.make(tmp_path, tmp_path / "strip.png")
    assert not (tmp_path / "strip.png").exists()
