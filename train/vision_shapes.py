"""Config of a CLIP image encoder from the shapes of its tensors, and back (as shapes.py for the other models).

What no shape tells is that of CLIP-L/14: heads are 64 wide, the activation is quick_gelu. Names are those of
transformers. Source: transformers 5.23 CLIPVisionModelWithProjection.

Kind: pure.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sote.cluster.errors import WeightsError
from sote.train.shapes import HEAD_WIDTH, Shape, Shapes

# transformers 5.23 CLIPVisionConfig, for what a config leaves out
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
}
LAYERS = "vision_model.encoder.layers."


def image_config(shapes: Shapes) -> dict[str, Any]:
    """The config.json of a CLIP image encoder with its projection. Raises WeightsError."""
    try:
        width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
        positions = shapes["vision_model.embeddings.position_embedding.weight"][0]
        inner = shapes[f"{LAYERS}0.mlp.fc1.weight"][0]
        projected = shapes["visual_projection.weight"][0]
    except KeyError as error:
        raise WeightsError(f"tensor {error.args[0]} is missing; take the file from its source again") from None
    except ValueError:
        raise WeightsError("its first layer has another shape than CLIP's; take the file from its source") from None
    layers = {int(name.removeprefix(LAYERS).split(".")[0]) for name in shapes if name.startswith(LAYERS)}
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "projection_dim": projected,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "image_size": math.isqrt(positions - 1) * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def image_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Name and shape of every tensor of the image encoder that `config` describes."""
    return dict(_image(DEFAULTS | dict(config)))


def _image(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    width, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    at = "vision_model.embeddings"
    yield f"{at}.class_embedding", (width,)
    yield f"{at}.patch_embedding.weight", (width, 3, patch, patch)
    yield f"{at}.position_embedding.weight", ((config["image_size"] // patch) ** 2 + 1, width)
    for name in ("pre_layrnorm", "post_layernorm"):  # so it is spelt
        yield from _pair(f"vision_model.{name}", (width,), width)
    for layer in range(config["num_hidden_layers"]):
        for part in ("q", "k", "v", "out"):
            yield from _pair(f"{LAYERS}{layer}.self_attn.{part}_proj", (width, width), width)
        for number in (1, 2):
            yield from _pair(f"{LAYERS}{layer}.layer_norm{number}", (width,), width)
        yield from _pair(f"{LAYERS}{layer}.mlp.fc1", (inner, width), inner)
        yield from _pair(f"{LAYERS}{layer}.mlp.fc2", (width, inner), width)
    yield "visual_projection.weight", (config["projection_dim"], width)


def _pair(name: str, weight: Shape, bias: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", weight
    yield f"{name}.bias", (bias,)
