"""Stage A, the vqgan: pixels -> VQ latents, what Stage B is trained to make.

Shape suffixes: B batch, C channels, H height, W width; pixels_BHWC is uint8 RGB.
Latents are as Stage A's last batch norm leaves them, about mean 0 and deviation 1. Stage B is trained on them divided
by 0.43 (Stability-AI/StableCascade, modules/stage_a.py and train/train_b.py); published configs have the 0.3764 of
Wuerstchen v2. So that this choice stays with the trainer, SCALE is 1 and stands in every file of latents.

Kind: actor.
"""

from pathlib import Path

import numpy as np
import torch

from sote.cluster.devices import Device
from sote.cluster.errors import WeightsError
from sote.data.encode import DTYPES, Fits, Numbers, Pixels, sha256_of
from sote.data.pretrained import check_tensors, exact_float32, needed, pick_device, read_json, read_safetensors
from sote.data.vqgan_net import Config, Vqgan

SUBFOLDER = "vqgan"  # of a StableCascadeDecoderPipeline's folder
CLASS = "PaellaVQModel"
STEM = "diffusion_pytorch_model"  # diffusers' name of weights
VARIANTS = ("", ".bf16", ".fp16")
SCALE = 1.0  # what latents are multiplied with


class StageA:
    """A net of Stage A that encodes. It computes in float32 and rounds to `dtype` at the end."""

    def __init__(self, net: Vqgan, *, dtype: str, device: Device | str | None = None) -> None:
        self.scale = SCALE
        self.device = pick_device(device)
        self.dtype = DTYPES[dtype]
        # 2.2 kB of activations for each pixel (measured on the published net): 2.3 GB for a picture of 1024 x 1024
        self._fits = Fits(rows=1) if self.device.type == "cpu" else Fits()
        self._net = net.eval().requires_grad_(False).to(self.device)

    def encode(self, pixels_BHWC: Pixels) -> torch.Tensor:
        """uint8 RGB [B,H,W,3], H and W multiples of 4 -> latents [B,4,H/4,W/4] on the CPU, of the dtype asked for.

        They are not quantised and not scaled (SCALE). Numbers that overflow are the caller's to find.
        """
        return torch.from_numpy(self._fits.run(self._latents, pixels_BHWC)).to(self.dtype)

    @torch.inference_mode()
    def _latents(self, pixels_BHWC: Pixels) -> Numbers:
        pixels_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_BHWC)).to(self.device).permute(0, 3, 1, 2)
        with exact_float32():
            latents_BCHW = self._net.encode(pixels_BCHW.float() / 255)
        return latents_BCHW.cpu().numpy()


class VqganEncoder(StageA):
    """Stage A of one folder, ready to encode. `folder` holds it, or is a decoder's folder with `vqgan/` in it.

    Raises WeightsError in one line.
    """

    def __init__(self, folder: Path, *, dtype: str, device: Device | str | None = None) -> None:
        folder = folder / SUBFOLDER if (folder / SUBFOLDER).is_dir() else folder
        config = read_json(needed(folder, "config.json")[0])
        if config.get("_class_name") != CLASS:
            raise WeightsError(f"{folder}: is of the class {config.get('_class_name')}, Stage A is a {CLASS}")
        file = _weights(folder)
        tensors = read_safetensors(file)
        with torch.device("meta"):
            net = Vqgan(Config.of(config))
        check_tensors(file, tensors, {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()})
        kept = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        net.load_state_dict(kept, strict=True, assign=True)
        self.sha256 = sha256_of(file)
        super().__init__(net, dtype=dtype, device=device)


def _weights(folder: Path) -> Path:
    for variant in VARIANTS:
        if (path := folder / f"{STEM}{variant}.safetensors").is_file():
            return path
    raise WeightsError(f"{folder}: has no {STEM}.safetensors; it should hold the weights of Stage A")
