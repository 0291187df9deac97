from pathlib import Path

import pytest

from sote.cluster import recipe as recipes
from sote.cluster.errors import RecipeError
from sote.serve import recipe as serving
from sote.serve.recipe import ServeRecipe

SHIPPED = Path(serving.__file__).parent / "recipes" / "local.toml"


def load(tmp_path: Path, text: str) -> ServeRecipe:
    path = tmp_path / "serve.toml"
    path.write_text('run = "r"\n' + text)
    return recipes.load(path, ServeRecipe)


def test_the_shipped_recipe_loads_and_says_its_command_first() -> None:
    recipe = recipes.load(SHIPPED, ServeRecipe)
    assert recipe.host == "127.0.0.1"
    assert recipe.prior_replicas.gpus + recipe.decoder_replicas.gpus == 1
    assert SHIPPED.read_text().startswith("# sote serve ")


def test_a_recipe_survives_its_own_writing(tmp_path: Path) -> None:
    recipe = recipes.load(SHIPPED, ServeRecipe)
    path = tmp_path / "again.toml"
    path.write_text(recipes.dumps(recipe))
    assert recipes.load(path, ServeRecipe) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[model]\nprior_dtype = "float16"', "model.prior_dtype: stage C overflows in float16"),
        ("[defaults]\nwidth = 1000", "defaults.width: 1000 is not a multiple of 128"),
        ("[defaults]\nwidth = 2560\nheight = 2560", "above limits.max_pixels"),
        ("[prior_replicas]\nmin_replicas = 3", "max_replicas must be at least min_replicas"),
        ("port = 70000", "port: "),
        ("[defaults]\nprior_sampler = 'heun'", "defaults.prior_sampler"),
        ("[model]\ndecodr = 'x'", "did you mean decoder"),
    ],
)
def test_a_wrong_recipe_names_field_and_mend(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load(tmp_path, text)
