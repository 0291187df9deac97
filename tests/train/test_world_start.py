"""The small world's Stage B before training hands noise through, whatever it is told beside."""

import pytest
import torch

from sote.train import world_models, world_start


@pytest.mark.parametrize("configs", [world_models.SMALL, world_models.LARGE], ids=["small", "large"])
def test_a_fresh_stage_b_finds_noise_in_noise(configs: world_models.Configs) -> None:
    torch.manual_seed(7)
    net = world_models.unet(configs.decoder).eval()
    pooled = configs.text["projection_dim"]
    before = _error(net, pooled)
    world_start.begin(net)
    assert _error(net, pooled) < 0.01 < before


@torch.no_grad()
def _error(net: torch.nn.Module, pooled: int) -> float:
    """The mean square of what is missed of noise of variance 1, at three times."""
    noise_BCHW = torch.randn(6, 4, 64, 64)
    found_BCHW = net(
        sample=noise_BCHW,
        timestep_ratio=torch.tensor([1.0, 1.0, 0.6, 0.6, 0.1, 0.1]),
        clip_text_pooled=torch.randn(6, 1, pooled),
        effnet=torch.randn(6, 16, 6, 6),
    ).sample
    return float((found_BCHW - noise_BCHW).square().mean())
