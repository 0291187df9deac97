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
from sote.serve.grids import Named
from sote.serve.prior import PriorModel
from sote.serve.rows import Request, Stage
from sote.serve.settings import Latents, Settings
from sote.train import strips


class Steps:
    """The steps of the first picture of some settings, to be looked at one by one. `latents` begins with step 1.

    Raises as `PriorModel.latents` and `DecoderModel.paint`.
    """

    def __init__(self, prior: PriorModel, decoder: DecoderModel, settings: Settings) -> None:
        self._decoder, self._settings = decoder, replace(settings, images=1)
        self.latents = prior_steps(prior, settings)
        self._painted: dict[int, Image.Image] = {}

    def painted(self, step: int) -> Image.Image:
        """What the decoder makes of the latents as they stand after `step`; painted when it is first asked for."""
        if step not in self._painted:
            self._painted[step] = self._decoder.paint(self.latents[step - 1], self._settings)[0][0].image
        return self._painted[step]

    def at(self, step: int) -> dict[str, list[Named]]:
        """One step of Stage C as a row of a grid: its latents, and what the decoder makes of them."""
        return {"": [("latents", look(self.latents[step - 1])), ("painted", self.painted(step))]}

    def rows(self, *, most: int) -> dict[str, list[Named]]:
        """The rows of a grid: at most so many steps of Stage C as latents and painted, and all of Stage B."""
        shown = strips.spread(range(1, len(self.latents) + 1), most)
        decoded = decoder_steps(self._decoder, self.latents[-1], self._settings)
        return {
            "Stage C, its latents": [(f"step {step}", look(self.latents[step - 1])) for step in shown],
            "Stage C, painted": [(f"step {step}", self.painted(step)) for step in shown],
            "Stage B": [(f"step {step}", image) for step, image in enumerate(decoded, start=1)],
        }


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
