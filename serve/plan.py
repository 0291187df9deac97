"""What a server will take, before it starts: every user error found, memory and work estimated.

Kind: pure, but for looking at files.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from sote.cluster import weights
from sote.cluster.errors import CheckpointError
from sote.serve.recipe import DType, ServeRecipe, Side
from sote.train import folders, names

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

    Raises WeightsError or CheckpointError in one line: missing, the other stage, cut short, or two that do not fit.
    """
    places = {
        "model.prior": weights.locate(recipe.model.prior, field="model.prior"),
        "model.decoder": weights.locate(recipe.model.decoder, field="model.decoder"),
    }
    for field, path in places.items():
        _refuse_file(path, field)
    folders.check_prior(places["model.prior"], field="model.prior")
    folders.check_decoder(places["model.decoder"], field="model.decoder")
    _check_shapes(places["model.prior"] / "prior", field="model.prior")
    _check_shapes(places["model.decoder"] / "decoder", field="model.decoder")
    _check_fit(places)
    return places


def plan(recipe: ServeRecipe) -> Plan:
    """Estimate memory and work. Raises what `check` raises."""
    places = check(recipe)
    counts = {f"{field}: {folder.name}": _parameters(folder) for field, folder in _models(places)}
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
        weights=places,
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


def _models(places: dict[str, Path]) -> list[tuple[str, Path]]:
    """Field and folder of each model that is loaded."""
    prior, decoder = places["model.prior"], places["model.decoder"]
    return [
        ("model.prior", prior / "prior"),
        ("model.prior", prior / "text_encoder"),
        ("model.decoder", decoder / "decoder"),
        ("model.decoder", decoder / "vqgan"),
    ]


def _refuse_file(path: Path, field: str) -> None:
    """Serving reads pipeline folders; of a single file it says what it is. A decoder was often taken for the model."""
    if path.is_file():
        found = names.model_of(folders.header(path).tensors)
        parts = "prior/, text_encoder/ and tokenizer/" if field == "model.prior" else "decoder/ and vqgan/"
        raise CheckpointError(
            f"{field}: {path} is a single file with {folders.WHAT[found]}; serving reads folders of diffusers: "
            f"name one with {parts}"
        )


def _check_shapes(folder: Path, *, field: str) -> None:
    """The weights must be those that config.json describes: full beside lite is told here, each tensor at loading."""
    found = {name: tensor.shape for name, tensor in folders.header(folders.weights(folder)).tensors.items()}
    for name, shape in _expected(folders.config(folder)).items():
        if found.get(name) != shape:
            raise CheckpointError(
                f"{field}: {folder}: {name} has shape {found.get(name, 'none')} in the weights and {shape or 'none'} "
                "by config.json; take both from one model"
            )


def _expected(config: dict[str, Any]) -> dict[str, tuple[int, ...] | None]:
    """Name and shape of the tensors that tell one size of StableCascadeUNet from another: ends, widths, depths.

    None is a tensor that must not be there: the layer after the last.
    """
    widths, text = config["block_out_channels"], config["conditioning_dim"]
    pixels = config["patch_size"] ** 2
    shapes: dict[str, tuple[int, ...] | None] = {
        "embedding.1.weight": (widths[0], config["in_channels"] * pixels, 1, 1),
        "clf.1.weight": (config["out_channels"] * pixels, widths[0], 1, 1),
        "clip_txt_pooled_mapper.bias": (text * config.get("clip_seq", 4),),  # 4 in every published config
    }
    if config.get("clip_text_in_channels"):
        shapes["clip_txt_mapper.weight"] = (text, config["clip_text_in_channels"])
    for level, layers in enumerate(config["down_num_layers_per_block"]):
        blocks = len(config["block_types_per_layer"][level])  # of a layer; the residual block is its first
        shapes[f"down_blocks.{level}.{(layers - 1) * blocks}.channelwise.4.bias"] = (widths[level],)
        shapes[f"down_blocks.{level}.{layers * blocks}.channelwise.4.bias"] = None
    return shapes


def _check_fit(places: dict[str, Path]) -> None:
    """The pooled text of the prior's text encoder goes into both UNets: its width must be theirs."""
    given = folders.config(places["model.prior"] / "text_encoder").get("projection_dim")
    for field, name in (("model.prior", "prior"), ("model.decoder", "decoder")):
        wanted = folders.config(places[field] / name).get("clip_text_pooled_in_channels")
        if wanted != given:
            raise CheckpointError(
                f"{field}: takes pooled text of width {wanted}, the text encoder of model.prior gives {given}; "
                "name a prior and a decoder of one family"
            )


def _parameters(folder: Path) -> int:
    """Number of values in a model's weights."""
    return sum(math.prod(tensor.shape) for tensor in folders.header(folders.weights(folder)).tensors.values())


def _tflop(recipe: ServeRecipe) -> float:
    """Work of one picture with the recipe's defaults, by the full-size models."""
    defaults = recipe.defaults
    share = defaults.width * defaults.height / FULL_PIXELS
    prior = defaults.prior_steps * PRIOR_TFLOP * (2 if defaults.prior_guidance > 1 else 1)
    decoder = defaults.decoder_steps * DECODER_TFLOP * (2 if defaults.decoder_guidance > 1 else 1)
    return share * (prior * (42.67 / defaults.compression) ** 2 + decoder + VQGAN_TFLOP)
