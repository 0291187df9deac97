"""What serve.py measures: the cascade with random weights, and diffusers' own pipelines over the same tensors."""

import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from sote.data import vqgan_net
from sote.serve.load import DecoderWeights, PriorWeights
from sote.serve.settings import Settings
from sote.train import published
from sote.train.unet import CascadeUNet, Config


@dataclass(frozen=True)
class Size:
    """What is built, what is asked for, and how long it is looked at."""

    prior: dict[str, Any]
    decoder: dict[str, Any]
    text: dict[str, Any]
    vqgan: dict[str, Any]
    dtype: torch.dtype
    side: int
    steps: tuple[int, int]
    slots: int
    lone: int  # pictures
    rounds: int  # pictures of each client
    ceiling_side: int


# The seed's defaults but for the size, 1024x1024 as in the figures that others give
FULL = Size(
    prior=published.PRIOR,
    decoder=published.DECODER,
    text=published.TEXT | {"hidden_act": "gelu"},
    vqgan={},
    dtype=torch.bfloat16,
    side=1024,
    steps=(30, 10),
    slots=16,
    lone=5,
    rounds=3,
    ceiling_side=8192,
)
SMALL = Size(
    prior=published.PRIOR
    | {"conditioning_dim": 128, "block_out_channels": (128, 128), "num_attention_heads": (4, 4)}
    | {"down_num_layers_per_block": (2, 4), "up_num_layers_per_block": (4, 2)}
    | {"clip_text_in_channels": 64, "clip_text_pooled_in_channels": 64, "clip_image_in_channels": 64},
    decoder=published.DECODER
    | {"conditioning_dim": 64, "block_out_channels": (16, 32, 64, 64), "num_attention_heads": (0, 0, 2, 2)}
    | {"down_num_layers_per_block": (1, 2, 4, 2), "up_num_layers_per_block": (2, 4, 2, 1)}
    | {"clip_text_pooled_in_channels": 64},
    text=published.TEXT
    | {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"projection_dim": 64, "hidden_act": "gelu"},
    vqgan={"embed_dim": 32, "bottleneck_blocks": 2},
    dtype=torch.float32,
    side=256,
    steps=(10, 5),
    slots=8,
    lone=5,
    rounds=2,
    ceiling_side=1024,
)


class Numbers:
    """In place of CLIP's tokenizer where its vocabulary is not there: a number for each word."""

    bos_token_id, eos_token_id = 49406, 49407

    def __call__(self, captions: list[str], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[[zlib.crc32(w.encode()) % 49406 for w in each.split()] for each in captions])


def built(size: Size, device: torch.device, left_out: list[str]) -> tuple[PriorWeights, DecoderWeights]:
    """Both models with random weights, on the device."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from sote.cluster.errors import WeightsError
    from sote.train import models

    def ready(make: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                return make().eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)

    torch.manual_seed(0)
    try:
        tokenizer: Any = models.tokenizer(None)
    except WeightsError:
        tokenizer = Numbers()
        left_out.append("CLIP's tokenizer")
    prior = PriorWeights(
        unet=ready(lambda: CascadeUNet(Config.of(size.prior)), size.dtype),
        text_encoder=ready(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**size.text)), size.dtype),
        tokenizer=tokenizer,
        mask_padding=True,
        windows=1,
    )
    unet = ready(lambda: CascadeUNet(Config.of(size.decoder)), size.dtype)
    vqgan = ready(lambda: vqgan_net.Vqgan(vqgan_net.Config.of(size.vqgan)), torch.float32)
    return prior, DecoderWeights(unet=unet, vqgan=vqgan, vqgan_scale=0.43)


@dataclass(frozen=True)
class Theirs:
    """diffusers' prior alone, and all of it to a PNG."""

    latents: Callable[[Settings], object]
    picture: Callable[[Settings], object]


def theirs(size: Size, prior: PriorWeights, decoder: DecoderWeights, left_out: list[str]) -> Theirs | None:
    """diffusers' two pipelines over the same tensors, as its combined pipeline calls them; None where it is not."""
    if importlib.util.find_spec("diffusers") is None or isinstance(prior.tokenizer, Numbers):
        left_out.append("diffusers")
        return None
    import numpy as np
    from diffusers import DDPMWuerstchenScheduler, StableCascadeDecoderPipeline, StableCascadePriorPipeline
    from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    from sote.serve.pictures import encode

    def same(model: nn.Module, make: Callable[[], nn.Module]) -> Any:
        with torch.device("meta"):
            found = make()
        found.load_state_dict(model.state_dict(), assign=True)
        return found.eval().requires_grad_(False)

    text = {"tokenizer": prior.tokenizer, "text_encoder": prior.text_encoder}
    first = StableCascadePriorPipeline(
        prior=same(prior.unet, lambda: StableCascadeUNet(**size.prior)), scheduler=DDPMWuerstchenScheduler(), **text
    )
    # Its Stage A must have the dtype of Stage B
    vqgan = same(decoder.vqgan, lambda: PaellaVQModel(**size.vqgan, scale_factor=0.43)).to(size.dtype)
    unet = same(decoder.unet, lambda: StableCascadeUNet(**size.decoder))
    second = StableCascadeDecoderPipeline(decoder=unet, vqgan=vqgan, scheduler=DDPMWuerstchenScheduler(), **text)
    for pipeline in (first, second):
        pipeline.set_progress_bar_config(disable=True)

    def latents(settings: Settings) -> Any:
        return first(
            settings.prompt,
            negative_prompt=settings.negative_prompt,
            width=settings.width,
            height=settings.height,
            num_inference_steps=settings.prior.steps,
            guidance_scale=settings.prior.guidance,
            generator=torch.Generator().manual_seed(settings.seed),
        )

    def picture(settings: Settings) -> None:
        found = latents(settings)
        pictures = second(
            found.image_embeddings,
            prompt_embeds=found.prompt_embeds,
            prompt_embeds_pooled=found.prompt_embeds_pooled,
            num_inference_steps=settings.decoder.steps,
            guidance_scale=0.0,
        )
        encode(np.asarray(pictures.images[0]), "png", parameters=None, quality=settings.quality)

    return Theirs(lambda settings: latents(settings).image_embeddings.cpu(), picture)
