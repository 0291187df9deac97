from pathlib import Path

import pytest
from pydantic import Field

from sote.cluster import recipe as recipes
from sote.cluster.errors import RecipeError
from sote.cluster.recipe import Part, Recipe


class Colour(Part):
    name: str = "red"
    share: float = Field(default=0.5, le=1)


class Painting(Recipe):
    width: int
    colour: Colour = Colour()
    more: tuple[Colour, ...] = ()
    limit: int | None = None


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "painting.toml"
    path.write_text(text)
    return path


def test_a_recipe_round_trips_through_toml(tmp_path: Path) -> None:
    loaded = recipes.load(written(tmp_path, 'run = "r"\nwidth = 3\n[colour]\nshare = 0.25\n[[more]]\n'), Painting)
    again = recipes.load(written(tmp_path, recipes.dumps(loaded)), Painting)
    assert again == loaded
    assert recipes.digest(again) == recipes.digest(loaded)


def test_all_errors_of_a_file_are_reported_at_once_with_file_and_field(tmp_path: Path) -> None:
    path = written(tmp_path, 'width = "wide"\n[colour]\nshare = 3\n[[more]]\nname = 3\n')
    with pytest.raises(RecipeError) as raised:
        recipes.load(path, Painting)
    lines = str(raised.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    fields = [line.removeprefix(f"{path}: ").split(":")[0] for line in lines]
    assert fields == ["run", "width", "colour.share", "more.0.name"]


def test_an_unknown_key_names_the_key_it_may_have_meant(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"colour\.shar: unknown key, did you mean share"):
        recipes.load(written(tmp_path, 'run = "r"\nwidth = 1\n[colour]\nshar = 0.1\n'), Painting)
    with pytest.raises(RecipeError, match=r"more\.0\.xyz: unknown key, known here: name, share"):
        recipes.load(written(tmp_path, 'run = "r"\nwidth = 1\n[[more]]\nxyz = 0.1\n'), Painting)


def test_what_is_no_recipe_file_is_said_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path, written(tmp_path, "= 3")):
        with pytest.raises(RecipeError) as raised:
            recipes.load(path, Painting)
        assert "\n" not in str(raised.value)


def test_a_difference_names_the_field_and_both_values() -> None:
    found = recipes.difference({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    assert found == ["b.c: 2 there, 3 here"]


def test_the_digest_depends_on_values_not_on_order() -> None:
    assert recipes.digest_of({"a": 1, "b": [2]}) == recipes.digest_of({"b": [2], "a": 1})
    assert recipes.digest_of({"a": 1}) != recipes.digest_of({"a": 2})
