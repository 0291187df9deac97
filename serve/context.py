"""What the routes share: built once for an ingress, handed to each group of routes.

Kind: wiring.
"""

from dataclasses import dataclass

from sote.serve.about import About
from sote.serve.access import Gate
from sote.serve.desk import Desk
from sote.serve.figures import Figures
from sote.serve.jobs import Jobs
from sote.serve.recipe import ServeRecipe
from sote.serve.results import Results
from sote.serve.service import Service


@dataclass(frozen=True)
class Context:
    """`service` paints; `desk` is the way to it for every route: limits, block list, figures."""

    recipe: ServeRecipe
    service: Service
    gate: Gate
    desk: Desk
    jobs: Jobs
    results: Results
    figures: Figures
    about: About
