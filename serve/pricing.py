"""What a recipe costs on a cluster's profile: the hours of its plan, reckoned anew for the profile's nodes, and priced.

Each work goes to the groups of its use: curation decodes on `decode` (without one, on `caption`) and runs its models on
`caption`, with all their nodes; training takes as few nodes of one group as hold its workers; serving likewise holds
its replicas. Where several groups could, each is priced.

Kind: pure.
"""

import math
from collections.abc import Iterator
from typing import Final

from sote.cluster import prices
from sote.cluster.cluster_profile import ClusterProfile, Group
from sote.cluster.errors import UserError
from sote.cluster.prices import Estimate, Pass
from sote.data import costs
from sote.data import plan as data_plan
from sote.data.costs import Machine
from sote.data.recipe import CurateRecipe
from sote.serve.plan import CORE_TFLOPS, SUSTAINED_TFLOPS
from sote.serve.recipe import ServeRecipe
from sote.train import gpus
from sote.train import plan as train_plan
from sote.train.gpus import GB

PICTURES: Final = 1000
SERVED_SHARE: Final = SUSTAINED_TFLOPS / costs.DEVICES["A100"].bfloat16
ON_CORES_ALONE: Final = ("duplicates", "caption, select")  # passes of curation that run no model


def curating(recipe: CurateRecipe, profile: ClusterProfile, *, rows: int) -> Estimate:
    """Price the curation of so many rows. Raises UserError if no group captions, or of an unknown device."""
    models = prices.fleet(profile, "caption")
    decoding = prices.fleet(profile, "decode") if profile.of_use("decode") else models
    for group in profile.of_use("caption"):
        _tflops(profile, group)
    nodes = models.nodes | decoding.nodes
    cores = decoding.cores
    if not models.devices:  # the cores run the models, too
        cores = sum(group.cpus * group.max_nodes for group in profile.groups if group.name in nodes)
    hours = data_plan.hours_of(recipe, Machine(cores, models.devices), rows=rows)
    passes = [Pass(it.what, it.hours, decoding.nodes if it.what in ON_CORES_ALONE else nodes) for it in hours]
    note = f"{rows:,} files. Hours are arithmetic for the full-size models (sote/data/costs.py), not a measurement."
    return prices.estimate(profile, passes, notes=[note])


def training(plan: train_plan.Plan, profile: ClusterProfile) -> Estimate:
    """Price a training. Raises UserError if no group holds all its workers (or the fewest it goes on with)."""
    work = plan.recipe.workers
    if not work.use_gpu:
        cores = work.count * work.cpus_per_worker
        prices.fleet(profile, "train")
        group = max(profile.of_use("train"), key=lambda it: it.cpus * it.max_nodes)
        nodes = min(math.ceil(cores / group.cpus), group.max_nodes)
        missing = "workers without GPU: nothing is known of how long they take"
        return prices.estimate(profile, [Pass("training", None, {group.name: nodes}, note=missing)])
    fewest = work.min_count or work.count
    found = prices.fitting(profile, "train", slots=fewest, gigabytes=plan.memory.total / GB)
    passes = []
    for number, group in enumerate(found):
        count = min(work.count, group.slots * group.max_nodes)
        held = {group.name: prices.nodes_for(group, count)}
        passes.append(Pass("training", _hours(plan, profile, group, count), held, instead=bool(number)))
    steps = "steps are not known before the curate run is there" if plan.images_seen is None else _steps(plan)
    note = (
        f"{steps}. Hours are arithmetic: {gpus.AUTHORS_SHARE:.0%} of the device's bfloat16 peak, what the seed's "
        "author reached on A100s."
    )
    return prices.estimate(profile, passes, notes=[note])


def serving(recipe: ServeRecipe, profile: ClusterProfile, *, tflop: float) -> Estimate:
    """Price an hour of serving, and a thousand pictures of `tflop` each. Raises UserError if no group holds the
    replicas that start."""
    parts = (recipe.prior_replicas, recipe.decoder_replicas)
    fewest, most = (sum(getattr(part, name) * part.gpus for part in parts) for name in ("min_replicas", "max_replicas"))
    cores = sum(part.max_replicas * part.cpus for part in parts)
    passes: list[Pass] = []
    for group in prices.fitting(profile, "serve", slots=fewest):
        passes += _served(profile, group, slots=(fewest, most), cores=cores, tflop=tflop, first=not passes)
    size = f"{recipe.defaults.width}x{recipe.defaults.height}"
    rate = f"{SERVED_SHARE:.0%} of a device's bfloat16 peak" if most else f"{CORE_TFLOPS * 1000:.0f} GFLOP/s of a core"
    note = f"A picture of {size} is {tflop:.3g} TFLOP, reckoned at {rate}: arithmetic."
    return prices.estimate(profile, passes, notes=[note])


def _served(
    profile: ClusterProfile, group: Group, *, slots: tuple[float, float], cores: float, tflop: float, first: bool
) -> Iterator[Pass]:
    fewest, most = slots
    most = min(most, group.slots * group.max_nodes)
    rate = _tflops(profile, group) * SERVED_SHARE * most if most else CORE_TFLOPS * max(cores, 1)
    full = {group.name: prices.nodes_for(group, most) if most else min(math.ceil(cores / group.cpus), group.max_nodes)}
    yield Pass("an hour, at most", 1.0, full, instead=not first)
    if fewest != most:
        yield Pass("an hour, at least", 1.0, {group.name: prices.nodes_for(group, fewest)}, instead=True)
    seconds = PICTURES * tflop / rate
    yield Pass(f"{PICTURES:,} pictures", seconds / costs.SECONDS_AN_HOUR, full, instead=True)


def _hours(plan: train_plan.Plan, profile: ClusterProfile, group: Group, count: int) -> float | None:
    if plan.images_seen is None:
        return None
    rate = _tflops(profile, group) * costs.TERA * gpus.AUTHORS_SHARE * count
    return plan.flop * plan.images_seen / rate / costs.SECONDS_AN_HOUR


def _steps(plan: train_plan.Plan) -> str:
    return f"{plan.data.steps:,} steps of {plan.recipe.batch.effective_batch} images"


def _tflops(profile: ClusterProfile, group: Group) -> float:
    """The bfloat16 peak of one accelerator of the group. Raises UserError for a device that is not known."""
    if group.device is None:
        return group.cpus / max(group.slots, 1) * costs.CORE_GFLOPS * costs.GIGA / costs.TERA
    try:
        return costs.peak_of(group.device).bfloat16
    except KeyError:
        raise UserError(
            f"cluster {profile.name!r}: groups.{group.name}.device: {group.device!r} is no device with a known peak; "
            f"known: {', '.join(costs.DEVICES)}"
        ) from None
