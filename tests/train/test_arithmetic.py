"""Counts against the originals' classes on the meta device, and against the figures of the published sizes."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from sote.train import arithmetic, published, standins
from sote.train.unet import CascadeUNet, Config

Values = Mapping[str, Any]

# Every way that a config can differ: repeats, levels that are switched, no attention to itself, one dropout for all
ODD = standins.DECODER_CONFIG | {"down_blocks_repeat_mappers": (1, 2, 1, 1), "self_attn": (True, True, False, True)}
SWITCHED = standins.PRIOR_CONFIG | {"switch_level": (True,), "dropout": 0.1, "kernel_size": 5}
CONFIGS = {
    "prior": (standins.PRIOR_CONFIG, (12, 9), 152),
    "switched prior": (SWITCHED, (12, 10), 77),
    "decoder": (standins.DECODER_CONFIG, (32, 48), 77),
    "odd decoder": (ODD, (32, 48), 77),
}


def unet(config: Values) -> StableCascadeUNet:
    with torch.device("meta"):
        return StableCascadeUNet(**config)


# facts: counted on the meta device through diffusers' classes
@pytest.mark.parametrize(
    ("config", "count"),
    [
        (published.PRIOR, 3_589_103_632),
        (published.PRIOR_LITE, 1_030_785_040),
        (published.DECODER, 1_562_941_136),
        (published.DECODER_LITE, 699_471_248),
    ],
)
def test_the_published_unets_have_as_many_weights_as_their_files(config: Values, count: int) -> None:
    assert sum(arithmetic.weights(config).values()) == count


def test_the_parts_of_the_large_prior_are_those_counted_in_its_class() -> None:
    parts = {name: round(count / 1e9, 3) for name, count in arithmetic.weights(published.PRIOR).items()}
    assert (parts["channelwise"], parts["attention"], parts["kv_mapper"]) == (2.166, 1.074, 0.269)
    assert parts["timestep"] == 0.051


def test_the_published_text_encoder_has_as_many_weights_as_its_file() -> None:
    assert arithmetic.text_weights(published.TEXT) == 694_659_840


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_has_the_name_and_the_weights_that_it_has_in_diffusers(name: str) -> None:
    config, _, _ = CONFIGS[name]
    model = unet(config)
    there = {
        name: sum(weight.numel() for weight in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    assert {layer.name: layer.weights for layer in arithmetic.layers(config)} == there
    assert sum(arithmetic.weights(config).values()) == sum(weight.numel() for weight in model.parameters())
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {layer.name for layer in arithmetic.layers(config) if layer.linear} == linear


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_of_a_unet_are_those_that_torch_counts(name: str) -> None:
    config, cells, tokens = CONFIGS[name]
    width = config["clip_text_pooled_in_channels"]
    inputs: dict[str, torch.Tensor] = {
        "sample": torch.empty(1, config["in_channels"], *cells, device="meta"),
        "timestep_ratio": torch.empty(1, device="meta"),
        "clip_text_pooled": torch.empty(1, 1, width, device="meta"),
    }
    if config["clip_text_in_channels"] is None:
        inputs["effnet"] = torch.empty(1, 16, 4, 6, device="meta")
    else:
        inputs["clip_text"] = torch.empty(1, tokens, width, device="meta")
        inputs["clip_img"] = torch.empty(1, 1, config["clip_image_in_channels"], device="meta")
    with FlopCounterMode(display=False) as counter:
        unet(config)(**inputs)
    found = arithmetic.forward_flop(config, cells=cells, tokens=tokens)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_operations_of_a_text_encoder_are_those_that_torch_counts() -> None:
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(CLIPTextConfig(**standins.TEXT_CONFIG))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 77, dtype=torch.int64, device="meta"))
    assert arithmetic.text_flop(standins.TEXT_CONFIG, tokens=227) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert arithmetic.text_weights(standins.TEXT_CONFIG) == sum(weight.numel() for weight in model.parameters())


# facts: torch's FlopCounterMode on the meta device, full size, forward, in TFLOP
@pytest.mark.parametrize(
    ("config", "cells", "tokens", "teraflop"),
    [
        (published.PRIOR, (24, 24), 77, 4.078),
        (published.PRIOR, (24, 36), 77, 6.179),
        (published.PRIOR, (32, 32), 77, 7.384),
        (published.PRIOR, (32, 32), 227, 7.707),
        (published.PRIOR_LITE, (24, 24), 77, 1.174),
        (published.PRIOR_LITE, (32, 32), 77, 2.148),
        (published.DECODER, (192, 192), 77, 3.325),
        (published.DECODER, (256, 256), 77, 6.174),
    ],
)
def test_operations_of_the_published_sizes(
    config: Values, cells: tuple[int, int], tokens: int, teraflop: float
) -> None:
    assert arithmetic.forward_flop(config, cells=cells, tokens=tokens) / 1e12 == pytest.approx(teraflop, rel=0.01)


def test_what_is_trained_counts_three_times_and_what_is_frozen_once() -> None:
    text, unet_flop = published.TEXT, arithmetic.forward_flop(published.PRIOR, cells=(32, 32), tokens=227)
    text_flop = arithmetic.text_flop(text, tokens=227)

    def all_of(text: Values | None, *, trained: bool) -> float:
        return arithmetic.training_flop(published.PRIOR, cells=(32, 32), tokens=227, text=text, trains_text=trained)

    assert all_of(text, trained=True) == 3 * unet_flop + 3 * text_flop
    assert all_of(text, trained=False) == 3 * unet_flop + text_flop
    assert all_of(None, trained=False) == 3 * unet_flop
    assert all_of(text, trained=True) / 1e12 == pytest.approx(24.1, rel=0.01)  # facts: the author's setting


def test_adapters_are_on_the_layers_whose_names_end_so() -> None:
    found = arithmetic.adapted(published.PRIOR, targets=("to_q", "to_out.0"))
    assert len(found) == 64 * 2
    assert {(layer.wide, layer.high) for layer in found} == {(2048, 2048)}
    assert arithmetic.adapted(published.PRIOR, targets=("q", "depthwise")) == []


def test_recomputation_keeps_the_input_of_each_layer_and_makes_one_layer_again() -> None:
    def kept(share: float) -> arithmetic.Activations:
        return arithmetic.activations(published.PRIOR, cells=(32, 32), tokens=227, recomputed=share)

    none, half, whole = kept(0.0), kept(0.5), kept(1.0)
    one = 1024 * 2048 * 2  # bytes of the residual stream in bfloat16
    assert (whole.hidden, whole.attention) == (0.0, 0.0)
    # 64 layers, what the way down left for the way up, and the norms outside of the levels
    assert whole.residual == pytest.approx(72 * one, rel=0.02)
    assert none.hidden == 64 * 4 * one
    assert half.hidden == none.hidden / 2
    assert none.total > half.total > whole.total
    assert none.total == pytest.approx(5e9, rel=0.15)  # facts, an estimate: about 5 GB where norms are fused


@pytest.mark.parametrize(("config", "share"), [("prior", 0.0), ("prior", 0.5), ("prior", 1.0), ("decoder", 0.0)])
def test_activations_are_those_that_autograd_keeps_of_the_unet(config: str, share: float) -> None:
    values, _, tokens = CONFIGS[config]
    values, cells = values | {"dropout": 0.0}, (48, 32)  # on a CPU attention with dropout keeps every probability
    model = CascadeUNet(Config.of(values)).bfloat16()
    model.checkpoint_blocks(share)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    text = torch.zeros(1, tokens, standins.TEXT_WIDTH, dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(
            torch.zeros(1, values["in_channels"], *cells, dtype=torch.bfloat16),
            time_B=torch.ones(1),
            pooled_B1D=text[:, :1],
            text_BTD=text if config == "prior" else None,
            latents_BCHW=None if config == "prior" else torch.zeros(1, 16, 8, 8, dtype=torch.bfloat16),
        )
    found = arithmetic.activations(values, cells=cells, tokens=tokens, recomputed=share)
    measured = sum(storage.nbytes() for storage in kept.values())
    assert found.total - found.again == pytest.approx(measured, rel=0.1)


def test_activations_grow_with_cells_tokens_and_the_width_of_a_number() -> None:
    def kept(side: int, tokens: int, bytes_each: int = 2) -> float:
        found = arithmetic.activations(
            published.PRIOR, cells=(side, side), tokens=tokens, recomputed=0.0, bytes_each=bytes_each
        )
        return found.total

    assert kept(32, 77) < kept(32, 227) < kept(40, 227)
    assert kept(32, 77, 4) == 2 * kept(32, 77)


def test_a_text_encoder_keeps_the_input_of_a_layer_that_is_computed_twice() -> None:
    def kept(tokens: int, share: float) -> float:
        return arithmetic.text_activations(published.TEXT, tokens=tokens, recomputed=share).total

    assert kept(227, 0.0) == 3 * kept(77, 0.0)
    assert kept(227, 1.0) == 2 * 3 * 77 * 1280 * (32 + 16)  # inputs of 32 layers, and all of one
    assert kept(227, 1.0) < kept(227, 0.5) < kept(227, 0.0)
