"""What a server will take, before it starts: every user error found, memory and work estimated.

Kind: pure, but for looking at files.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from sote.cluster.errors import CheckpointError
from sote.serve.recipe import DType, ServeRecipe, Side
from sote.train import modelfile
from sote.train.source import Source

# TFLOP at 1024x1024 of the full-size models (torch's FlopCounter, 2 per multiply-add): one row of Stage C at 24x24
# latent cells, one row of Stage B, the decoding of Stage A. Other sizes: in proportion to the pixels.
PRIOR_TFLOP, DECODER_TFLOP, VQGAN_TFLOP = 4.078, 6.174, 2.172
FULL_PIXELS = 1024 * 1024
SUSTAINED_TFLOPS = 100.0  # what seconds are stated for: about a third of an A100's bf16 peak of 312
DTYPE_BYTES: dict[DType, int] = {"auto": 4, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Plan:
    """Where the weights lie, the memory they take, the work of one picture as a request without wishes gets it.

    `tflop` holds for the full-size models; `bytes_cpu` and `bytes_gpu` are weights alone, in all replicas at most.
    """

    url: str
    weights: dict[str, Path]
    parameters: dict[str, int]
    replicas: dict[str, str]
    bytes_cpu: int
    bytes_gpu: int
    size: tuple[Side, Side]
    tflop: float


def check(recipe: ServeRecipe) -> dict[str, Path]:
    """Find every wrong input before anything starts; returns where the weights of each field lie.

    Raises WeightsError or CheckpointError in one line: missing, the other stage, a config
    or tensors of another model, cut short, or two that do not fit.
    """
    return {field: models[0].path for field, models in _models(recipe).items()}


def plan(recipe: ServeRecipe) -> Plan:
    """Estimate memory and work. Raises what `check` raises."""
    models = _models(recipe)
    counts = {f"{field}: {each.what}": _parameters(each) for field, some in models.items() for each in some}
    bytes_cpu = bytes_gpu = 0
    for name, replicas, dtype in (
        ("prior", recipe.prior_replicas, recipe.model.prior_dtype),
        ("decoder", recipe.decoder_replicas, recipe.model.decoder_dtype),
    ):
        values = sum(count for field, count in counts.items() if field.startswith(f"model.{name}:"))
        width = 2 if dtype == "auto" and replicas.gpus else DTYPE_BYTES[dtype]
        size = values * width * replicas.max_replicas
        bytes_cpu, bytes_gpu = (bytes_cpu, bytes_gpu + size) if replicas.gpus else (bytes_cpu + size, bytes_gpu)
    shown = {"prior": recipe.prior_replicas, "decoder": recipe.decoder_replicas}
    return Plan(
        url=f"http://{recipe.host}:{recipe.port}",
        weights={field: some[0].path for field, some in models.items()},
        parameters=counts,
        replicas={
            name: f"{part.min_replicas} to {part.max_replicas}, each {part.cpus:g} cores and {part.gpus:g} GPUs"
            for name, part in shown.items()
        },
        bytes_cpu=bytes_cpu,
        bytes_gpu=bytes_gpu,
        size=(recipe.defaults.width, recipe.defaults.height),
        tflop=_tflop(recipe),
    )


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
    work.add_row("memory", f"weights: {plan.bytes_cpu / 1e9:.2f} GB of hosts, {plan.bytes_gpu / 1e9:.2f} GB of GPUs")
    seconds = plan.tflop / SUSTAINED_TFLOPS
    work.add_row(
        f"a picture of {plan.size[0]}x{plan.size[1]}",
        f"{plan.tflop:.0f} TFLOP, {seconds:.1f} s at {SUSTAINED_TFLOPS:.0f} TFLOP/s (full-size models)",
    )
    return Group(found, work)


def _models(recipe: ServeRecipe) -> dict[str, list[Source]]:
    """The models that each field names, the UNet first. Raises what `check` raises."""
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
    return {"model.prior": [prior.unet, prior.text_encoder], "model.decoder": [decoder.unet, vqgan]}


def _parameters(source: Source) -> int:
    """Number of values in a model's weights."""
    return sum(math.prod(shape) for shape in source.shapes.values())


def _tflop(recipe: ServeRecipe) -> float:
    """Work of one picture with the recipe's defaults, by the full-size models."""
    defaults = recipe.defaults
    share = defaults.width * defaults.height / FULL_PIXELS
    prior = defaults.prior_steps * PRIOR_TFLOP * (2 if defaults.prior_guidance > 1 else 1)
    decoder = defaults.decoder_steps * DECODER_TFLOP * (2 if defaults.decoder_guidance > 1 else 1)
    return share * (prior * (42.67 / defaults.compression) ** 2 + decoder + VQGAN_TFLOP)
