import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from sote.cluster.errors import CheckpointError
from sote.train import standins
from sote.train.blocks import Attention, ResBlock
from sote.train.unet import CascadeUNet, Config

PRIOR, DECODER = standins.PRIOR_CONFIG, standins.DECODER_CONFIG
WIDTH = standins.TEXT_WIDTH
# Stage C in which a level is really half as large, so that odd sizes come back one cell short
SWITCHED = PRIOR | {"switch_level": (True,), "dropout": 0.0}
# Stage B with all that the stand-in leaves out: repeats on the way down, odd patch sizes, an odd time embedding
UNUSUAL = DECODER | {"down_blocks_repeat_mappers": (2, 1, 1, 2), "timestep_ratio_embedding_dim": 33, "clip_seq": 3}

# Stage C with a single level of three layers, all of one form
ONE = PRIOR | {
    "down_num_layers_per_block": (2,),
    "up_num_layers_per_block": (1,),
    "down_blocks_repeat_mappers": (1,),
    "up_blocks_repeat_mappers": (1,),
    "block_types_per_layer": PRIOR["block_types_per_layer"][:1],
    "block_out_channels": (64,),
    "num_attention_heads": (2,),
    "dropout": 0.1,
}


def _inputs(config: Config, *, height: int, width: int, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    found = {"noised_BCHW": normal(batch, config.in_channels, height, width), "pooled_B1D": normal(batch, 1, WIDTH)}
    found["time_B"] = torch.rand(batch, generator=random)
    if config.clip_text_in_channels is not None:
        return found | {"text_BTD": normal(batch, 13, WIDTH)}
    return found | {"latents_BCHW": normal(batch, 16, 5, 3)}


def _run(model: CascadeUNet, inputs: dict[str, Tensor]) -> Tensor:
    values = dict(inputs)
    return model(values.pop("noised_BCHW"), **values)


def _run_theirs(model: StableCascadeUNet, inputs: dict[str, Tensor]) -> Tensor:
    image = torch.zeros(len(inputs["time_B"]), 1, WIDTH) if "text_BTD" in inputs else None
    found = model(
        inputs["noised_BCHW"],
        timestep_ratio=inputs["time_B"],
        clip_text_pooled=inputs["pooled_B1D"],
        clip_text=inputs.get("text_BTD"),
        clip_img=image,
        effnet=inputs.get("latents_BCHW"),
        return_dict=False,
    )
    return found[0]


def _theirs(config: dict[str, Any]) -> StableCascadeUNet:
    """diffusers' model in which every weight matters: fresh ones have norms that do nothing."""
    torch.manual_seed(0)
    model = StableCascadeUNet(**config)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "beta")):
            nn.init.normal_(parameter, std=0.5)
    return model


def _ours(theirs: StableCascadeUNet) -> CascadeUNet:
    model = CascadeUNet(Config.of(theirs.config))
    model.load_state_dict(theirs.state_dict())
    return model


@pytest.fixture(scope="module")
def prior() -> CascadeUNet:
    return _ours(_theirs(PRIOR))


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (PRIOR, [(8, 8), (7, 5)]),
        (SWITCHED, [(8, 6), (7, 5)]),
        (DECODER, [(32, 32), (26, 18)]),  # 13 x 9 patches: halved three times, odd at each level
        (UNUSUAL, [(22, 30)]),
    ],
)
def test_outputs_and_gradients_equal_those_of_diffusers(config: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    theirs = _theirs(config).eval()
    ours = _ours(theirs).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for height, width in sizes:
        inputs = _inputs(ours.config, height=height, width=width)
        wanted, found = _run_theirs(theirs, inputs), _run(ours, inputs)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        for model, output in ((theirs, wanted), (ours, found)):
            model.zero_grad()
            output.square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4, msg=name)


def test_without_dropout_training_equals_diffusers_too() -> None:
    theirs = _theirs(PRIOR | {"dropout": (0.0, 0.0)}).train()
    ours = _ours(theirs).train()
    inputs = _inputs(ours.config, height=6, width=4)
    torch.testing.assert_close(_run(ours, inputs), _run_theirs(theirs, inputs), atol=1e-5, rtol=1e-5)


