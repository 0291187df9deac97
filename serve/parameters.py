"""The parameters of a picture as text, in the form that AUTOMATIC1111's web UI writes and reads back.

    <prompt>
    Negative prompt: <negative prompt>
    Steps: 30, Sampler: DPM++ 2M, Schedule type: SGM Uniform, CFG scale: 7, Seed: 1, Size: 1024x1536, ...

Source: names and order as AUTOMATIC1111 and SD.Next write them into their pictures.

Kind: pure.
"""

import json

from sote.serve.schedules import SAMPLERS, SCHEDULERS
from sote.serve.schema import Settings


def text(settings: Settings, *, index: int, model: str, version: str) -> str:
    """The parameters of picture `index` of the request, made by the weights `model` and this project's `version`."""
    prior, decoder = settings.prior, settings.decoder
    pairs = {
        "Steps": prior.steps,
        "Sampler": SAMPLERS[prior.sampler],
        "Schedule type": SCHEDULERS[prior.scheduler],
        "CFG scale": _number(prior.guidance),
        "Seed": settings.image_seed(index),
        "Size": f"{settings.width}x{settings.height}",
        "Model": model,
        "Shift": _number(prior.shift),
        "Compression": _number(settings.compression),
        "Decoder steps": decoder.steps,
        "Decoder sampler": SAMPLERS[decoder.sampler],
        "Decoder schedule type": SCHEDULERS[decoder.scheduler],
        "Decoder CFG scale": _number(decoder.guidance),
        "Decoder shift": _number(decoder.shift),
        "Decoder seed": settings.decoder_seed(index),
        "Version": f"sote {version}",
    }
    lines = [settings.prompt]
    if settings.negative_prompt:
        lines.append(f"Negative prompt: {settings.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in pairs.items()))
    return "\n".join(lines)


def _number(value: float) -> str:
    """Without a trailing .0, as the web UI writes whole numbers."""
    return f"{value:g}"


def _quoted(value: object) -> str:
    """As JSON where the value has a mark that would end it."""
    plain = str(value)
    return json.dumps(plain, ensure_ascii=False) if any(mark in plain for mark in ",:\n") else plain
