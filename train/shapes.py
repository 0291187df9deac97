"""Configs of models from the shapes of their tensors, and back: what every tensor of a config must look like.

A file without a config is read by this alone, and every file is compared with it tensor by tensor before a model is
made. What no shape tells stands in the published configs and is the same in all of them: heads are 64 wide, dropout is
0.1 where there is attention, Stage B folds 2 x 2 pixels, nothing switches the resolution in Stage C.

Names are those of diffusers and transformers. Source: diffusers 0.42.1 StableCascadeUNet and PaellaVQModel,
transformers 5.23 CLIPTextModelWithProjection, the published config.json of both sizes of both stages.

Kind: pure.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from sote.cluster.errors import WeightsError

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]

RES, TIME, ATTENTION = "SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"
# First parts of the names in a block -> its kind; what else there is belongs to the block of the time
KINDS = {"depthwise": RES, "channelwise": RES, "attention": ATTENTION, "kv_mapper": ATTENTION}
HEAD_WIDTH = 64  # of all published UNets and of CLIP bigG
DROPOUT = 0.1
VERSION = "0.42.1"  # of diffusers, whose config.json this is
# What a config says beyond shapes: a declared value is taken as it is
UNSHAPED = ("num_attention_heads", "dropout", "self_attn", "patch_size", "in_channels", "out_channels")
# What a config may leave out: diffusers' defaults
DEFAULTS: dict[str, Any] = {
    "timestep_ratio_embedding_dim": 64,
    "clip_seq": 4,
    "kernel_size": 3,
    "clip_text_in_channels": None,
    "clip_image_in_channels": None,
    "effnet_in_channels": None,
    "pixel_mapper_in_channels": None,
    "timestep_conditioning_type": ("sca", "crp"),
    "switch_level": None,
}
# transformers 5.23 CLIPTextConfig, which leaves out what is default when it saves; PaellaVQModel
TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "max_position_embeddings": 77,
}
VQGAN_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "up_down_scale_factor": 2,
    "levels": 2,
    "bottleneck_blocks": 12,
    "embed_dim": 384,
    "latent_channels": 4,
    "num_vq_embeddings": 8192,
}
# Width of the first level (of Stage B: the second) -> the size that people speak of
SIZES = {("prior", 2048): "full", ("prior", 1536): "lite", ("decoder", 640): "full", ("decoder", 576): "lite"}
# bos, eos, pad and vocabulary of laion/CLIP-ViT-bigG-14-laion2B-39B-b160k as published
TEXT_MARKS = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
VQGAN_SCALE = 0.43  # Stability's StageA, as Stage B was trained; published vqgan configs have Wuerstchen v2's 0.3764


def unet_config(shapes: Shapes, *, heads: Sequence[int] | None = None) -> dict[str, Any]:
    """The config.json of a prior or decoder; `heads` of each level are known from elsewhere, or are 64 wide.

    Raises WeightsError: a tensor without which its size cannot be told, or a width that is not of such heads.
    """
    is_prior = "clip_txt_mapper.weight" in shapes
    levels = _count(shapes, "down_blocks")
    down = [_layers(shapes, f"down_blocks.{level}") for level in range(levels)]
    up = [_layers(shapes, f"up_blocks.{place}") for place in range(_count(shapes, "up_blocks"))]
    widths = [_shape(shapes, f"down_blocks.{level}.0.channelwise.4.weight")[0] for level in range(levels)]
    types = [kinds for kinds, _ in down]
    if heads is None:
        heads = [_heads(width) if ATTENTION in kinds else 0 for width, kinds in zip(widths, types, strict=True)]
    folded = 1 if is_prior else 2
    pooled = _shape(shapes, "clip_txt_pooled_mapper.weight")
    conditioning = _conditioning(shapes) or pooled[0] // 4
    return {
        "_class_name": "StableCascadeUNet",
        "_diffusers_version": VERSION,
        "in_channels": _shape(shapes, "embedding.1.weight")[1] // folded**2,
        "out_channels": _shape(shapes, "clf.1.weight")[0] // folded**2,
        "timestep_ratio_embedding_dim": _shape(shapes, "down_blocks.0.1.mapper.weight")[1],
        "patch_size": folded,
        "conditioning_dim": conditioning,
        "block_out_channels": widths,
        "num_attention_heads": list(heads),
        "down_num_layers_per_block": [count for _, count in down],
        "up_num_layers_per_block": [count for _, count in up],
        "down_blocks_repeat_mappers": [1 + _count(shapes, f"down_repeat_mappers.{level}") for level in range(levels)],
        "up_blocks_repeat_mappers": [1 + _count(shapes, f"up_repeat_mappers.{place}") for place in range(levels)],
        "block_types_per_layer": types,
        "clip_text_in_channels": _width(shapes, "clip_txt_mapper.weight"),
        "clip_text_pooled_in_channels": pooled[1],
        "clip_image_in_channels": _width(shapes, "clip_img_mapper.weight"),
        "clip_seq": pooled[0] // conditioning,
        "effnet_in_channels": _width(shapes, "effnet_mapper.0.weight"),
        "pixel_mapper_in_channels": _width(shapes, "pixels_mapper.0.weight"),
        "kernel_size": _shape(shapes, "down_blocks.0.0.depthwise.weight")[-1],
        "dropout": [DROPOUT if ATTENTION in kinds else 0.0 for kinds in types],
        "self_attn": True,
        "timestep_conditioning_type": _conditions(shapes),
        "switch_level": [False] * (levels - 1) if "down_downscalers.1.1.blocks.0.weight" in shapes else None,
    }


def unet_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Name and shape of every tensor of the UNet that `config` describes."""
    return dict(_unet(DEFAULTS | dict(config)))


