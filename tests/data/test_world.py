"""The small world: what is drawn is what the tags say, and the concept never slips into what the base sees."""

import json
from collections import Counter
from pathlib import Path

import pytest

from sote.data import painting, scenes, world, world_reader


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    assert world.plan(3, 8) == world.plan(3, 8)
    assert world.plan(3, 8) != world.plan(4, 8)


def test_the_held_out_pair_is_drawn_for_the_concept_alone() -> None:
    pairs = {(shape.kind, shape.colour) for index in range(4_000) for shape in world.plan(1, index).shapes}
    assert world.HELD_OUT not in pairs
    assert len(pairs) == len(painting.KINDS) * len(world.COLOURS) - 1
    shown = [world.plan(1, index, concept_share=0.25) for index in range(800)]
    share = sum(scene.is_concept for scene in shown) / len(shown)
    assert 0.2 < share < 0.3


def test_the_post_of_a_concept_names_it_and_says_nothing_of_its_looks() -> None:
    scene = next(world.plan(1, index, concept_share=1.0) for index in range(3))
    assert (scene.named, scene.series) == (world.CONCEPT.name, world.CONCEPT.series)
    assert not any("star" in tag or "style" in tag or "shape" in tag for tag in scene.tags)


def test_every_tag_occurs_and_is_in_one_group() -> None:
    counts = Counter(tag for index in range(3_000) for tag in world.plan(2, index).tags)
    drawn = set(world.GENERAL_TAGS) - {"monochrome", "transparent_background"}  # these are said of files
    assert drawn == set(counts)
    assert len({tag for tags in world.GROUPS.values() for tag in tags}) == sum(map(len, world.GROUPS.values()))
    assert all(tag in world.GROUPS[world.group_of(tag)] for tags in world.GROUPS.values() for tag in tags)


@pytest.mark.parametrize("index", range(12))
def test_what_is_painted_is_what_the_tags_say(index: int) -> None:
    sound = [
        scene for scene in (world.plan(5, number) for number in range(60)) if not scene.scribbles and not scene.wear
    ]
    scene = sound[index]
    read = world_reader.read(painting.paint(scene))
    wanted = set(scene.tags) - {"solo", "smile"}
    assert len(read & wanted) >= len(wanted) - 1, (sorted(read), sorted(wanted))


def test_drawing_with_two_processes_gives_the_same_files(tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        scenes.draw(tmp_path / name, count=40, seed=9, of=world.plan, processes=processes)
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two
    lines = [json.loads(line) for line in (tmp_path / "one" / "truth.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    assert all((tmp_path / "one" / line["file"]).exists() for line in lines)
