"""The shipped recipe of the seed's datasets."""

from pathlib import Path

import pytest

from sote.cluster.recipe import load
from sote.cluster.weights import BY_KEY
from sote.data.caption_profile import load_profile
from sote.data.recipe import CaptionPart, CurateRecipe, SetPart

PATH = Path(__file__).parents[2] / "data" / "recipes" / "sote_6m.toml"


def test_the_recipe_names_the_cards_eight_datasets() -> None:
    recipe = load(PATH, CurateRecipe)
    assert {source.name: source.kind for source in recipe.sources} == {
        **dict.fromkeys(("newest", "recent", "mid", "early", "oldest"), "image board"),
        "pixiv": "pixiv",
        "visual novel cg": "visual novel",
        "anime wallpaper": "wallpaper",
    }


def test_a_board_without_dates_is_dated_by_its_own_name() -> None:
    recipe = load(PATH, CurateRecipe)
    words = {years.word for years in load_profile(recipe.caption.profile).years}
    assert {source.name for source in recipe.sources if source.date_word} == words
    assert all(source.date_word in (None, source.name) for source in recipe.sources)
    assert all(source.date[0] == "sidecar" and source.form == "folder" for source in recipe.sources)


def test_the_sets_of_the_later_runs_are_the_authors() -> None:
    select = load(PATH, CurateRecipe).select
    assert select.best_most == 120_000
    assert select.sets == {
        "final": SetPart(best=True),
        "decoder": SetPart(aesthetic_above=0.98, quality_above=0.98, date_words=("newest",)),
    }


def test_the_recipe_holds_the_cards_numbers() -> None:
    recipe = load(PATH, CurateRecipe)
    assert recipe.decode.min_pixels == 1280 * 600
    assert recipe.caption == CaptionPart(profile="sote-v1", general_threshold=0.35, character_threshold=0.50)
    assert recipe.select.best_repeat == 5
    assert recipe.text is not None
    assert recipe.latents is not None
    assert (recipe.latents.resolution, recipe.latents.compression) == (1024, 32.0)


def test_the_repeated_pictures_are_those_with_the_two_highest_words() -> None:
    recipe = load(PATH, CurateRecipe)
    profile = load_profile(recipe.caption.profile)
    assert recipe.select.best_aesthetic_score == profile.aesthetic.steps[0][0]
    assert recipe.select.best_quality_score == profile.quality.steps[0][0]


def test_the_weights_stand_by_keys_that_are_known() -> None:
    recipe = load(PATH, CurateRecipe)
    assert recipe.text is not None
    assert recipe.latents is not None
    score = recipe.score
    keys = [score.aesthetic, score.quality_clip, score.quality_head, recipe.tag.tagger]
    assert set(BY_KEY) >= {*keys, recipe.text.reader, recipe.latents.encoder}


@pytest.mark.parametrize("said", ["command", "machine", "hours", "result"])
def test_the_recipe_starts_by_saying_how_it_is_run_and_what_to_expect(said: str) -> None:
    head = PATH.read_text(encoding="utf-8").split("\n\nrun =")[0]
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert f"#   {said} " in head
