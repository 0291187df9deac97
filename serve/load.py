"""Loads the models of the cascade from pipeline folders, class by class.

diffusers' Stable Cascade pipelines are deprecated and are not used: only its UNet, Stage A and transformers' CLIP.

Kind: actor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from sote.cluster import weights
from sote.cluster.errors import CheckpointError
from sote.serve.recipe import DType, ModelPart
from sote.train import folders

MASK_KEY, MASKED = "text_mask", "masked"  # safetensors metadata of a prior: how its text encoder was called


class CascadeUNet(StableCascadeUNet):
    """StableCascadeUNet whose time embedding is made in float32 whatever the weights are.

    diffusers makes it in the dtype of its input, and r * 10000 in bfloat16 has steps of up to 64.
    """

    def get_timestep_ratio_embedding(self, timestep_ratio: torch.Tensor, max_positions: int = 10_000) -> torch.Tensor:
        make: Callable[..., torch.Tensor] = super().get_timestep_ratio_embedding
        return make(timestep_ratio.float(), max_positions).to(self.dtype)


@dataclass(frozen=True)
class PriorWeights:
    """Stage C with its text encoder. `mask_padding`: pad tokens are hidden from the text encoder.

    `windows`: how many windows of 75 tokens a text embedding is made of.
    """

    unet: CascadeUNet
    text_encoder: Any
    tokenizer: Any
    mask_padding: bool
    windows: int = 1


@dataclass(frozen=True)
class DecoderWeights:
    """Stage B and Stage A; `vqgan_scale` is what VQ latents are multiplied with before Stage A."""

    unet: CascadeUNet
    vqgan: Any
    vqgan_scale: float


def load_prior(part: ModelPart, *, device: torch.device) -> PriorWeights:
    """Load what `part.prior` names. Raises WeightsError or CheckpointError where that is not Stage C."""
    field, dtype = "model.prior", dtype_for(part.prior_dtype, device)
    folder = weights.locate(part.prior, field=field)
    folders.check_prior(folder, field=field)
    unet = _unet(folder / "prior", field=field, dtype=dtype)
    variant = folders.variant(folder / "text_encoder")
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers draws one for each load
    text_encoder = CLIPTextModelWithProjection.from_pretrained(
        folder / "text_encoder", dtype=dtype, local_files_only=True, variant=variant
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    masked = part.mask_padding if part.mask_padding is not None else _was_masked(folder / "prior")
    return PriorWeights(_ready(unet, device), _ready(text_encoder, device), tokenizer, masked)


def load_decoder(part: ModelPart, *, device: torch.device) -> DecoderWeights:
    """Load what `part.decoder` names. Raises WeightsError or CheckpointError where that is not Stage B and A."""
    field, dtype = "model.decoder", dtype_for(part.decoder_dtype, device)
    folder = weights.locate(part.decoder, field=field)
    folders.check_decoder(folder, field=field)
    unet = _unet(folder / "decoder", field=field, dtype=dtype)
    variant = folders.variant(folder / "vqgan")
    # Stage A is 1 % of the parameters: float32 costs little and keeps smooth areas smooth
    vqgan = PaellaVQModel.from_pretrained(folder / "vqgan", local_files_only=True, variant=variant)
    return DecoderWeights(_ready(unet, device), _ready(vqgan.float(), device), part.vqgan_scale)


def dtype_for(name: DType, device: torch.device) -> torch.dtype:
    """The dtype that a recipe's `name` means on `device`."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    is_able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_able else torch.float32


def device_here() -> torch.device:
    """The GPU if this process can see one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _unet(folder: Path, *, field: str, dtype: torch.dtype) -> CascadeUNet:
    """The UNet of `folder`; every tensor must be there, with the shape that its config gives."""
    with torch.device("meta"):
        model = CascadeUNet.from_config(CascadeUNet.load_config(folder, local_files_only=True))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: tensor.shape for name, tensor in folders.header(folders.weights(folder)).tensors.items()}
    for name in sorted(wanted.keys() | stored.keys()):
        if wanted.get(name) != stored.get(name):
            raise CheckpointError(
                f"{field}: {folder}: tensor {name} has shape {stored.get(name, 'missing')} in the weights and "
                f"{wanted.get(name, 'none')} by config.json; the two are not of one model"
            )
    return CascadeUNet.from_pretrained(  # type: ignore[no-any-return]
        folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, variant=folders.variant(folder)
    )


def _was_masked(folder: Path) -> bool:
    return folders.header(folders.weights(folder)).metadata.get(MASK_KEY, MASKED) == MASKED


def _ready(model: Any, device: torch.device) -> Any:
    return model.to(device).eval().requires_grad_(False)
