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
        ('host = "0.0.0.0"', "can be reached from other machines; set access.keys"),
        ('[safety]\nwithheld_tags = ["loli"]', "safety.withheld_tags needs safety.tagger"),
        ('[about]\nsource_url = "here"', "about.source_url"),
        ("[prior_replicas]\nslots = 0", "prior_replicas.slots"),
        ("[model]\ndecodr = 'x'", "did you mean decoder"),
    ],
)
def test_a_wrong_recipe_names_field_and_mend(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load(tmp_path, text)


def test_samplers_may_be_named_as_people_know_them(tmp_path: Path) -> None:
    recipe = load(tmp_path, '[defaults]\nprior_sampler = "DPM++ 2M"\nprior_scheduler = "SGM Uniform"')
    assert (recipe.defaults.prior_sampler, recipe.defaults.prior_scheduler) == ("dpmpp_2m", "sgm_uniform")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_loopback_is_not_public(tmp_path: Path, host: str) -> None:
    assert not load(tmp_path, f'host = "{host}"').is_public


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gpu.example"])
def test_another_address_is_public_and_needs_keys(tmp_path: Path, host: str) -> None:
    assert load(tmp_path, f'host = "{host}"\naccess.keys = "keys.toml"').is_public
