import pytest
import torch
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

from sote.data.vqgan_net import Config, Vqgan

SMALL = {"levels": 2, "bottleneck_blocks": 2, "embed_dim": 32, "num_vq_embeddings": 16, "scale_factor": 0.43}
DEEPER = {"levels": 3, "bottleneck_blocks": 1, "embed_dim": 32, "num_vq_embeddings": 16}


def _theirs(config: dict[str, float]) -> PaellaVQModel:
    torch.manual_seed(0)
    net = PaellaVQModel(**config)
    for tensor in net.parameters():
        torch.nn.init.normal_(tensor, std=0.2)
    return net.eval()


@pytest.mark.parametrize("config", [SMALL, DEEPER])
def test_it_encodes_and_decodes_as_diffusers_does_with_the_same_names(config: dict[str, float]) -> None:
    theirs = _theirs(config)
    ours = Vqgan(Config.of(config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    pixels = torch.rand(2, 3, 48, 32)
    with torch.inference_mode():
        latents = ours.encode(pixels)
        torch.testing.assert_close(latents, theirs.encode(pixels).latents, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample, rtol=1e-5, atol=1e-5)


def test_the_published_net_has_the_published_tensors() -> None:
    with torch.device("meta"):
        ours, theirs = Vqgan(Config()), PaellaVQModel()
    shapes = [(name, tensor.shape) for name, tensor in ours.state_dict().items()]
    assert sorted(shapes) == sorted((name, tensor.shape) for name, tensor in theirs.state_dict().items())
    assert sum(tensor.numel() for tensor in ours.parameters()) == 18_406_894  # facts of the published file
