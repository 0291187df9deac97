import pytest
import torch
from torch import Tensor

from sote.cluster.errors import CheckpointError, RecipeError
from sote.train import lora, standins
from sote.train.recipe import LoraPart
from sote.train.unet import CascadeUNet, Config

WIDTH = standins.TEXT_WIDTH
PART = LoraPart(rank=4, alpha=6.0)
# Every kind of linear layer, but for that of the image condition, whose input is zeros
ALL = ("to_q", "to_out.0", "channelwise.0", "channelwise.4", "mapper", "mapper_sca", "kv_mapper.1", "clip_txt_mapper")
WIDE = LoraPart(rank=2, alpha=1.0, targets=(*ALL, "clip_txt_pooled_mapper"))


def _unet(seed: int = 1) -> CascadeUNet:
    """Without dropout, and with an output: a fresh one starts as zeros."""
    unet = CascadeUNet(Config.of(standins.PRIOR_CONFIG | {"dropout": 0.0}))
    unet.initialise(seed)
    torch.nn.init.normal_(unet.clf[1].weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    return unet


def _run(unet: CascadeUNet) -> Tensor:
    random = torch.Generator().manual_seed(3)
    noised, pooled, text = (
        torch.randn(shape, generator=random) for shape in ((2, 16, 4, 6), (2, 1, WIDTH), (2, 9, WIDTH))
    )
    return unet(noised, time_B=torch.tensor([0.3, 0.7]), pooled_B1D=pooled, text_BTD=text)


def _trained(part: LoraPart) -> CascadeUNet:
    """Two steps, after which the ups are no longer zero."""
    unet = _unet()
    lora.attach(unet, part)
    optimizer = torch.optim.AdamW([weight for weight in unet.parameters() if weight.requires_grad], lr=0.05)
    for _ in range(2):
        _run(unet).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return unet


@pytest.fixture(scope="module")
def trained() -> CascadeUNet:
    return _trained(PART)


def test_two_steps_move_the_adapters_and_nothing_else(trained: CascadeUNet) -> None:
    fresh = dict(_unet().named_parameters())
    adapters = lora.tensors(trained)
    for name, weight in trained.named_parameters():
        assert weight.requires_grad == lora.is_adapter(name)
        if not lora.is_adapter(name):
            torch.testing.assert_close(weight, fresh[lora.plain(name)], rtol=0, atol=0)
    assert set(adapters) & set(fresh) == set()
    assert all(adapters[name].abs().max() > 0 for name in adapters)
    assert not torch.allclose(_run(trained), _run(_unet()))


@pytest.mark.parametrize("part", [PART, WIDE])
def test_the_merged_model_gives_what_base_and_adapters_give(part: LoraPart) -> None:
    trained, merged = _trained(part), _unet()
    base, adapters = merged.state_dict(), lora.tensors(trained)
    values = {
        name: lora.merged(weight, name=name, adapters=adapters, alpha=part.alpha) for name, weight in base.items()
    }
    changed = {name for name in base if not torch.equal(values[name], base[name])}
    assert changed == {f"{layer}.weight" for layer in lora.layers(adapters)}
    merged.load_state_dict(values)
    torch.testing.assert_close(_run(merged), _run(trained), atol=1e-5, rtol=1e-5)


def test_adapters_are_loaded_into_a_fresh_unet_and_others_refused(trained: CascadeUNet) -> None:
    other = _unet()
    lora.attach(other, PART, seed=7)
    lora.load(other, lora.tensors(trained))
    assert torch.equal(_run(other), _run(trained))
    narrow = _unet()
    lora.attach(narrow, LoraPart(rank=2))
    with pytest.raises(CheckpointError, match=r"to_k\.lora_A\.weight is \(4, 64\) in the file and \(2, 64\)"):
        lora.load(narrow, lora.tensors(trained))
    with pytest.raises(CheckpointError, match=r"is missing in the file"):
        lora.load(narrow, {})


def test_a_fresh_adapter_changes_nothing_and_depends_on_the_seed_alone() -> None:
    unets = [_unet() for _ in range(3)]
    for unet, seed in zip(unets, (5, 5, 6), strict=True):
        torch.manual_seed(seed * id(unet) % 1000)
        lora.attach(unet, PART, seed=seed)
    same, again, other = (lora.tensors(unet) for unet in unets)
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not all(torch.equal(same[name], other[name]) for name in same)
    torch.testing.assert_close(_run(unets[0]), _run(_unet()), rtol=0, atol=0)


def test_adapters_of_a_bfloat16_unet_are_float32_and_learn() -> None:
    unet = _unet().bfloat16()
    names = lora.attach(unet, WIDE)
    assert {tensor.dtype for tensor in lora.tensors(unet).values()} == {torch.float32}
    found = _run(unet)
    assert found.dtype is torch.bfloat16
    found.float().square().mean().backward()
    assert all(unet.get_submodule(name).lora_B["default"].weight.grad.abs().sum() > 0 for name in names)


def test_targets_are_ends_of_names_and_one_that_is_none_is_told_with_what_is_near() -> None:
    unet = _unet()
    assert lora.targeted(unet, ("attention.to_q", "channelwise.4"))[:2] == (
        "down_blocks.0.0.channelwise.4",
        "down_blocks.0.2.attention.to_q",
    )
    assert len(lora.targeted(unet, PART.targets)) == 4 * 10  # ten layers with attention
    with pytest.raises(RecipeError, match=r"lora\.targets: no linear layer's name ends with 'toq'; there are to_q"):
        lora.attach(unet, LoraPart(targets=("to_k", "toq")))
    with pytest.raises(RecipeError, match=r"there are channelwise\.0, channelwise\.4, clip_img_mapper"):
        lora.targeted(unet, ("depthwise",))
    assert all(weight.requires_grad for weight in unet.parameters())


def test_kohya_names_are_stabilitys_paths_with_q_k_and_v_apart(trained: CascadeUNet) -> None:
    assert lora.kohya_name("down_blocks.0.2.attention.to_q") == "lora_unet_down_blocks_0_2_attention_attn_to_q"
    assert lora.kohya_name("up_blocks.1.5.attention.to_out.0") == "lora_unet_up_blocks_1_5_attention_attn_out_proj"
    assert lora.kohya_name("down_blocks.0.0.channelwise.4") == "lora_unet_down_blocks_0_0_channelwise_4"
    entries = dict(lora.kohya_entries(lora.tensors(trained), alpha=PART.alpha))
    assert len(entries) == 3 * 4 * 10
    assert entries["lora_unet_down_blocks_0_2_attention_attn_to_q.alpha"].item() == PART.alpha
    assert entries["lora_unet_down_blocks_0_2_attention_attn_to_q.lora_down.weight"].shape == (4, 64)
    assert entries["lora_unet_down_blocks_0_2_attention_attn_to_q.lora_up.weight"].shape == (64, 4)
    half = dict(list(lora.tensors(trained).items())[:1])
    with pytest.raises(CheckpointError, match=r"to_q\.lora_B\.weight is missing"):
        list(lora.kohya_entries(half, alpha=1.0))
