"""The demo's pictures."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sote.data import scenes
from sote.data.recipe import DecodePart

EVERYTHING = 4 * len(scenes.EXTRAS)  # the smallest count that has every extra


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("drawn")
    scenes.draw(folder, count=EVERYTHING, seed=3)
    return folder


def truth(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "truth.jsonl").read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_scene_depends_on_seed_and_index_only() -> None:
    in_order = [scenes.plan(5, index) for index in range(6)]
    assert [scenes.plan(5, index) for index in reversed(range(6))] == in_order[::-1]
    assert scenes.plan(6, 0) != in_order[0]
    assert len({scene.tags for scene in in_order}) == 6


def test_planning_leaves_the_global_random_state_alone() -> None:
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    scenes.plan(0, 0)
    assert np.random.random() == expected


def test_every_scene_passes_the_default_size_rule_and_has_a_shape_and_known_tags() -> None:
    for index in range(200):
        scene = scenes.plan(0, index)
        assert scene.width * scene.height >= DecodePart().min_pixels
        assert scene.shapes
        assert set(scene.tags) <= set(scenes.GENERAL_TAGS)
        assert scene.character is None or scene.character in scenes.CHARACTERS
        assert all(scene.background.colour != shape.colour for shape in scene.shapes)


def test_years_spread_over_all_that_the_words_span() -> None:
    assert {scenes.plan(0, index).year for index in range(20)} == set(range(2005, 2025))


def test_some_scenes_have_a_character_and_some_a_word() -> None:
    planned = [scenes.plan(0, index) for index in range(100)]
    assert 30 < sum(scene.character is not None for scene in planned) < 60
    assert 20 < sum(scene.word is not None for scene in planned) < 50


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        scenes.draw(tmp_path / folder, count=8, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert not set(files(tmp_path / "a").values()) & set(files(tmp_path / "c").values())


def test_every_file_is_in_the_truth_and_has_a_sidecar(drawn: Path) -> None:
    names = {line["file"] for line in truth(drawn)}
    assert len(names) == EVERYTHING
    assert set(files(drawn)) == names | {f"{name}.json" for name in names} | {"truth.jsonl"}
    assert {Path(name).parts[0] for name in names} == {"board", "pixiv"}


def test_every_form_and_every_extra_is_there(drawn: Path) -> None:
    assert {line["form"] for line in truth(drawn)} == set(scenes.FORMS) | set(scenes.EXTRAS)


def test_files_have_the_modes_and_formats_that_their_form_names(drawn: Path) -> None:
    found = {}
    for line in truth(drawn):
        if line["form"] in scenes.FORMS:
            with Image.open(drawn / line["file"]) as image:
                found[line["form"]] = (image.format, image.mode)
    assert found == {
        "jpeg": ("JPEG", "RGB"),
        "png": ("PNG", "RGB"),
        "webp": ("WEBP", "RGB"),
        "lossless webp": ("WEBP", "RGB"),
        "cutout": ("PNG", "RGBA"),
        "palette": ("PNG", "P"),
        "rgb 16": ("PNG", "RGB"),
        "grey 16": ("PNG", "I;16"),
    }


def test_the_16_bit_colour_file_says_so_in_its_header(drawn: Path) -> None:
    name = next(line["file"] for line in truth(drawn) if line["form"] == "rgb 16")
    data = (drawn / name).read_bytes()
    assert data[24:26] == bytes([16, 2])  # PNG: bit depth, colour type


def test_board_files_are_named_by_their_bytes_and_described_as_danbooru_does(drawn: Path) -> None:
    for path in (drawn / "board").glob("*.json"):
        post = json.loads(path.read_text(encoding="utf-8"))
        picture = path.with_suffix("")
        assert picture.name == f"danbooru_{post['id']}_{post['md5']}.{post['extension']}"
        assert hashlib.md5(picture.read_bytes()).hexdigest() == post["md5"]
        assert post["tag_string_character"].split() == post["tags_character"]
        assert post["created_at"][:4] == post["date"][:4]


def test_pixiv_files_lie_in_their_artists_folder(drawn: Path) -> None:
    for path in (drawn / "pixiv").rglob("*.json"):
        work = json.loads(path.read_text(encoding="utf-8"))
        assert path.parent.name == f"{work['user']['id']} {work['user']['account']}"
        assert work["user"]["name"] in scenes.ARTISTS
        assert work["create_date"][:4] == work["date"][:4]


def test_a_grey_picture_is_not_tagged_with_colours(drawn: Path) -> None:
    tags = next(line["tags"] for line in truth(drawn) if line["form"] == "grey 16")
    assert "monochrome" in tags
    assert not [tag for tag in tags if tag.split("_")[0] in scenes.COLOURS]


def test_a_small_draw_has_few_extras(tmp_path: Path) -> None:
    scenes.draw(tmp_path, count=4)
    assert [line["form"] for line in truth(tmp_path)] == [*scenes.FORMS[:3], scenes.EXTRAS[0]]
