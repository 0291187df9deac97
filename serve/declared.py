"""The endpoint as Serve's own config declares it, without a `sote serve` beside it: what a RayService runs.

    applications:
    - name: sote
      route_prefix: /
      import_path: sote.serve.declared:build
      args: {recipe: /etc/sote/serve.toml}     # or the recipe's text, of several lines

Where it listens is Serve's to say (`http_options`); the recipe's `host` and `port` are for `sote serve`. A changed
config is taken over as a changed recipe is there: replicas whose weights and share of the machine are the same stay.

Kind: wiring.
"""

from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ray.serve import context

from sote.cluster import recipe as recipes
from sote.cluster import storage
from sote.cluster.errors import RunFailed, UserError
from sote.cluster.recipe import Part
from sote.serve import deployments, plan
from sote.serve.recipe import ServeRecipe


class Declared(Part):
    """`args` of the application. `recipe`: a path on the node that builds it, or the text itself (several lines)."""

    recipe: str


def build(declared: Declared) -> Any:
    """The Serve application of a recipe. Writes the resolved recipe into its run folder.

    Raises UserError as `sote serve` does before it starts, and for a server without keys that others can reach.
    """
    recipe = load(declared.recipe)
    client = context._get_global_client()
    if client is None:
        raise RunFailed("Serve has no controller on this cluster, so nothing says where it listens")
    check_door(recipe, client.http_config.host)
    plan.check(recipe, address="auto")
    folder = storage.run_folder(recipe.run)
    folder.root.mkdir(parents=True, exist_ok=True)
    storage.write_text(folder.recipe("serve"), recipes.dumps(recipe))
    return deployments.build(recipe)


def load(declared: str) -> ServeRecipe:
    """The recipe at a path, or that in a text of several lines. Raises RecipeError."""
    if "\n" in declared:
        return recipes.loads(declared, ServeRecipe, name="recipe")
    return recipes.load(Path(declared), ServeRecipe)


def check_door(recipe: ServeRecipe, host: str) -> None:
    """Raises UserError if anybody could ask a server that has no keys; `host` is where Serve listens."""
    if recipe.access.keys is None and not _is_loopback(host):
        raise UserError(
            f"http_options.host: {host} can be reached from other machines; set access.keys in the recipe (`sote key "
            "FILE NAME` makes one), or host: 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