def test_the_config_is_diffusers_own() -> None:
    for values in (PRIOR, DECODER, SWITCHED, UNUSUAL):
        theirs = StableCascadeUNet(**values)
        config = Config.of(theirs.config)
        again = StableCascadeUNet.from_config(config.to_diffusers())
        assert Config.of(again.config) == config == Config.of(config.to_diffusers())


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    def count(**values: Any) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in CascadeUNet(Config.of(values)).parameters())

    text = {"clip_text_in_channels": 1280, "clip_image_in_channels": 768, "switch_level": [False]}
    types = [list(level) for level in DECODER["block_types_per_layer"]]
    decoder = {
        **{name: DECODER[name] for name in ("in_channels", "out_channels", "patch_size", "pixel_mapper_in_channels")},
        **{name: DECODER[name] for name in ("effnet_in_channels", "timestep_conditioning_type", "dropout")},
        "conditioning_dim": 1280,
        "block_out_channels": [320, 640, 1280, 1280],
        "num_attention_heads": [0, 0, 20, 20],
        "down_num_layers_per_block": [2, 6, 28, 6],
        "up_num_layers_per_block": [6, 28, 6, 2],
        "down_blocks_repeat_mappers": [1, 1, 1, 1],
        "up_blocks_repeat_mappers": [3, 3, 2, 2],
        "block_types_per_layer": types,
    }
    # Sizes of Stability's files
    assert count(**text) == 3_589_103_632
    assert count(**decoder) == 1_562_941_136


def test_times_that_are_one_in_bfloat16_are_told_apart_by_bfloat16_weights(prior: CascadeUNet) -> None:
    model = copy.deepcopy(prior).eval().bfloat16()
    times = torch.tensor([0.501, 0.5015])
    assert times.bfloat16().unique().numel() == 1
    inputs = _inputs(model.config, height=4, width=4, batch=1)
    found = [_run(model, inputs | {"time_B": time[None]}) for time in times]
    assert found[0].dtype is torch.bfloat16
    assert not torch.equal(*found)
    exact = [_run(prior.eval(), inputs | {"time_B": time[None]}) for time in times]
    assert torch.nn.functional.cosine_similarity(*(pair[1] - pair[0] for pair in (exact, found)), dim=1).mean() > 0.5


def _not_of_the_state(model: CascadeUNet, run: Callable[[], Tensor]) -> dict[str, torch.dtype]:
    """Modules that give something else than bfloat16, apart from the mapping of the time."""
    found = {}
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: found.update({name: output.dtype}))
        for name, module in model.named_modules()
        if ".mapper" not in name
    ]
    assert run().dtype is torch.bfloat16
    for handle in handles:
        handle.remove()
    return {name: dtype for name, dtype in found.items() if dtype is not torch.bfloat16}


