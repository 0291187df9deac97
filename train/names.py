"""Names of tensors: diffusers and transformers folders <-> Stability's original files <-> ComfyUI checkpoints.

A layout is described by entries: each says from which tensors of the source a tensor of the target is made. No tensor
is reshaped; q, k and v are joined or split along axis 0. The rules hold for any size of model.

Source: Stability-AI/StableCascade 7a7d341 modules/, diffusers 0.42.1 StableCascadeUNet, ComfyUI v0.3.64
model_detection.py and supported_models.py (read for facts), checked by value against all of them.

Kind: pure.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Layout = Literal["diffusers", "original", "comfyui"]
Model = Literal["prior", "decoder", "vqgan", "text encoder", "encoder", "previewer", "image encoder", "adapters"]

# ComfyUI: prefixes inside a checkpoint
COMFY_UNET = "model.diffusion_model."
COMFY_TEXT = "text_encoder.clip_g.transformer."
COMFY_VQGAN = "vae."
COMFY_ENCODER = "vae.encoder."
COMFY_PREVIEWER = "vae.previewer."
COMFY_IMAGE = "clip_l_vision."
# ComfyUI before 2024-02-25 kept the projection outside of the transformer, transposed
COMFY_OLD_PROJECTION = "text_encoder.clip_g.text_projection"

UNET_PREFIXES = ("", COMFY_UNET, "diffusion_model.", "module.")
# Keys that tell a model, and the prefixes before them in files that hold several models, or that a trainer wrapped
KEYS: tuple[tuple[Model, tuple[str, ...], tuple[str, ...]], ...] = (
    ("prior", ("clf.1.weight", "clip_txt_mapper.weight"), UNET_PREFIXES),
    ("prior", ("clf.1.bias", "clip_txt_mapper.bias"), UNET_PREFIXES),  # so that one without the others is still known
    ("decoder", ("clf.1.weight", "effnet_mapper.0.weight"), UNET_PREFIXES),
    ("decoder", ("clf.1.bias", "effnet_mapper.0.bias"), UNET_PREFIXES),
    ("vqgan", ("vquantizer.codebook.weight",), ("", COMFY_VQGAN)),
    ("vqgan", ("vquantizer.embedding.weight",), ("", COMFY_VQGAN)),
    ("text encoder", ("text_projection.weight", "text_model.final_layer_norm.weight"), ("", COMFY_TEXT)),
    ("encoder", ("backbone.0.0.weight",), ("", COMFY_ENCODER)),
    ("previewer", ("blocks.0.weight",), ("", COMFY_PREVIEWER)),
    ("image encoder", ("vision_model.embeddings.class_embedding",), ("", COMFY_IMAGE)),
)
ADAPTERS = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight")

PARTS = ("q", "k", "v")
# Folder of the vqgan class: diffusers 0.42.1 saves "diffusers" here and cannot load that; this spelling it can.
VQGAN_LIBRARY = "diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model"

# What a pipeline folder's model_index.json says (stabilityai/stable-cascade-prior and stabilityai/stable-cascade)
PRIOR_INDEX: dict[str, Any] = {
    "_class_name": "StableCascadePriorPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "prior": ["diffusers", "StableCascadeUNet"],
    "resolution_multiple": 42.67,
    "scheduler": ["diffusers", "DDPMWuerstchenScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
DECODER_INDEX: dict[str, Any] = {
    "_class_name": "StableCascadeDecoderPipeline",
    "_diffusers_version": "0.42.1",
    "decoder": ["diffusers", "StableCascadeUNet"],
    "latent_dim_scale": 10.67,
    "scheduler": ["diffusers", "DDPMWuerstchenScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "vqgan": [VQGAN_LIBRARY, "PaellaVQModel"],
}


@dataclass(frozen=True)
class Entry:
    """One tensor of the target: the `sources` joined along axis 0, or the `third`-th third of the only source."""

    name: str
    sources: tuple[str, ...]
    third: int | None = None
    transposed: bool = False


def build(entry: Entry, *, read: Callable[[str], T], join: Callable[[list[T]], T]) -> T:
    """Make the tensor of `entry`. `read` gives a source by name; `join` concatenates along axis 0 (`torch.cat`)."""
    if len(entry.sources) > 1:
        return join([read(name) for name in entry.sources])
    tensor: Any = read(entry.sources[0])
    if entry.transposed:
        return tensor.T  # type: ignore[no-any-return]
    if entry.third is None:
        return tensor  # type: ignore[no-any-return]
    rows = tensor.shape[0] // len(PARTS)
    return tensor[entry.third * rows : (entry.third + 1) * rows]  # type: ignore[no-any-return]


def convert(tensors: dict[str, T], entries: Iterable[Entry], *, join: Callable[[list[T]], T]) -> dict[str, T]:
    """All tensors of the target from a dictionary of the source. Views where nothing is joined."""
    return {entry.name: build(entry, read=tensors.__getitem__, join=join) for entry in entries}


def parts(names: Iterable[str]) -> dict[Model, str]:
    """Every model that a set of names belongs to, with the prefix of its names: a checkpoint holds several."""
    there = set(names)
    found: dict[Model, str] = {}
    for model, keys, prefixes in KEYS:
        for prefix in prefixes:
            if all(prefix + key in there for key in keys):
                found.setdefault(model, prefix)
    if COMFY_OLD_PROJECTION in there and COMFY_TEXT + "text_model.final_layer_norm.weight" in there:
        found.setdefault("text encoder", COMFY_TEXT)
    if not found and any(name.endswith(ADAPTERS) for name in there):
        found["adapters"] = ""
    return found


def model_of(names: Iterable[str]) -> Model | None:
    """Which model a set of names belongs to (of a checkpoint: its UNet); None if none of ours."""
    return next(iter(parts(names)), None)


def layout_of(names: Iterable[str]) -> Layout:
    """The layout of the UNet, or of Stage A, in a set of names."""
    found = list(names)
    if any(name.startswith((COMFY_UNET, COMFY_VQGAN, COMFY_TEXT)) for name in found):
        return "comfyui"
    if any(name.startswith("vquantizer.codebook.") for name in found):
        return "original"
    return "original" if any(".attention.attn." in name for name in found) else "diffusers"


def unet_to_original(names: Iterable[str]) -> list[Entry]:
    """diffusers -> original names of a prior or decoder: q, k and v joined."""
    found = list(names)
    is_prior = "clip_txt_mapper.weight" in found
    entries = []
    for name in found:
        if match := re.fullmatch(r"(.+\.attention)\.to_([qkv])\.(weight|bias)", name):
            if match[2] == "q":
                sources = tuple(f"{match[1]}.to_{part}.{match[3]}" for part in PARTS)
                entries.append(Entry(f"{match[1]}.attn.in_proj_{match[3]}", sources))
        else:
            renamed = re.sub(r"(.+\.attention)\.to_out\.0\.(weight|bias)", r"\1.attn.out_proj.\2", name)
            if not is_prior:
                renamed = re.sub(r"^clip_txt_pooled_mapper\.", "clip_mapper.", renamed)
            entries.append(Entry(renamed, (name,)))
    return entries


def unet_to_comfyui(names: Iterable[str]) -> list[Entry]:
    """diffusers -> ComfyUI names of a prior or decoder (attention fused, as in Stability's own checkpoints)."""
    return [Entry(COMFY_UNET + entry.name, entry.sources) for entry in unet_to_original(names)]


def unet_to_diffusers(names: Iterable[str], *, prefix: str | None = None) -> list[Entry]:
    """diffusers, original or ComfyUI names (fused or split attention) of a prior or decoder -> diffusers names.

    Only names with `prefix` are taken (None: whichever the UNet's names have).
    """
    found = list(names)
    if prefix is None:
        prefix = next((at for model, at in parts(found).items() if model in ("prior", "decoder")), "")
    entries: list[Entry] = []
    for name in found:
        if name.startswith(prefix):
            entries += _unet_entries(name, prefix)
    return entries


def vqgan_to_original(names: Iterable[str], *, prefix: str = "") -> list[Entry]:
    """diffusers -> original names of Stage A; with `prefix` COMFY_VQGAN those of a ComfyUI checkpoint."""
    return [Entry(prefix + name.replace("vquantizer.embedding.", "vquantizer.codebook."), (name,)) for name in names]


def vqgan_to_diffusers(names: Iterable[str]) -> list[Entry]:
    """diffusers, original or ComfyUI names of Stage A -> diffusers names. Of a checkpoint only Stage A is taken."""
    found = list(names)
    if any(name.startswith(COMFY_VQGAN) for name in found):
        found = [name for name in found if name.startswith(COMFY_VQGAN)]
    renamed = (
        name.removeprefix(COMFY_VQGAN).replace("vquantizer.codebook.", "vquantizer.embedding.") for name in found
    )
    return [Entry(new, (name,)) for new, name in zip(renamed, found, strict=True)]


def text_to_comfyui(names: Iterable[str]) -> list[Entry]:
    """transformers -> ComfyUI names of the text encoder."""
    return [Entry(COMFY_TEXT + name, (name,)) for name in names if not name.endswith("position_ids")]


def text_to_transformers(names: Iterable[str]) -> list[Entry]:
    """transformers or ComfyUI names of the text encoder -> transformers names, without what is no weight of it."""
    found = [name for name in names if not name.endswith(("position_ids", "logit_scale"))]
    if any(name.startswith("vision_model.") for name in found):  # a whole CLIP
        found = [name for name in found if name.startswith(("text_model.", "text_projection."))]
    if any(name.startswith(COMFY_TEXT) for name in found):
        entries = [Entry(name.removeprefix(COMFY_TEXT), (name,)) for name in found if name.startswith(COMFY_TEXT)]
        if COMFY_OLD_PROJECTION in found:
            entries.append(Entry("text_projection.weight", (COMFY_OLD_PROJECTION,), transposed=True))
        return entries
    return [Entry(name, (name,)) for name in found]


def image_to_transformers(names: Iterable[str], *, prefix: str) -> list[Entry]:
    """transformers or ComfyUI names of the image encoder -> transformers names; of a whole CLIP only that is taken."""
    wanted = (f"{prefix}vision_model.", f"{prefix}visual_projection.")
    found = [name for name in names if name.startswith(wanted) and not name.endswith("position_ids")]
    return [Entry(name.removeprefix(prefix), (name,)) for name in found]


def prefixed(names: Iterable[str], prefix: str) -> list[Entry]:
    """The same names with `prefix` before each: the encoder and the previewer in a ComfyUI checkpoint."""
    return [Entry(prefix + name, (name,)) for name in names]


def _unet_entries(name: str, prefix: str) -> list[Entry]:
    """The one tensor, or three, of the diffusers layout that `name` becomes."""
    plain = name.removeprefix(prefix)
    if match := re.fullmatch(r"(.+\.attention)\.attn\.in_proj_(weight|bias)", plain):
        return [Entry(f"{match[1]}.to_{part}.{match[2]}", (name,), third) for third, part in enumerate(PARTS)]
    plain = re.sub(r"(.+\.attention)\.attn\.to_([qkv])\.", r"\1.to_\2.", plain)
    plain = re.sub(r"(.+\.attention)\.attn\.out_proj\.", r"\1.to_out.0.", plain)
    plain = re.sub(r"^clip_mapper\.", "clip_txt_pooled_mapper.", plain)
    return [Entry(plain, (name,))]
