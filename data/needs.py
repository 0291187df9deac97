"""What each pass asks of a device, and what the parts of curation would do on a cluster.

A pass gets its models on accelerators that have the memory for them, whatever their make; where the cluster has none at
all, cores do the work. Whether a cluster has what a recipe asks is seen before its first pass starts.

Kind: wiring.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from sote.cluster import capacity, submission, weights
from sote.cluster.capacity import Bundle
from sote.cluster.fleet import Demand
from sote.data import costs
from sote.data.recipe import CurateRecipe
from sote.data.shards import Work

GB: Final = 1_000_000_000
FILES: Final = frozenset({".safetensors", ".onnx", ".bin", ".pt", ".pth", ".ckpt"})
# Beside the weights on the device, by reckoning, not measured. Pixels: 16 pictures of 1024 px in ViT-B, float32 (4096
# tokens x 768 x 4 bytes are 0.2 GB; the widest layer holds 4 times that, its input and result beside it) and what CUDA
# takes (0.5 GB). Text: one picture's keys and values (0.35 GB, data/text.py; a batch is halved until it fits), the
# vision tower's, CUDA. Latents: 16 pictures of 24 x 512 x 512 x 4 bytes three times over, cuDNN's workspace, CUDA.
PIXELS, TEXT, LATENTS = int(2.6 * GB), int(1.2 * GB), int(2.9 * GB)
# Bytes of the full-size weights: parameters of the model pages x 4 (LLaVA x 2): tagger 98 M, aesthetic ViT-B 86.6 M and
# CLIP ViT-B/32 151 M; LLaVA 1.5 7B 7,063 M; the encoder's file
FULL: Final = {"pixels": int(1.34 * GB), "text": int(14.13 * GB), "latents": 81_500_000}
LEAST_CPUS: Final = 0.5  # of a node where there is no device: a small machine's share (data/pass_pixels.py)


def pixels(recipe: CurateRecipe) -> int:
    """Bytes of a device for the scorers and the tagger of a recipe."""
    score, tag = recipe.score, recipe.tag
    layouts = weights.tagger_layouts(tag.engine)
    found = [
        weights.locate(score.aesthetic, field="score.aesthetic"),
        weights.locate(score.quality_clip, field="score.quality_clip"),
        weights.locate(tag.tagger, field="tag.tagger", layouts=layouts),
    ]
    return sum(map(_bytes, found)) + PIXELS


def text(recipe: CurateRecipe) -> int:
    """Bytes of a device for the reader of a recipe; 0 where a server reads, or nobody."""
    if recipe.text is None or recipe.text.url is not None:
        return 0
    return _bytes(weights.locate(recipe.text.reader, field="text.reader")) + TEXT


def latents(recipe: CurateRecipe) -> int:
    """Bytes of a device for the encoders of a recipe; 0 without latents."""
    if recipe.latents is None:
        return 0
    vqgan = recipe.latents.vqgan
    found = [weights.locate(recipe.latents.encoder, field="latents.encoder")]
    found += [weights.locate(vqgan, field="latents.vqgan")] if vqgan is not None else []
    return sum(map(_bytes, found)) + LATENTS


def _bytes(path: Path) -> int:
    """Bytes of the weights at a path: a file, or those of a folder in the layout that has the most. Of what lies at a
    URI and was not fetched yet nothing is known: 0."""
    if path.is_file():
        return path.stat().st_size
    sizes: dict[str, int] = {}
    for file in path.rglob("*"):
        if file.suffix in FILES and file.is_file():
            sizes[file.suffix] = sizes.get(file.suffix, 0) + file.stat().st_size
    return max(sizes.values(), default=0)


def require(work: Work, *, address: str | None) -> None:
    """Raise UserError, after some patience, where the cluster that this process is connected to will never have what
    the passes that are not done ask for. With an autoscaler each pass asks for its nodes when it comes
    (`session.model_pool`).
    """
    if address is not None and capacity.autoscales():
        return
    has_devices = submission.may_accelerate() and any(place.resources.get("GPU") for place in capacity.places())
    patience = capacity.PATIENCE_SECONDS if address is not None else 0.0
    for stage, bytes_of, mend in ASKS:
        if not (device_bytes := bytes_of(work.recipe)) or not work.pending(stage):
            continue
        bundle = Bundle(cpus=1.0, gpus=1.0, device_bytes=device_bytes) if has_devices else Bundle(cpus=LEAST_CPUS)
        capacity.require([bundle], what=f"curate: {stage}", patience_seconds=patience, mend=mend)


LARGER: Final = "start a node that has it (`python -m sote.cluster.detect` prints its flags)"
ASKS: Final[tuple[tuple[str, Callable[[CurateRecipe], int], str], ...]] = (
    ("tag", pixels, LARGER),
    ("text", text, f"{LARGER}, name a server with text.url, or leave [text] out"),
    ("latents", latents, f"{LARGER}, or leave [latents] out"),
)


def demands() -> tuple[Demand, ...]:
    """What each stage with full-size models asks of a cluster, and how fast it is where."""
    tagger = costs.TAGGER_GFLOP["wd-swinv2-tagger-v3"]
    score = costs.AESTHETIC_GFLOP + costs.QUALITY_GFLOP
    decoded, opened = 1 / costs.DECODE_SECONDS, 1 / costs.OPEN_SECONDS
    return (
        _demand("tag", "pixels", giga=tagger, prepared=decoded, is_onnx=True),
        _demand("score", "pixels", giga=score, prepared=decoded),
        _demand("text", "text", giga=costs.READER_GFLOP, prepared=opened, dtype="bfloat16"),
        _demand("latents", "latents", giga=costs.ENCODER_GFLOP, prepared=opened),
    )


def _demand(
    stage: str, files: str, *, giga: float, prepared: float, dtype: str = "float32", is_onnx: bool = False
) -> Demand:
    def rate(device: str) -> float | None:
        try:
            peak = costs.peak_of(device).of(dtype)
        except KeyError:
            return None
        return peak * costs.TERA * costs.REACHED[stage] / (giga * costs.GIGA)

    return Demand(
        name=stage,
        device_bytes=FULL[files] + {"pixels": PIXELS, "text": TEXT, "latents": LATENTS}[files],
        is_onnx=is_onnx,
        rate=rate,
        core_rate=prepared,
        core_flop_rate=costs.CORE_GFLOPS / giga,
    )
