"""Every step of one picture, to be looked at: what the prior has found after each, and what the decoder has.

A server shows only as many steps as an eye can follow; here none is left out.

Suffixes: C channels, H and W cells.

Kind: actor.
"""

import io
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from sote.serve import batching, preview
from sote.serve.decoder import DecoderModel
from sote.serve.prior import PriorModel
from sote.serve.rows import Request, Stage
from sote.serve.settings import Latents, Settings


def prior_steps(prior: PriorModel, settings: Settings) -> list[Latents]:
    """The latents of the first picture as they stand after each step of the prior, each ready for the decoder.

    The last are those of the picture. Raises as `PriorModel.latents`.
    """
    settings = replace(settings, images=1)
    request = prior.request(settings)
    found = _each(prior, request)
    latents = prior.finish(request)
    request.forget()
    return [replace(latents, latents=x0_CHW[None].numpy()) for x0_CHW in found]


def decoder_steps(decoder: DecoderModel, latents: Latents, settings: Settings) -> list[Image.Image]:
    """The first picture as it stands after each step of the decoder, each through Stage A; the last is the picture.

    Raises as `DecoderModel.paint`.
    """
    settings = replace(settings, images=1)
    request = decoder.request(latents, settings)
    pictures = []
    for x0_CHW in _each(decoder, request):
        request.rows[0].x = x0_CHW.to(decoder.device)
        pictures.append(Image.fromarray(decoder.finish(request).pixels[0]))
    request.forget()
    return pictures


def look(latents: Latents) -> Image.Image:
    """A small picture of the latents themselves, in the colours that those of the published model have."""
    return Image.open(io.BytesIO(preview.jpeg(latents.latents[0], "prior")))


def _each(stage: Stage, request: Request) -> list[Tensor]:
    """What the first row's steps have found, [C, H, W] on the host, one for each step."""
    row, found = request.rows[0], list[Tensor]()

    def keep(_: int) -> None:
        if row.x0 is not None:
            found.append(row.x0.to("cpu", torch.float32, copy=True))

    batching.run(stage, request, each_step=keep)
    return [*found, row.x.to("cpu", torch.float32, copy=True)]
