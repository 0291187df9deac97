"""The parameters of a picture as text, in the form that AUTOMATIC1111's web UI writes and reads back.

    <prompt>
    Negative prompt: <negative prompt>
    Steps: 30, Sampler: DPM++ 2M, Schedule type: SGM Uniform, CFG scale: 7, Seed: 1, Size: 1024x1536, ...

Source: names, order and quoting as AUTOMATIC1111 (infotext_utils.py, processing.py) and SD.Next write them.

Kind: pure.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final

from sote.serve.names import sampler_named, scheduler_named
from sote.serve.schedules import SAMPLERS, SCHEDULERS
from sote.serve.settings import Settings

PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # infotext_utils.py, re_param
SIZE = re.compile(r"(\d{1,9})x(\d{1,9})", re.ASCII)
FEWEST = 3  # pairs in a last line that is taken for parameters and not for prompt (infotext_utils.py)
NEGATIVE = "Negative prompt:"

# Name in the text -> field of a request, and how its value is read
FIELDS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "Steps": ("first_stage_steps", int),
    "Sampler": ("sampler", sampler_named),
    "Schedule type": ("scheduler", scheduler_named),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Guidance rescale": ("guidance_rescale", float),
    "Shift": ("shift", float),
    "Compression": ("compression", float),
    "Profile": ("profile", str),
    "Emphasis": ("weights", lambda said: said != "None"),
    "Decoder steps": ("second_stage_steps", int),
    "Decoder sampler": ("decoder_sampler", sampler_named),
    "Decoder schedule type": ("decoder_scheduler", scheduler_named),
    "Decoder CFG scale": ("second_stage_guidance_scale", float),
    "Decoder shift": ("decoder_shift", float),
}


def text(settings: Settings, *, index: int, model: str, version: str, model_hash: str | None = None) -> str:
    """The parameters of picture `index` of the request, made by the weights `model` and this project's `version`.

    `model_hash` is the first ten digits of the sha256 of the prior's file, where it is known.
    """
    prior, decoder = settings.prior, settings.decoder
    pairs: dict[str, object] = {
        "Steps": prior.steps,
        "Sampler": SAMPLERS[prior.sampler],
        "Schedule type": SCHEDULERS[prior.scheduler],
        "CFG scale": _number(prior.guidance),
        "Seed": settings.image_seed(index),
        "Size": f"{settings.width}x{settings.height}",
        "Model hash": model_hash,
        "Model": model,
        "Denoising strength": _number(settings.strength) if settings.start is not None else None,
        "Guidance rescale": _number(prior.rescale) if prior.rescale else None,
        "Emphasis": None if settings.is_weighted else "None",  # processing.py; it writes none for its usual way
        "Variations": len(settings.variations) or None,
        "Profile": settings.profile,
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
        lines.append(f"{NEGATIVE} {settings.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in pairs.items() if value is not None))
    return "\n".join(lines)


def read(words: str) -> dict[str, str]:
    """The pairs of such a text, by the names in it, as AUTOMATIC1111 reads it: `Prompt`, `Negative prompt`, `Steps`,
    ..., and a size in two, `Size-1` and `Size-2`. Takes any text: what has no parameters is all prompt.
    """
    *lines, last = words.strip().split("\n")
    pairs = PAIR.findall(last)
    if len(pairs) < FEWEST:
        lines, pairs = [*lines, last], []
    prompt, negative = _prompts(lines)
    found = {"Prompt": prompt, "Negative prompt": negative}
    for name, value in pairs:
        value = _unquoted(value)
        size = SIZE.fullmatch(value)
        if size:
            found |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            found[name] = value
    return found


def request_of(found: dict[str, str]) -> dict[str, Any]:
    """What `read` found as fields of a request to /v1/generate. Values that are none of ours are left out.

    Pictures to start from or to vary are not in the text, and so neither is how much of them was kept.
    """
    request: dict[str, Any] = {"prompt": found["Prompt"], "negative_prompt": found["Negative prompt"]}
    for name, (field, reader) in FIELDS.items():
        try:
            request[field] = reader(found[name])
        except (KeyError, ValueError):  # not there, or another program's sampler
            continue
    if {"Size-1", "Size-2"} <= found.keys():
        request["image_size"] = {"width": int(found["Size-1"]), "height": int(found["Size-2"])}
    return request


def _prompts(lines: list[str]) -> tuple[str, str]:
    """Prompt and negative prompt; the negative's begins at the first line that says so."""
    stripped = [line.strip() for line in lines]
    start = next((place for place, line in enumerate(stripped) if line.startswith(NEGATIVE)), len(stripped))
    negative = [line.removeprefix(NEGATIVE).strip() for line in stripped[start:]]
    return "\n".join(stripped[:start]), "\n".join(negative)


def _number(value: float) -> str:
    """In full, without a trailing .0, as the web UI writes whole numbers."""
    return repr(float(value)).removesuffix(".0")


def _quoted(value: object) -> str:
    """As JSON where the value has a mark that would end it."""
    plain = str(value)
    return json.dumps(plain, ensure_ascii=False) if any(mark in plain for mark in ",:\n") else plain


def _unquoted(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(json.loads(value))
    except ValueError:  # quoted by somebody else, in another way
        return value
