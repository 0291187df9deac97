import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sote.train import lora, standins
from sote.train.conditions import Conditions
from sote.train.recipe import LoraPart
from sote.train.unet import CascadeUNet, Config

WIDTH, IMAGE = standins.TEXT_WIDTH, standins.IMAGE_WIDTH
# Two attention blocks in a layer, and one that sees the conditions alone
UNUSUAL = standins.PRIOR_CONFIG | {
    "block_types_per_layer": (
        ("SDCascadeResBlock", "SDCascadeAttnBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
    ),
    "self_attn": (False, True),
}
# Stage B whose levels are gone through several times on both ways
REPEATED = standins.DECODER_CONFIG | {
    "down_blocks_repeat_mappers": (2, 1, 1, 2),
    "up_blocks_repeat_mappers": (3, 3, 2, 2),
}


def _model(config: dict[str, Any]) -> CascadeUNet:
    """In which every weight matters: fresh ones have norms and an end that do nothing."""
    torch.manual_seed(0)
    model = CascadeUNet(Config.of(config))
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "beta")):
            nn.init.normal_(parameter, std=0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prior() -> CascadeUNet:
    return _model(standins.PRIOR_CONFIG)


@pytest.fixture(scope="module")
def decoder() -> CascadeUNet:
    return _model(standins.DECODER_CONFIG)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _both(model: CascadeUNet, tokens: int, pictures: int | None) -> tuple[Tensor, Tensor]:
    """What `forward` and `denoise` give for three rows at different times, each of other conditions."""
    noised, times = _normal(3, 16, 7, 5), torch.tensor([0.99, 0.5, 0.003])
    pooled, text = _normal(3, 1, WIDTH, seed=1), _normal(3, tokens, WIDTH, seed=2)
    images = None if pictures is None else _normal(3, pictures, IMAGE, seed=3)
    wanted = model(noised, time_B=times, pooled_B1D=pooled, text_BTD=text, image_B1D=images)
    conditions = model.conditions(pooled, text_BTD=text, image_BKD=images)
    assert (conditions.rows, conditions.tokens) == (3, tokens + 4 + 4 * (pictures or 1))
    return wanted, model.denoise(noised, time_B=times, conditions=conditions)


@pytest.mark.parametrize(("tokens", "pictures"), [(77, None), (152, None), (77, 1), (77, 3), (154, 2)])
def test_hoisted_conditions_give_what_forward_gives_in_stage_c(
    prior: CascadeUNet, tokens: int, pictures: int | None
) -> None:
    wanted, found = _both(prior, tokens, pictures)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_layers_of_several_attentions_and_of_none_have_theirs() -> None:
    wanted, found = _both(_model(UNUSUAL), 13, None)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("config", [standins.DECODER_CONFIG, REPEATED])
def test_a_hoisted_guide_gives_what_forward_gives_in_stage_b(config: dict[str, Any]) -> None:
    model = _model(config)
    noised, times = _normal(2, 4, 26, 18), torch.tensor([0.9, 0.1])
    pooled, latents = _normal(2, 1, WIDTH, seed=1), _normal(2, 16, 5, 3, seed=2)
    latents[1] = 0  # the unconditional row
    wanted = model(noised, time_B=times, pooled_B1D=pooled, latents_BCHW=latents)
    guide = model.guide(latents, height=26, width=18)
    assert guide.shape[1:3] == (13, 9)
    found = model.denoise(noised, time_B=times, conditions=model.conditions(pooled), guide_BHWC=guide)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    without = model(noised, time_B=times, pooled_B1D=pooled)
    assert (without - wanted).abs().max() > 1e-3
    torch.testing.assert_close(
        model.denoise(noised, time_B=times, conditions=model.conditions(pooled)), without, atol=1e-6, rtol=1e-6
    )


def test_in_bfloat16_they_are_as_close_to_float32_as_forward_is(prior: CascadeUNet) -> None:
    exact, _ = _both(prior, 77, None)
    forward, hoisted = _both(copy.deepcopy(prior).bfloat16(), 77, None)
    assert hoisted.dtype is torch.bfloat16
    deviations = [(output.float() - exact).std() / exact.std() for output in (forward, hoisted)]
    assert deviations[1] < 1.1 * deviations[0]
    assert deviations[0] < 0.02


def test_rows_joined_from_several_prompts_are_the_rows_alone(prior: CascadeUNet) -> None:
    pooled, text = _normal(3, 1, WIDTH, seed=1), _normal(3, 77, WIDTH, seed=2)
    noised, times = _normal(3, 16, 4, 6), torch.tensor([0.9, 0.4, 0.1])
    parts = [prior.conditions(pooled[row : row + 1], text_BTD=text[row : row + 1]) for row in range(3)]
    joined = Conditions.joined(parts)
    assert joined.rows == 3
    together = prior.denoise(noised, time_B=times, conditions=joined)
    for row, part in enumerate(parts):
        alone = prior.denoise(noised[row : row + 1], time_B=times[row : row + 1], conditions=part)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-6)
    assert Conditions.joined(parts[:1]) is parts[0]
    with pytest.raises(ValueError, match=r"tokens: \[85, 21\] cannot be one batch"):
        Conditions.joined([parts[0], prior.conditions(pooled[:1], text_BTD=text[:1, :13])])


def test_a_step_computes_nothing_of_the_text_again(prior: CascadeUNet) -> None:
    def operations(tokens: int) -> int:
        conditions = prior.conditions(_normal(1, 1, WIDTH), text_BTD=_normal(1, tokens, WIDTH))
        with FlopCounterMode(display=False) as counter:
            prior.denoise(_normal(1, 16, 4, 4), time_B=torch.tensor([0.5]), conditions=conditions)
        # Only the attention itself grows with the text
        attention = [flops for name, flops in counter.get_flop_counts()["Global"].items() if "attention" in str(name)]
        return int(counter.get_total_flops() - sum(attention))

    assert operations(77) == operations(152)


def test_adapters_of_a_training_are_heeded() -> None:
    model = CascadeUNet(Config.of(standins.PRIOR_CONFIG))
    part = LoraPart(targets=("mapper", "mapper_sca", "to_k", "kv_mapper.1"), rank=2, alpha=2.0)
    lora.attach(model, part, seed=0)
    for name, parameter in model.named_parameters():
        if lora.is_adapter(name):
            nn.init.normal_(parameter, std=0.3)
    model.eval().requires_grad_(False)
    wanted, found = _both(model, 13, None)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_compiled_layers_take_hoisted_conditions_in_one_graph_of_a_form() -> None:
    model = _model(standins.PRIOR_CONFIG | {"switch_level": None})
    wanted, hoisted = _both(model, 77, None)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _example: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    model.compile_blocks(backend)
    conditions = model.conditions(_normal(3, 1, WIDTH, seed=1), text_BTD=_normal(3, 77, WIDTH, seed=2))
    for _ in range(2):
        times = torch.tensor([0.99, 0.5, 0.003])
        found = model.denoise(_normal(3, 16, 7, 5), time_B=times, conditions=conditions)
        torch.testing.assert_close(found, hoisted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    # Ten layers: of the deeper level, of the upper one, and its first on the way up, which takes the skip
    assert len(graphs) <= 4
