"""What a server will take, before it starts: every user error found, memory and work estimated.

Kind: pure, but for looking at files and at this machine.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table

from sote.cluster import devices
from sote.cluster.capacity import Bundle
from sote.cluster.devices import Device
from sote.cluster.errors import CheckpointError, UserError
from sote.serve import about, keys, memory, safety
from sote.serve.memory import Need
from sote.serve.recipe import ReplicasPart, ServeRecipe, Side
from sote.train import modelfile
from sote.train.source import Source

# TFLOP at 1024x1024 of the full-size models (torch's FlopCounter, 2 per multiply-add): one row of Stage C at 24x24
# latent cells, one row of Stage B, the decoding of Stage A. Other sizes: in proportion to the pixels.
PRIOR_TFLOP, DECODER_TFLOP, VQGAN_TFLOP = 4.078, 6.174, 2.172
PRIOR_VALUES, DECODER_VALUES = 3_589_103_632, 1_562_941_136  # of the full-size UNets; work goes with their number
FULL_PIXELS = 1024 * 1024
SUSTAINED_TFLOPS = 100.0  # what seconds are stated for: about a third of an A100's bf16 peak of 312
# float32 on a core of 2.5 GHz with AVX2: two multiply-adds of 8 numbers a cycle are 80 GFLOP/s; half of that
CORE_TFLOPS: Final = 0.04
PATIENCE_SECONDS: Final = 600.0  # for a picture on a CPU, beyond which the recipe must say that it is wanted


@dataclass(frozen=True)
class Plan:
    """Where the weights lie, the memory they take, the work of one picture as a request without wishes gets it.

    `tflop` is that of the models there are, `memory` that of one replica of each. `where` says what it was held
    against: this machine, or a cluster that cannot be seen.
    """

    url: str
    weights: dict[str, Path]
    parameters: dict[str, int]
    replicas: dict[str, str]
    memory: dict[str, Need]
    bytes_cpu: float
    bytes_gpu: float
    where: str
    size: tuple[Side, Side]
    tflop: float


@dataclass(frozen=True)
class Machine:
    """What this machine has."""

    cores: int
    memory_bytes: int
    gpus: tuple[Device, ...]

    @staticmethod
    def here() -> "Machine":
        return Machine(len(os.sched_getaffinity(0)), _memory_bytes(), devices.found())


def check(recipe: ServeRecipe, *, address: str | None = None) -> dict[str, Path]:
    """Find every wrong input before anything starts; returns where the weights of each field lie.

    Raises WeightsError or CheckpointError in one line: missing, the other stage, a config or tensors of another model,
    cut short, or two that do not fit. Raises UserError for keys that cannot be read, a licence that asks for more, a
    tagger that is not one, and for what this machine cannot hold; a cluster at `address` cannot be seen from here.
    """
    models = _models(recipe)
    about.check(recipe)
    if recipe.access.keys is not None:
        keys.load(Path(recipe.access.keys).expanduser())
    safety.check(recipe.safety)
    if address is None:
        check_machine(recipe, _needs(recipe, models), tflop=_tflop(recipe, models), machine=Machine.here())
    return _paths(models)


def weights(recipe: ServeRecipe) -> dict[str, Path]:
    """Where the weights of each field lie. Raises WeightsError or CheckpointError as `check` does."""
    return _paths(_models(recipe))


def bundles(recipe: ServeRecipe) -> dict[str, Bundle]:
    """What the replicas that start ask of a cluster, by deployment. Raises what `weights` raises."""
    needs = _needs(recipe, _models(recipe))
    found = {
        name: Bundle(
            cpus=part.cpus,
            gpus=part.gpus,
            device_bytes=int(needs[name].total) if part.gpus else 0,
            count=part.min_replicas,
        )
        for name, part in _parts(recipe).items()
    }
    return found | {"ingress": Bundle(cpus=recipe.ingress_cpus)}


def plan(recipe: ServeRecipe, *, address: str | None = None) -> Plan:
    """Estimate memory and work. Raises what `check` raises."""
    check(recipe, address=address)
    models = _models(recipe)
    needs, parts = _needs(recipe, models), _parts(recipe)
    on_gpu = {name: part.max_replicas * needs[name].total if part.gpus else 0.0 for name, part in parts.items()}
    on_host = {name: part.max_replicas * needs[name].total if not part.gpus else 0.0 for name, part in parts.items()}
    return Plan(
        url=f"http://{recipe.host}:{recipe.port}",
        weights=_paths(models),
        parameters={f"{field}: {each.what}": memory.values(each) for field, some in models.items() for each in some},
        replicas={
            name: f"{part.min_replicas} to {part.max_replicas}, each {part.cpus:g} cores and {part.gpus:g} GPUs"
            for name, part in parts.items()
        },
        memory=needs,
        bytes_cpu=sum(on_host.values()),
        bytes_gpu=sum(on_gpu.values()),
        where="this machine" if address is None else f"the cluster at {address}, which cannot be seen from here",
        size=(recipe.defaults.width, recipe.defaults.height),
        tflop=_tflop(recipe, models),
    )


def check_machine(recipe: ServeRecipe, needs: dict[str, Need], *, tflop: float, machine: Machine) -> None:
    """Raises UserError where `machine` has no GPU that the recipe wants, too little memory, or would take hours."""
    parts = _parts(recipe)
    for name, part in parts.items():
        if part.gpus and not machine.gpus:
            raise UserError(
                f"{name}_replicas.gpus: {part.gpus:g}, and this machine shows no GPU (`sote doctor` says what it "
                "sees); set gpus = 0 in both, or name a cluster with --address"
            )
    if any(part.gpus for part in parts.values()):
        _check_gpus(recipe, needs, machine.gpus)
    host = sum(part.min_replicas * needs[name].total for name, part in parts.items() if not part.gpus)
    if host > machine.memory_bytes:
        raise UserError(
            f"prior_replicas, decoder_replicas: need about {host / 1e9:.1f} GB of memory, this machine has "
            f"{machine.memory_bytes / 1e9:.1f}; set fewer slots or replicas, or a smaller limits.max_pixels"
        )
    seconds = tflop / (CORE_TFLOPS * machine.cores)
    if not parts["prior"].gpus and seconds > PATIENCE_SECONDS and not recipe.model.allow_cpu:
        raise UserError(
            f"prior_replicas.gpus: 0, and without a GPU one picture of {recipe.defaults.width}x{recipe.defaults.height}"
            f" takes about {seconds / 3600:.1f} hours on {machine.cores} cores; set gpus, or model.allow_cpu = true if "
            "that is wanted"
        )


def _check_gpus(recipe: ServeRecipe, needs: dict[str, Need], gpus: Sequence[Device]) -> None:
    """Puts the replicas that start on the GPUs as Ray does, the first that has the share left; raises UserError."""
    shares, bytes_held = [1.0] * len(gpus), [0.0] * len(gpus)
    for name, part in _parts(recipe).items():
        for _ in range(part.min_replicas if part.gpus else 0):
            taken = math.ceil(part.gpus)
            fitting = [place for place, share in enumerate(shares) if share >= min(part.gpus, 1.0) - 1e-6][:taken]
            if len(fitting) < taken:
                raise UserError(
                    f"{name}_replicas.gpus: {part.min_replicas} replicas of {part.gpus:g} GPUs do not fit beside the "
                    f"others on the {len(gpus)} GPUs of this machine; 0.5 for each lets two share one"
                )
            for place in fitting:
                shares[place] -= min(part.gpus, 1.0)
            bytes_held[fitting[0]] += needs[name].total
    for device, held in zip(gpus, bytes_held, strict=True):
        if device.memory_bytes is not None and held > device.memory_bytes:
            raise UserError(
                f"prior_replicas, decoder_replicas: need about {held / 1e9:.1f} GB on {device.name} (GPU "
                f"{device.index}), which has {device.memory_bytes / 1e9:.1f}; set fewer slots, a smaller "
                "limits.max_pixels, or a whole GPU for each"
            )


def summary(plan: Plan) -> str:
    """The memory in one line."""
    parts = [
        f"{name} {need.total / 1e9:.1f} GB a replica (weights {need.weights / 1e9:.1f}, steps "
        f"{need.activations / 1e9:.1f})"
        for name, need in plan.memory.items()
    ]
    places = [f"{plan.bytes_cpu / 1e9:.1f} GB of hosts" if plan.bytes_cpu else ""]
    places.append(f"{plan.bytes_gpu / 1e9:.1f} GB of GPUs" if plan.bytes_gpu else "")
    return f"memory, about: {', '.join(parts)}; at most {' and '.join(filter(None, places))} on {plan.where}"


def render(plan: Plan) -> RenderableType:
    """The plan as tables for people."""
    found = Table("field", "weights", title="weights")
    for field, path in plan.weights.items():
        found.add_row(field, str(path))
    for name, count in plan.parameters.items():
        found.add_row(name, f"{count:,} values")
    work = Table("what", "how much", title=plan.url)
    for name, text in plan.replicas.items():
        work.add_row(f"{name} replicas", text)
    for name, need in plan.memory.items():
        work.add_row(
            f"memory of a {name} replica",
            f"about {need.total / 1e9:.2f} GB: weights {need.weights / 1e9:.2f}, steps {need.activations / 1e9:.2f}, "
            f"what every process takes {need.reserve / 1e9:.2f}",
        )
    work.add_row(
        "memory at most",
        f"about {plan.bytes_cpu / 1e9:.2f} GB of hosts, {plan.bytes_gpu / 1e9:.2f} GB of GPUs, on {plan.where}",
    )
    seconds = plan.tflop / SUSTAINED_TFLOPS
    work.add_row(
        f"a picture of {plan.size[0]}x{plan.size[1]}",
        f"{plan.tflop:.3g} TFLOP, {seconds:.1f} s at {SUSTAINED_TFLOPS:.0f} TFLOP/s",
    )
    return Group(found, work)


def _models(recipe: ServeRecipe) -> dict[str, list[Source]]:
    """The models that each field names, the UNet first. Raises WeightsError or CheckpointError."""
    part = recipe.model
    prior = modelfile.prior(part.prior, field="model.prior", text_encoder=part.text_encoder)
    decoder = modelfile.decoder(part.decoder, field="model.decoder")
    vqgan = modelfile.needed_vqgan(decoder, field="model.decoder")
    # The pooled text of the prior's text encoder goes into both UNets
    wanted, given = decoder.unet.config["clip_text_pooled_in_channels"], prior.text_encoder.config["projection_dim"]
    if wanted != given:
        raise CheckpointError(
            f"model.decoder: takes pooled text of width {wanted}, the text encoder of model.prior gives {given}; "
            "name a prior and a decoder of one family"
        )
    modelfile.encoder_of(part.encoder, prior=part.prior)  # raises where it is named and missing; below 0.1 GB
    image = modelfile.image_encoder_of(part.image_encoder, prior=part.prior)
    others = [] if image is None else [image]
    return {"model.prior": [prior.unet, prior.text_encoder, *others], "model.decoder": [decoder.unet, vqgan]}


def _paths(models: dict[str, list[Source]]) -> dict[str, Path]:
    return {field: some[0].path for field, some in models.items()}


def _parts(recipe: ServeRecipe) -> dict[str, ReplicasPart]:
    return {"prior": recipe.prior_replicas, "decoder": recipe.decoder_replicas}


def _needs(recipe: ServeRecipe, models: dict[str, list[Source]]) -> dict[str, Need]:
    """The memory of a replica of each."""
    unet, vqgan = models["model.decoder"]
    return {"prior": memory.prior(recipe, models["model.prior"]), "decoder": memory.decoder(recipe, unet, vqgan)}


def _memory_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _tflop(recipe: ServeRecipe, models: dict[str, list[Source]]) -> float:
    """Work of one picture with the recipe's defaults."""
    defaults = recipe.defaults
    share = defaults.width * defaults.height / FULL_PIXELS
    prior_share = memory.values(models["model.prior"][0]) / PRIOR_VALUES
    decoder_share = memory.values(models["model.decoder"][0]) / DECODER_VALUES
    prior = defaults.prior_steps * PRIOR_TFLOP * (2 if defaults.prior_guidance > 1 else 1) * prior_share
    decoder = defaults.decoder_steps * DECODER_TFLOP * (2 if defaults.decoder_guidance > 1 else 1) * decoder_share
    return share * (prior * (42.67 / defaults.compression) ** 2 + decoder + VQGAN_TFLOP * decoder_share)