def test_nothing_of_the_state_is_float32_with_bfloat16_weights_or_under_autocast(prior: CascadeUNet) -> None:
    inputs = _inputs(prior.config, height=4, width=4)
    wanted = _run(prior.eval(), inputs)
    low = copy.deepcopy(prior).eval().bfloat16()
    assert not _not_of_the_state(low, lambda: _run(low, inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not _not_of_the_state(prior, lambda: _run(prior, inputs)).keys() - {"embedding.0"}  # the input itself
        found = _run(prior, inputs)
    # bfloat16 has 8 bits: a fiftieth of the outputs' deviation after ten layers
    for output in (found, _run(low, inputs)):
        assert (output.float() - wanted).std() < 0.02 * wanted.std()


def test_nothing_of_the_state_is_float32_under_a_gpus_autocast_either() -> None:
    """Its list is longer than the CPU's: it has every norm. Tensors without content stand for those of a GPU."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = CascadeUNet(Config.of(ONE))
        inputs = {
            name: torch.empty(part.shape, device="cuda")
            for name, part in _inputs(model.config, height=4, width=4).items()
        }
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)  # torch.autocast does nothing where there is no GPU
        try:
            assert torch.nn.functional.layer_norm(inputs["noised_BCHW"].bfloat16(), (4,)).dtype is torch.float32
            assert not _not_of_the_state(model, lambda: _run(model, inputs)).keys() - {"embedding.0"}
        finally:
            torch.set_autocast_enabled("cuda", False)


def _learn(model: CascadeUNet, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients."""
    torch.manual_seed(7)
    model.zero_grad()
    output = _run(model, inputs)
    output.square().mean().backward()
    return output.detach(), [parameter.grad for parameter in model.parameters()]


def _operations(model: CascadeUNet, inputs: dict[str, Tensor]) -> int:
    """Floating point operations of both directions."""
    with FlopCounterMode(display=False) as counter:
        _learn(model, inputs)
    return counter.get_total_flops()


@pytest.fixture
def dropping() -> CascadeUNet:
    """With dropout, in training."""
    return _ours(_theirs(ONE)).train()


def test_layers_computed_twice_change_neither_output_nor_gradients_nor_dropout(dropping: CascadeUNet) -> None:
    inputs = _inputs(dropping.config, height=4, width=6)
    output, gradients = _learn(dropping, inputs)
    once = _operations(dropping, inputs)
    for share, layers in ((0.4, 1), (1.0, 3)):
        dropping.checkpoint_blocks(share)
        again, gradients_again = _learn(dropping, inputs)
        assert torch.equal(again, output)
        assert all(torch.equal(*pair) for pair in zip(gradients, gradients_again, strict=True))
        # A step is one forward and two backward, of three layers. A layer's last product is not computed again
        assert 0.7 * layers / 9 < _operations(dropping, inputs) / once - 1 < layers / 9
    dropping.checkpoint_blocks(0.0)
    assert _operations(dropping, inputs) == once


def test_keeping_little_costs_no_matrix_product(dropping: CascadeUNet) -> None:
    inputs = _inputs(dropping.config, height=4, width=6)
    (output, gradients), once = _learn(dropping, inputs), _operations(dropping, inputs)
    blocks = [module for module in dropping.modules() if isinstance(module, ResBlock)]
    assert all(block.keep_little for block in blocks)
    dropping.keep_all()
    assert not any(block.keep_little for block in blocks)
    again, gradients_again = _learn(dropping, inputs)
    assert torch.equal(again, output)
    assert all(torch.equal(*pair) for pair in zip(gradients, gradients_again, strict=True))
    assert _operations(dropping, inputs) == once


def test_compiled_layers_are_one_graph_for_all_of_a_form_and_give_the_same() -> None:
    model = _ours(_theirs(ONE | {"dropout": 0.0}))
    inputs = _inputs(model.config, height=4, width=6)
    output, gradients = _learn(model, inputs)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _example: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    model.compile_blocks(backend)
    again, gradients_again = _learn(model, inputs)
    assert len(graphs) == 1
    torch.testing.assert_close(again, output, atol=1e-5, rtol=1e-5)
    for pair in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(*pair, atol=1e-6, rtol=1e-4)


def test_attention_drops_probabilities_in_training_alone() -> None:
    torch.manual_seed(0)
    attention = Attention(8, heads=2, dropout=0.3).train()
    tokens = torch.randn(1, 5, 8).expand(4000, 5, 8)
    with torch.no_grad():
        drawn = attention(tokens, tokens)
        exact = attention.eval()(tokens[:1], tokens[:1])[0]
    assert drawn.std(dim=0).min() > 0
    assert (drawn == 0).sum() == 0  # dropping after the projection would give zeros
    torch.testing.assert_close(drawn.mean(dim=0), exact, atol=0.03, rtol=0.05)


def test_the_initialisation_is_stabilitys_and_depends_on_the_seed_alone() -> None:
    model, again, other = (CascadeUNet(Config.of(DECODER)) for _ in range(3))
    for unet, seed in ((model, 3), (again, 3), (other, 4)):
        unet.initialise(seed)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))
    weights = dict(model.named_parameters())
    for name in ("clf.1.weight", "down_blocks.0.1.mapper.weight", "up_blocks.0.1.mapper_sca.weight"):
        assert weights[name].abs().max() == 0
    assert weights["effnet_mapper.2.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    narrow = weights["down_blocks.1.0.channelwise.4.weight"]
    # Xavier's bound, by the root of the five layers on the way down
    bound = (6 / sum(narrow.shape)) ** 0.5 / 5**0.5
    assert narrow.abs().max().item() == pytest.approx(bound, rel=0.02)
    query = weights["down_blocks.2.2.attention.to_q.weight"]
    assert query.abs().max().item() == pytest.approx((6 / (4 * len(query))) ** 0.5, rel=0.02)
    found = _run(model, _inputs(model.config, height=16, width=16))
    assert found.abs().max() == 0


def test_pooled_text_may_lack_its_axis_and_stage_c_needs_its_text(prior: CascadeUNet) -> None:
    inputs = _inputs(prior.config, height=4, width=4)
    flat = inputs | {"pooled_B1D": inputs["pooled_B1D"][:, 0]}
    assert torch.equal(_run(prior.eval(), flat), _run(prior.eval(), inputs))
    del inputs["text_BTD"]
    with pytest.raises(ValueError, match="text_BTD: missing"):
        _run(prior, inputs)


def test_a_config_that_is_not_of_one_piece_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"num_attention_heads: .* is not one value for each of the 2 levels"):
        Config.of(PRIOR | {"num_attention_heads": (2, 2, 2)})
    with pytest.raises(CheckpointError, match="'Other' is unknown"):
        Config.of(PRIOR | {"block_types_per_layer": (("Other",), ("Other",))})
