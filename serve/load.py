"""Loads the models of the cascade, whatever layout their files have (train/modelfile.py).

Kind: actor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sote.cluster.errors import WeightsError
from sote.data.encode import Encoder
from sote.serve.recipe import DType, ModelPart
from sote.serve.vision import Vision
from sote.train import modelfile, models, text
from sote.train.source import Source
from sote.train.unet import CascadeUNet

# safetensors metadata of a prior: how its text encoder was called at training
MASK_KEY, MASKED = "text_mask", "masked"
TOKENS_KEY, TOKENS = "text_tokens", (77, 152, 227)


@dataclass(frozen=True)
class PriorWeights:
    """Stage C with its text encoder. `mask_padding`: pad tokens are hidden from the text encoder; `windows`: of 75
    tokens, that a prompt may fill. `encoder` is for pictures to start from, `image_encoder` for variations."""

    unet: CascadeUNet
    text_encoder: Any
    tokenizer: Any
    mask_padding: bool
    windows: int
    encoder: Encoder | None = None
    image_encoder: Vision | None = None


@dataclass(frozen=True)
class DecoderWeights:
    """Stage B and Stage A; `vqgan_scale` is what VQ latents are multiplied with before Stage A."""

    unet: CascadeUNet
    vqgan: Any
    vqgan_scale: float


def load_prior(part: ModelPart, *, device: torch.device) -> PriorWeights:
    """Load what `part.prior` names. Raises WeightsError or CheckpointError where that is not Stage C."""
    field, dtype = "model.prior", dtype_for(part.prior_dtype, device)
    found = modelfile.prior(part.prior, field=field, text_encoder=part.text_encoder)
    said = found.unet.metadata
    masked = part.mask_padding if part.mask_padding is not None else said.get(MASK_KEY, MASKED) == MASKED
    tokens = part.text_tokens if part.text_tokens is not None else _tokens(said, field=f"{found.unet.path}: {field}")
    return PriorWeights(
        unet=_ready(models.unet_model(found.unet, dtype=dtype, device=device)),
        text_encoder=_ready(models.text_model(found.text_encoder, dtype=dtype, device=device)),
        tokenizer=models.tokenizer(found.tokenizer),
        mask_padding=masked,
        windows=text.windows_of(tokens),
        encoder=_encoder(part, device),
        image_encoder=_image_encoder(part, found.unet, dtype, device),
    )


def load_decoder(part: ModelPart, *, device: torch.device) -> DecoderWeights:
    """Load what `part.decoder` names. Raises WeightsError or CheckpointError where that is not Stage B and A."""
    field, dtype = "model.decoder", dtype_for(part.decoder_dtype, device)
    found = modelfile.decoder(part.decoder, field=field)
    vqgan = modelfile.needed_vqgan(found, field=field)
    return DecoderWeights(
        unet=_ready(models.unet_model(found.unet, dtype=dtype, device=device)),
        # Stage A is 1 % of the parameters: float32 costs little and keeps smooth areas smooth
        vqgan=_ready(models.vqgan_model(vqgan, dtype=torch.float32, device=device)),
        vqgan_scale=part.vqgan_scale,
    )


def _encoder(part: ModelPart, device: torch.device) -> Encoder | None:
    """The EfficientNet encoder that is named, or lies in or beside the prior."""
    found = modelfile.encoder_of(part.encoder, prior=part.prior)
    if found is None:
        return None
    return Encoder(found.path, dtype="float32", device=str(device), prefix=found.prefix)


def _image_encoder(part: ModelPart, unet: Source, dtype: torch.dtype, device: torch.device) -> Vision | None:
    """The image encoder that is named, or lies in or beside the prior. Raises WeightsError: one of another width."""
    found = modelfile.image_encoder_of(part.image_encoder, prior=part.prior)
    if found is None:
        return None
    takes, gives = unet.config["clip_image_in_channels"], found.config["projection_dim"]
    if takes != gives:
        raise WeightsError(
            f"{found.path}: model.image_encoder: the prior takes pictures as {takes} numbers, this image encoder gives "
            f"{gives}; name the one that belongs to this prior"
        )
    return Vision(found, dtype=dtype, device=device)


def dtype_for(name: DType, device: torch.device) -> torch.dtype:
    """The dtype that a recipe's `name` means on `device`."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    is_able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_able else torch.float32


def device_here() -> torch.device:
    """The GPU if this process can see one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _tokens(metadata: Mapping[str, str], *, field: str) -> int:
    said = metadata.get(TOKENS_KEY, str(TOKENS[0]))
    if said not in map(str, TOKENS):
        raise WeightsError(f"{field}: its metadata says {TOKENS_KEY} {said!r}; set model.text_tokens to 77, 152 or 227")
    return int(said)


def _ready(model: Any) -> Any:
    return model.eval().requires_grad_(False)
