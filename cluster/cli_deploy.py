"""`sote cluster`: a cluster's files from its profile.

Kind: wiring.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sote.cluster.cluster_profile import ClusterProfile
    from sote.cluster.recipe import Recipe
    from sote.cluster.render import Verb

EXAMPLE = "Example: sote cluster render --profile cluster/deploy/profiles/kubernetes.toml --out deploy"

cluster = typer.Typer(
    name="cluster", help="Files to start a cluster from.", epilog=EXAMPLE, no_args_is_help=True, rich_markup_mode=None
)


@cluster.callback()
def options() -> None:
    """Files to start a cluster from."""


@cluster.command(epilog=EXAMPLE)
def render(
    profile: Annotated[Path, typer.Option(metavar="FILE", help="the TOML profile of the cluster")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="the folder to write to: a new one, or one of before")],
) -> None:
    """Write Kubernetes' manifests and Ray's launcher files for a profile, and say what to do with them."""
    from sote.cluster import recipe as recipes
    from sote.cluster import render as renders
    from sote.cluster.cluster_profile import ClusterProfile

    loaded = recipes.load(profile, ClusterProfile)
    texts = renders.files(loaded, _given(loaded, profile), name=profile.name)
    written = renders.write(out, texts)
    print("\n".join(str(path) for path in written))
    print("\nnext:\n" + "\n".join(f"  {line}" for line in renders.steps(loaded, out, written)))


def _given(loaded: "ClusterProfile", profile: Path) -> "dict[Verb, Recipe]":
    """The recipes that the profile names, read as their verbs would. Raises RecipeError."""
    from sote.cluster import cli, render

    named = {verb: getattr(loaded.recipes, verb) for verb in render.VERBS}
    return {verb: cli.load_for(verb, profile.parent / path) for verb, path in named.items() if path is not None}
