from typing import Any

import pytest
import torch
from diffusers import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from sote.cluster.errors import WeightsError
from sote.train import published, shapes, standins

# Values of the published files (checked against Stability's classes)
PUBLISHED = {
    "prior": (published.PRIOR, 1550, 3_589_103_632, "full"),
    "prior lite": (published.PRIOR_LITE, 782, 1_030_785_040, "lite"),
    "decoder": (published.DECODER, 1726, 1_562_941_136, "full"),
    "decoder lite": (published.DECODER_LITE, 970, 699_471_248, "lite"),
}


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_give_the_published_config_and_the_config_gives_the_shapes(name: str) -> None:
    config, tensors, numbers, size = PUBLISHED[name]
    with torch.device("meta"):
        model = StableCascadeUNet(**config)
    found = _shapes(model)
    assert len(found) == tensors
    assert sum(parameter.numel() for parameter in model.parameters()) == numbers
    made = shapes.unet_config(found)
    wanted = {key: _plain(value) for key, value in config.items()}
    if name == "decoder lite":  # says 9 heads for a level without attention, where the full one says 0
        wanted["num_attention_heads"][1] = 0
    assert {key: made[key] for key in wanted} == wanted
    assert shapes.unet_shapes(config) == found
    assert shapes.unet_shapes(made) == found
    assert shapes.unet_size(made) == size
    assert made.keys() == {key for key in model.config if key != "_use_default_values"} | {
        "_class_name",
        "_diffusers_version",
    }


@pytest.mark.parametrize("config", [standins.PRIOR_CONFIG, standins.DECODER_CONFIG])
def test_other_depths_and_repeats_are_found_too(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        found = _shapes(StableCascadeUNet(**config))
    assert shapes.unet_shapes(config) == found


def test_heads_are_64_wide_where_nothing_says_otherwise() -> None:
    made = shapes.unet_config(shapes.unet_shapes(standins.PRIOR_CONFIG))
    assert made["num_attention_heads"] == [1, 1]  # the stand-in has two of 32
    assert shapes.contradiction(standins.PRIOR_CONFIG, made) is None


def test_stage_a_and_clip_are_described_by_their_shapes() -> None:
    config = CLIPTextConfig(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=20, intermediate_size=5120, projection_dim=1280
    )
    with torch.device("meta"):
        vqgan, text = PaellaVQModel(scale_factor=0.43), CLIPTextModelWithProjection(config)
        small = CLIPTextModelWithProjection(CLIPTextConfig())  # its config.json leaves out what is default
    made = shapes.vqgan_config(_shapes(vqgan))
    assert {key: value for key, value in made.items() if key[0] != "_"} == {
        key: vqgan.config[key] for key in made if key[0] != "_"
    }
    assert shapes.vqgan_shapes(made) == _shapes(vqgan)
    said = shapes.text_config(_shapes(text))
    assert (said["num_hidden_layers"], said["num_attention_heads"], said["hidden_act"]) == (32, 20, "gelu")
    assert (said["bos_token_id"], said["eos_token_id"], said["pad_token_id"]) == (49406, 49407, 1)
    assert shapes.text_shapes(said) == _shapes(text)
    assert len(_shapes(text)) == 517
    assert shapes.text_shapes({}) == _shapes(small)


def test_a_config_of_another_size_is_told_by_the_value_that_differs() -> None:
    full, lite = (shapes.unet_config(shapes.unet_shapes(config)) for config in (published.PRIOR, published.PRIOR_LITE))
    assert shapes.contradiction(full, full) is None
    said = shapes.contradiction(full, lite)
    assert said is not None
    assert "conditioning_dim is 2048, in the weights it is 1536" in said
    # what shapes do not tell is the config's to say
    assert (
        shapes.contradiction(full | {"switch_level": [True], "dropout": 0.0, "num_attention_heads": [16, 16]}, full)
        is None
    )


def test_a_tensor_without_which_the_size_cannot_be_told_is_named() -> None:
    found = shapes.unet_shapes(standins.PRIOR_CONFIG)
    for name in ("embedding.1.weight", "clf.1.weight", "down_blocks.0.0.channelwise.4.weight"):
        with pytest.raises(WeightsError, match=f"tensor {name} is missing"):
            shapes.unet_config({key: value for key, value in found.items() if key != name})
    with pytest.raises(WeightsError, match="width 40 has no number of heads of 64"):
        shapes.text_config(shapes.text_shapes(standins.TEXT_CONFIG))


def test_the_first_difference_is_said_in_words() -> None:
    assert shapes.difference({"a": (1,)}, {"a": (1,)}) is None
    assert shapes.difference({"a": (1,), "b": (1,)}, {}) == "tensor a is missing (2 in all)"
    assert shapes.difference({}, {"a": (1,)}) == "tensor a is not of this model (1 in all)"
    assert shapes.difference({"a": (1,)}, {"a": (2,)}) == "tensor a has shape (2,), should have (1,)"
