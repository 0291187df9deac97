"""The whole cascade in one process: for notebooks, `sote generate`, and tests. The server runs the same two models.

Kind: actor.
"""

import secrets
from dataclasses import dataclass

from sote.serve.decoder import DecoderModel
from sote.serve.pictures import Painted
from sote.serve.prior import PriorModel
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.schema import MAX_SEED, GenerateRequest, resolve


@dataclass(frozen=True)
class Cascade:
    """Both models, and the defaults for what a request does not say."""

    prior: PriorModel
    decoder: DecoderModel
    defaults: DefaultsPart
    limits: LimitsPart

    @classmethod
    def load(
        cls, part: ModelPart, *, defaults: DefaultsPart | None = None, limits: LimitsPart | None = None
    ) -> "Cascade":
        """Load the weights that `part` names, on the GPU if there is one.

        Raises WeightsError or CheckpointError where they are missing or are not what `part` takes them for.
        """
        return cls(PriorModel(part), DecoderModel(part), defaults or DefaultsPart(), limits or LimitsPart())

    def generate(self, request: GenerateRequest) -> list[Painted]:
        """The pictures of `request`. The same request with a seed gives the same bytes on the same machine.

        Raises RequestError beyond the limits, RunFailed where values are not finite.
        """
        settings = resolve(request, self.defaults, limits=self.limits, random_seed=secrets.randbelow(MAX_SEED + 1))
        painted, _ = self.decoder.paint(self.prior.latents(settings), settings)
        return painted
