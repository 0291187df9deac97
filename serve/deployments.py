"""The deployments: prior and decoder in replicas that scale apart, behind one ingress; how Serve runs each.

torch and the models' modules are imported in the replicas of the models only: the ingress never loads them.

Kind: wiring.
"""

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from ray import serve

from sote.cluster import devices
from sote.cluster.capacity import Bundle
from sote.serve import plan
from sote.serve.ingress import Ingress
from sote.serve.recipe import BEGUN_PER_SLOT, LimitsPart, ModelPart, ReplicasPart, SafetyPart, ServeRecipe
from sote.serve.settings import Latents, Numbers, Progress, Settings

# Beyond the pictures that it can begin, a replica has some requests at hand, so that a free slot never waits for Serve
AT_HAND: Final = 2
# A request ahead of the ingress' own work only waits, and streams stay: it must not be what limits the line
INGRESS_REQUESTS: Final = 1024
INGRESS_RETRY_AFTER_SECONDS: Final = 5
UNLIMITED: Final = -1  # Serve's word
STARTS: Final = 2  # of a replica that fails to load, before the server gives up
HEALTH_SECONDS: Final = 2.0  # how often Serve looks; a dead replica is replaced that soon
DRAIN_LOOKS_SECONDS: Final = 0.2  # how often a replica that is to end looks whether its work is done
SCALE_LOOKS_SECONDS: Final = 15.0  # over how long Serve looks back at the load; it is told of it every 10 s
SURGE_PERCENT: Final = 100  # one new replica for each old one may stand beside it during an update


class Prior:
    """Replica of the prior."""

    def __init__(self, part: ModelPart, limits: LimitsPart, *, slots: int, on_gpu: bool) -> None:
        import torch

        from sote.serve.line import PriorLine
        from sote.serve.prior import PriorModel

        model = PriorModel(part, device=torch.device("cuda" if on_gpu else "cpu"), limits=limits)
        self.line = PriorLine(model, slots=slots)

    async def latents(self, settings: Settings) -> Latents:
        return await self.line.latents(settings)

    async def latents_watched(self, settings: Settings) -> AsyncIterator[Progress | Latents]:
        async with contextlib.aclosing(self.line.watched(settings)) as steps:
            async for each in steps:
                yield each

    async def pooled(self, settings: Settings) -> Numbers:
        return await self.line.pooled(settings)

    async def check_health(self) -> None:
        self.line.check()


class Decoder:
    """Replica of the decoder and vqgan."""

    def __init__(self, part: ModelPart, safety: SafetyPart, *, slots: int, on_gpu: bool) -> None:
        import torch

        from sote.serve.decoder import DecoderModel
        from sote.serve.line import DecoderLine

        model = DecoderModel(part, device=torch.device("cuda" if on_gpu else "cpu"), safety=safety)
        self.line = DecoderLine(model, slots=slots)

    async def paint(self, latents: Latents, settings: Settings) -> Any:
        return await self.line.paint(latents, settings)

    async def paint_watched(self, latents: Latents, settings: Settings) -> AsyncIterator[Any]:
        async with contextlib.aclosing(self.line.watched(latents, settings)) as steps:
            async for each in steps:
                yield each

    async def check_health(self) -> None:
        self.line.check()


def build(recipe: ServeRecipe, *, room: frozenset[str] = frozenset()) -> Any:
    """The Serve application of `recipe`. Serve's own config files can name it as `sote.serve.deployments:build`.

    `room` names the deployments of which one more replica has a place: an update starts its new ones before it ends the
    old. A deployment whose weights, code and share of the machine are the same as before is left as it is by an update.
    """
    prior, decoder, model = recipe.prior_replicas, recipe.decoder_replicas, recipe.model
    weights = {field: _stamp(path) for field, path in plan.weights(recipe).items()}
    ingress = serve.deployment(name="Ingress")(Ingress).options(
        version=_digest(recipe.model_dump(mode="json")),
        max_ongoing_requests=INGRESS_REQUESTS,
        max_queued_requests=INGRESS_REQUESTS,
        backpressure_config={"status_code": 429, "retry_after_s": INGRESS_RETRY_AFTER_SECONDS},
        ray_actor_options={"num_cpus": recipe.ingress_cpus},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=DRAIN_LOOKS_SECONDS,
        graceful_shutdown_timeout_s=recipe.drain_seconds,
        max_surge_percent=SURGE_PERCENT if "Ingress" in room else 0,
        _internal=True,
    )
    made_of = [model.model_dump(mode="json"), weights]
    limits, safety, bundles = recipe.limits, recipe.safety, plan.bundles(recipe)
    prior_on, decoder_on = (_selector(bundles[name]) for name in ("prior", "decoder"))
    priors = _model(Prior, recipe, prior, room=room, on=prior_on, made_of=[*made_of, limits.max_prompt_tokens])
    decoders = _model(
        Decoder, recipe, decoder, room=room, on=decoder_on, made_of=[*made_of, safety.model_dump(mode="json")]
    )
    return ingress.bind(
        recipe,
        priors.bind(model, limits, slots=prior.slots, on_gpu=prior.gpus > 0),
        decoders.bind(model, safety, slots=decoder.slots, on_gpu=decoder.gpus > 0),
    )


def _selector(bundle: Bundle) -> dict[str, str]:
    """The nodes of a mixed cluster that a model's replicas go to: those of CUDA and ROCm, and such that do not say what
    they are, with a device that is large enough."""
    return {devices.LABEL: "!in(xpu,cpu)"} | bundle.selector if bundle.gpus else {}


def _model(
    kind: type,
    recipe: ServeRecipe,
    part: ReplicasPart,
    *,
    room: frozenset[str],
    on: dict[str, str],
    made_of: list[Any],
) -> Any:
    """The deployment of a model on nodes with the labels `on`, scaled between the recipe's bounds. While `made_of` is
    the same, its replicas stay."""
    return serve.deployment(name=kind.__name__)(kind).options(
        version=_digest([*made_of, part.slots]),
        max_ongoing_requests=BEGUN_PER_SLOT * part.slots + AT_HAND,
        # The decoder's line is held at the ingress (replicas.py): here nobody is sent away after the prior's work
        max_queued_requests=part.max_queued_requests if kind is Prior else UNLIMITED,
        max_constructor_retry_count=STARTS,
        ray_actor_options={"num_cpus": part.cpus, "num_gpus": part.gpus} | ({"label_selector": on} if on else {}),
        autoscaling_config={
            "min_replicas": part.min_replicas,
            "initial_replicas": part.min_replicas,
            "max_replicas": part.max_replicas,
            "target_ongoing_requests": part.slots,
            "upscale_delay_s": part.upscale_delay_seconds,
            "downscale_delay_s": part.downscale_delay_seconds,
            "look_back_period_s": SCALE_LOOKS_SECONDS,
        },
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=DRAIN_LOOKS_SECONDS,
        graceful_shutdown_timeout_s=recipe.drain_seconds,
        max_surge_percent=SURGE_PERCENT if kind.__name__ in room else 0,
        # Serve's own word for "the replicas must be made anew": without it, every update would load every model again
        _internal=True,
    )


def _stamp(path: Path) -> list[Any]:
    """What changes when the weights at `path` are written anew."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return [(str(each), each.stat().st_size, each.stat().st_mtime_ns) for each in files]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
