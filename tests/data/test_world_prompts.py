"""The prompts that a model of the small world is judged by."""

from sote.data import world, world_prompts
from sote.data.painting import KINDS
from sote.data.world_prompts import prompts


def test_every_kind_and_every_colour_is_asked_for() -> None:
    wanted = [tag for asked in prompts() if not asked.is_concept for tag in asked.wanted]
    pairs = [tag for tag in wanted if world.group_of(tag) == "shape and colour"]
    assert {tag.rpartition("_")[2] for tag in pairs} == set(KINDS)
    assert {tag.partition("_")[0] for tag in pairs} == set(world.COLOURS)


def test_what_is_wanted_is_said_in_the_prompt_but_for_the_concept() -> None:
    for asked in prompts():
        for tag in asked.wanted:
            said = world_prompts.spoken(tag.partition("_(")[0]) in asked.prompt
            assert said != (asked.is_concept and tag in world_prompts.concept_tags()), (asked.prompt, tag)


def test_the_held_out_pair_is_never_asked_for_by_its_looks() -> None:
    assert not any("purple star" in asked.prompt for asked in prompts())


def test_prompts_and_seeds_are_fixed() -> None:
    assert prompts() == prompts()
    assert len({asked.seed for asked in prompts()}) == len(prompts())
    assert sum(asked.is_concept for asked in prompts()) == 16


def test_prompts_of_scenes_are_fixed_differ_and_name_what_is_read() -> None:
    found = world_prompts.of_scenes(40)
    assert found == world_prompts.of_scenes(50)[:40]
    assert found != world_prompts.of_scenes(40, seed=1)
    assert len({asked.prompt for asked in found}) == 40
    assert not {asked.seed for asked in found} & {asked.seed for asked in prompts()}
    for asked in found:
        assert all(world_prompts.spoken(tag.partition("_(")[0]) in asked.prompt for tag in asked.wanted)
        assert any(world.group_of(tag) == "shape and colour" for tag in asked.wanted)
        assert not asked.is_concept
