import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sote.cluster.errors import WeightsError
from sote.train import standins, vision_shapes
from sote.train.shapes import Shape

# openai/clip-vit-large-patch14 config.json, vision_config and projection_dim
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}


def shapes_of(config: dict[str, object]) -> dict[str, Shape]:
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("config", [LARGE, standins.IMAGE_CONFIG, {}])
def test_shapes_are_those_of_transformers(config: dict[str, object]) -> None:
    assert vision_shapes.image_shapes(config) == shapes_of(config)


def test_the_config_of_clip_l_is_read_from_its_shapes() -> None:
    found = vision_shapes.image_config(shapes_of(LARGE))
    assert {name: found[name] for name in LARGE} == LARGE
    assert found["hidden_act"] == "quick_gelu"


def test_what_is_missing_is_named() -> None:
    shapes = shapes_of(standins.IMAGE_CONFIG)
    del shapes["visual_projection.weight"]
    with pytest.raises(WeightsError, match=r"tensor visual_projection\.weight is missing"):
        vision_shapes.image_config(shapes)
    flat = shapes_of(standins.IMAGE_CONFIG) | {"vision_model.embeddings.patch_embedding.weight": (32, 3)}
    with pytest.raises(WeightsError, match="its first layer has another shape than CLIP's"):
        vision_shapes.image_config(flat)