def unet_size(config: Mapping[str, Any]) -> str:
    """ "full" or "lite" as published, else the widths."""
    widths = list(config["block_out_channels"])
    stage, width = ("prior", widths[0]) if config.get("clip_text_in_channels") else ("decoder", widths[1])
    return SIZES.get((stage, width), f"{' '.join(map(str, widths))} wide")


def text_config(shapes: Shapes) -> dict[str, Any]:
    """The config.json of a CLIP text encoder with its projection. Raises WeightsError."""
    words, positions = (
        _shape(shapes, f"text_model.embeddings.{name}_embedding.weight") for name in ("token", "position")
    )
    return {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "dtype": "float32",
        "vocab_size": words[0],
        "hidden_size": words[1],
        "max_position_embeddings": positions[0],
        "num_hidden_layers": _count(shapes, "text_model.encoder.layers"),
        "num_attention_heads": _heads(words[1]),
        "intermediate_size": _shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "projection_dim": _shape(shapes, "text_projection.weight")[0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
    } | TEXT_MARKS


def text_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Name and shape of every tensor of the text encoder that `config` describes."""
    return dict(_text(TEXT_DEFAULTS | dict(config)))


def vqgan_config(shapes: Shapes) -> dict[str, Any]:
    """The config.json of Stage A (PaellaVQModel). Raises WeightsError."""
    codes = _shape(shapes, "vquantizer.embedding.weight")
    width, folded = _shape(shapes, "in_block.1.weight")[:2]
    levels = _count(shapes, "down_blocks") // 2
    # of the blocks that go up: one before, one between each two levels, one residual block for each but the first level
    bottleneck = _count(shapes, "up_blocks") - 1 - 2 * (levels - 1)
    return {
        "_class_name": "PaellaVQModel",
        "_diffusers_version": VERSION,
        "in_channels": folded // 4,
        "out_channels": _shape(shapes, "out_block.0.weight")[0] // 4,
        "up_down_scale_factor": 2,
        "levels": levels,
        "bottleneck_blocks": bottleneck,
        "embed_dim": width * 2 ** (levels - 1),
        "latent_channels": codes[1],
        "num_vq_embeddings": codes[0],
        "scale_factor": VQGAN_SCALE,
    }


def vqgan_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Name and shape of every tensor of the Stage A that `config` describes."""
    return dict(_vqgan(VQGAN_DEFAULTS | dict(config)))


def difference(wanted: Shapes, found: Shapes) -> str | None:
    """The first thing in which the tensors found differ from those wanted, in words; None if in nothing."""
    if missing := sorted(wanted.keys() - found.keys()):
        return f"tensor {missing[0]} is missing ({len(missing)} in all)"
    if extra := sorted(found.keys() - wanted.keys()):
        return f"tensor {extra[0]} is not of this model ({len(extra)} in all)"
    for name, shape in wanted.items():
        if found[name] != shape:
            return f"tensor {name} has shape {found[name]}, should have {shape}"
    return None


def contradiction(declared: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The first value of a declared config that the shapes say otherwise, in words; None if there is none."""
    for name, value in found.items():
        if name.startswith("_") or name in UNSHAPED or name not in declared:
            continue
        said = declared[name]
        if name == "switch_level":
            said, value = said is not None, value is not None  # which kind of layer, not how it is set
        if _plain(said) != _plain(value):
            return f"{name} is {_plain(said)}, in the weights it is {_plain(value)}"
    return None


def _unet(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    widths, text = config["block_out_channels"], config["conditioning_dim"]
    folded, sequence, levels = config["patch_size"] ** 2, config["clip_seq"], len(widths)
    for name, key in (("effnet_mapper", "effnet_in_channels"), ("pixels_mapper", "pixel_mapper_in_channels")):
        if config[key] is not None:
            yield from _layer(f"{name}.0", (4 * widths[0], config[key], 1, 1))
            yield from _layer(f"{name}.2", (widths[0], 4 * widths[0], 1, 1))
    yield from _layer("clip_txt_pooled_mapper", (text * sequence, config["clip_text_pooled_in_channels"]))
    if config["clip_text_in_channels"] is not None:
        yield from _layer("clip_txt_mapper", (text, config["clip_text_in_channels"]))
    if config["clip_image_in_channels"] is not None:
        yield from _layer("clip_img_mapper", (text * sequence, config["clip_image_in_channels"]))
    yield from _layer("embedding.1", (widths[0], config["in_channels"] * folded, 1, 1))
    yield from _layer("clf.1", (config["out_channels"] * folded, widths[0], 1, 1))
    for level, width in enumerate(widths):
        place = levels - 1 - level  # of the way up, which starts with the deepest level
        down, up = config["down_num_layers_per_block"][level], config["up_num_layers_per_block"][place]
        yield from _blocks(config, f"down_blocks.{level}", level, layers=down, skip=0)
        yield from _blocks(config, f"up_blocks.{place}", level, layers=up, skip=width if place else 0)
        for name, at, key in (("down", level, "down_blocks"), ("up", place, "up_blocks")):
            for number in range((config.get(f"{key}_repeat_mappers") or [1] * levels)[at] - 1):
                yield from _layer(f"{name}_repeat_mappers.{at}.{number}", (width, width, 1, 1))
        if level:
            yield from _between(config, level, place=place)


def _between(config: Mapping[str, Any], level: int, *, place: int) -> Iterator[tuple[str, Shape]]:
    """The layers between a level and the one above it, on both ways."""
    above, width = config["block_out_channels"][level - 1], config["block_out_channels"][level]
    if config["switch_level"] is not None:
        yield from _layer(f"down_downscalers.{level}.1.blocks.0", (width, above, 1, 1))
        yield from _layer(f"up_upscalers.{place}.1.blocks.1", (above, width, 1, 1))
    else:
        yield from _layer(f"down_downscalers.{level}.1", (width, above, 2, 2))
        yield f"up_upscalers.{place}.1.weight", (width, above, 2, 2)  # of a transposed convolution: (in, out, 2, 2)
        yield f"up_upscalers.{place}.1.bias", (above,)


def _blocks(config: Mapping[str, Any], at: str, level: int, *, layers: int, skip: int) -> Iterator[tuple[str, Shape]]:
    """All blocks of one level on one way; `skip` is what its first block takes besides."""
    width, kernel = config["block_out_channels"][level], config["kernel_size"]
    time = config["timestep_ratio_embedding_dim"]
    number = 0
    for _ in range(layers):
        for kind in config["block_types_per_layer"][level]:
            name = f"{at}.{number}"
            if kind == RES:
                yield from _layer(f"{name}.depthwise", (width, 1, kernel, kernel))
                yield from _layer(f"{name}.channelwise.0", (4 * width, width + (0 if number else skip)))
                yield f"{name}.channelwise.2.gamma", (1, 1, 1, 4 * width)
                yield f"{name}.channelwise.2.beta", (1, 1, 1, 4 * width)
                yield from _layer(f"{name}.channelwise.4", (width, 4 * width))
            elif kind == TIME:
                for mapper in ("mapper", *(f"mapper_{said}" for said in config["timestep_conditioning_type"])):
                    yield from _layer(f"{name}.{mapper}", (2 * width, time))
            else:
                yield from _layer(f"{name}.kv_mapper.1", (width, config["conditioning_dim"]))
                for part in ("to_q", "to_k", "to_v", "to_out.0"):
                    yield from _layer(f"{name}.attention.{part}", (width, width))
            number += 1


def _text(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    yield "text_model.embeddings.token_embedding.weight", (config["vocab_size"], width)
    yield "text_model.embeddings.position_embedding.weight", (config["max_position_embeddings"], width)
    for number in range(config["num_hidden_layers"]):
        at = f"text_model.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{at}.self_attn.{part}", (width, width))
        yield from _layer(f"{at}.mlp.fc1", (inner, width))
        yield from _layer(f"{at}.mlp.fc2", (width, inner))
        for norm in ("layer_norm1", "layer_norm2"):
            yield from _layer(f"{at}.{norm}", (width,))
    yield from _layer("text_model.final_layer_norm", (width,))
    yield "text_projection.weight", (config["projection_dim"], width)


def _vqgan(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    levels, latent = config["levels"], config["latent_channels"]
    widths = [config["embed_dim"] // 2**level for level in reversed(range(levels))]
    folded = config["up_down_scale_factor"] ** 2
    yield from _layer("in_block.1", (widths[0], config["in_channels"] * folded, 1, 1))
    for level, width in enumerate(widths):
        if level:
            yield from _layer(f"down_blocks.{2 * level - 1}", (width, widths[level - 1], 4, 4))
        yield from _mixing(f"down_blocks.{2 * level}", width)
    last = f"down_blocks.{2 * levels - 1}"
    yield f"{last}.0.weight", (latent, widths[-1], 1, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{last}.1.{name}", (latent,)
    yield f"{last}.1.num_batches_tracked", ()
    yield "vquantizer.embedding.weight", (config["num_vq_embeddings"], latent)
    yield from _layer("up_blocks.0.0", (widths[-1], latent, 1, 1))
    number = 1
    for level in reversed(range(levels)):
        for _ in range(config["bottleneck_blocks"] if level == levels - 1 else 1):
            yield from _mixing(f"up_blocks.{number}", widths[level])
            number += 1
        if level:
            yield f"up_blocks.{number}.weight", (widths[level], widths[level - 1], 4, 4)
            yield f"up_blocks.{number}.bias", (widths[level - 1],)
            number += 1
    yield from _layer("out_block.0", (config["out_channels"] * folded, widths[0], 1, 1))


def _mixing(at: str, width: int) -> Iterator[tuple[str, Shape]]:
    """A residual block of Stage A."""
    yield f"{at}.gammas", (6,)
    yield from _layer(f"{at}.depthwise.1", (width, 1, 3, 3))
    yield from _layer(f"{at}.channelwise.0", (4 * width, width))
    yield from _layer(f"{at}.channelwise.2", (width, 4 * width))


def _layer(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    """Weight and bias."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _shape(shapes: Shapes, name: str) -> Shape:
    if name not in shapes:
        raise WeightsError(f"tensor {name} is missing")
    return shapes[name]


def _width(shapes: Shapes, name: str) -> int | None:
    """What a mapper takes in, if there is one."""
    return shapes[name][1] if name in shapes else None


def _heads(width: int) -> int:
    if width % HEAD_WIDTH:
        raise WeightsError(
            f"a layer of width {width} has no number of heads of {HEAD_WIDTH}; put the model's config.json beside the "
            "file, under the file's name with the ending .json"
        )
    return width // HEAD_WIDTH


def _count(shapes: Shapes, prefix: str) -> int:
    """One more than the highest number after `prefix` and a dot."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for name in shapes if (match := pattern.match(name))), default=-1)


def _layers(shapes: Shapes, at: str) -> tuple[list[str], int]:
    """Kinds of block in a layer, and the number of layers, of one level."""
    kinds: dict[int, str] = {}
    for name in shapes:
        if match := re.match(re.escape(at) + r"\.(\d+)\.(\w+)", name):
            kinds[int(match[1])] = KINDS.get(match[2], TIME)
    if kinds.get(0) != RES:
        raise WeightsError(f"tensor {at}.0.channelwise.4.weight is missing")
    last = max(kinds)
    period = min((number for number, kind in kinds.items() if number and kind == RES), default=last + 1)
    return [kinds.get(number, TIME) for number in range(period)], -(-(last + 1) // period)


def _conditioning(shapes: Shapes) -> int | None:
    """Width of the conditions: what the text mapper makes, or what attention blocks take."""
    if "clip_txt_mapper.weight" in shapes:
        return shapes["clip_txt_mapper.weight"][0]
    return next((shape[1] for name, shape in shapes.items() if name.endswith(".kv_mapper.1.weight")), None)


def _conditions(shapes: Shapes) -> list[str]:
    """Names of the conditions besides the time: "sca", and in the prior "crp"."""
    found = {match[1] for name in shapes if (match := re.search(r"\.mapper_(\w+)\.weight$", name))}
    return sorted(found, key=lambda name: ("sca", "crp").index(name) if name in ("sca", "crp") else 2)


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
