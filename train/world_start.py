"""How the small world's Stage B begins: as the identity, which is what it must be where all is noise.

A net that predicts noise says what picture it sees as input less noise, over signal. Near time 1 that is a small
difference of large numbers: an error of a thousandth in handing the input through is larger there than the picture. A
wide net learns to hand it through; a narrow one hardly, for norms without weights take away how long each cell's vector
is, and 16 numbers of noise vary in length by 18 %. So a fresh net is set such that a fixed vector lies beside the input
in every cell, which keeps the norms nearly constant, and that the first block of the last level hands the input on:
gelu(u) - gelu(-u) = u. What else is drawn acts beside that.

Shape suffixes: B batch, C channels, D numbers of a cell of the input, H height, W width.

Kind: actor.
"""

from typing import Any

import torch
from diffusers.models.unets.unet_stable_cascade import SDCascadeResBlock, SDCascadeTimestepBlock, StableCascadeUNet
from torch import Tensor, nn

BESIDE_INPUT, BESIDE_OUTPUT = 1.5, 3.0  # how large the fixed vector is, a channel
BLOCKS = 0.3  # what blocks add at first, against torch's own beginning
SAMPLES, CELLS = 16, 16  # noise that the last layer's gain is measured on; cells of a side


@torch.no_grad()
def begin(net: StableCascadeUNet) -> None:
    """Set the weights of a fresh Stage B as above. Draws from torch's generator."""
    first, last = net.embedding[1], net.clf[1]
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    width, inputs = first.weight.shape[:2]
    basis_CD, fixed_C = _basis(width, inputs)
    first.weight.copy_(basis_CD[:, :, None, None])
    first.bias.copy_(BESIDE_INPUT * fixed_C)
    _quiet(net)
    outside_CC = torch.eye(width) - basis_CD @ basis_CD.T
    for layer in _writers(net):
        _keep_to(layer, outside_CC)
    hands_on = net.up_blocks[-1][0]  # type: ignore[index]
    assert isinstance(hands_on, SDCascadeResBlock)
    _hand_on(hands_on, basis_CD, fixed_C)
    last.weight.copy_(basis_CD.T[:, :, None, None])
    last.bias.zero_()
    last.weight.mul_(_gain(net))


def _basis(width: int, inputs: int) -> tuple[Tensor, Tensor]:
    """[C,D] with orthonormal columns, and [C] of +-1, all at right angles to each other and without a mean."""
    fixed_C = torch.ones(width)
    fixed_C[width // 2 :] = -1
    given_C2 = torch.stack([torch.ones(width), fixed_C], 1)
    whole, _ = torch.linalg.qr(torch.cat([given_C2, torch.randn(width, inputs)], 1))
    return whole[:, 2:], fixed_C


def _quiet(net: StableCascadeUNet) -> None:
    """Time changes nothing at first, blocks little."""
    for module in net.modules():
        if isinstance(module, SDCascadeTimestepBlock):
            for child in module.children():
                assert isinstance(child, nn.Linear)
                child.weight.zero_()
                child.bias.zero_()
        elif isinstance(module, SDCascadeResBlock):
            last = module.channelwise[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(BLOCKS)
            last.bias.zero_()


def _writers(net: StableCascadeUNet) -> list[nn.Module]:
    """The layers that add to the channels of the first and last level."""
    up = net.up_upscalers[-2][1]  # type: ignore[index]
    found: list[nn.Module] = [up, net.effnet_mapper[2], net.pixels_mapper[2]]
    for block in (*net.down_blocks[0], *net.up_blocks[-1]):  # type: ignore[misc]
        if isinstance(block, SDCascadeResBlock):
            found.append(block.channelwise[-1])
    return found


def _keep_to(layer: nn.Module, outside_CC: Tensor) -> None:
    """Let a layer write only beside the input."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    if isinstance(layer, nn.ConvTranspose2d):
        weight.copy_(torch.einsum("oc,ichw->iohw", outside_CC, weight))
    else:
        weight.copy_(torch.einsum("oc,c...->o...", outside_CC, weight))
    bias.copy_(outside_CC @ bias)


def _hand_on(block: SDCascadeResBlock, basis_CD: Tensor, fixed_C: Tensor) -> None:
    """The block's first units carry what came down at its level, each number as two with opposite signs."""
    inner, outer = block.channelwise[0], block.channelwise[-1]
    assert isinstance(inner, nn.Linear)
    assert isinstance(outer, nn.Linear)
    width, count = basis_CD.shape
    for start, sign in ((0, 1.0), (count, -1.0)):
        rows = slice(start, start + count)
        inner.weight[rows] = 0.0
        inner.weight[rows, width:] = sign * basis_CD.T
        inner.bias[rows] = 0.0
        outer.weight[:, rows] = sign * basis_CD
    outer.bias.add_(BESIDE_OUTPUT * fixed_C)


def _gain(net: StableCascadeUNet) -> float:
    """What the output for noise must be multiplied with to be that noise, by least squares."""
    shape: Any = net.config
    noise_BCHW = torch.randn(SAMPLES, shape.in_channels, CELLS, CELLS)
    made_BCHW = net(
        sample=noise_BCHW,
        timestep_ratio=torch.ones(SAMPLES),
        clip_text_pooled=torch.zeros(SAMPLES, 1, shape.clip_text_pooled_in_channels),
        effnet=torch.randn(SAMPLES, shape.effnet_in_channels, 6, 6),
    ).sample
    return float((made_BCHW * noise_BCHW).sum() / made_BCHW.square().sum())
