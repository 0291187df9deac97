"""AUTOMATIC1111's routes that say what there is: samplers, the model, options, what a file's parameters are.

User interfaces ask for some lists at their start that are always empty here.

Source: AUTOMATIC1111 modules/api/api.py (facts only).

Kind: wiring.
"""

import asyncio
import base64
import io
import os
import re
import struct
from importlib import metadata
from typing import Any, Final

from fastapi import APIRouter, Request
from PIL import Image, UnidentifiedImageError

from sote.cluster.errors import RequestError
from sote.serve import parameters, pictures
from sote.serve.about import About
from sote.serve.access import visitor_of
from sote.serve.answers import documented
from sote.serve.context import Context
from sote.serve.names import MORE_SAMPLERS
from sote.serve.schedules import KARRAS_RHO, SAMPLERS, SCHEDULERS, Sampler
from sote.serve.schema_a1111 import (
    Memory,
    ModelItem,
    Options,
    Overrides,
    PictureInfo,
    PictureInfoRequest,
    SamplerItem,
    SchedulerItem,
)

EMPTY: Final[dict[str, Any]] = {
    "cmd-flags": {},
    "embeddings": {"loaded": {}, "skipped": {}},
    "face-restorers": [],
    "hypernetworks": [],
    "latent-upscale-modes": [],
    "loras": [],
    "prompt-styles": [],
    "realesrgan-models": [],
    "script-info": [],
    "scripts": {"txt2img": [], "img2img": []},
    "sd-vae": [],
    "upscalers": [],
}
NOTHING_TO_DO: Final = ("refresh-checkpoints", "refresh-loras", "refresh-vae")
TITLE = re.compile(r"(?P<name>.*?)(\.safetensors|\.ckpt)?( \[(?P<hash>[0-9a-f]+)\])?", re.DOTALL)
HASH_DIGITS = 10  # of sha256, as AUTOMATIC1111 writes a model's hash
MAX_CHOOSERS = 10_000  # visitors whose options are kept; those of the first go first
# Everything that Pillow raises for files that are broken on purpose
BROKEN: Final = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
)


class Chosen:
    """The model's name as clients choose it, and the options that each visitor set."""

    def __init__(self, about: About) -> None:
        self.about = about
        self._formats: dict[str, str] = {}

    @property
    def title(self) -> str:
        """`name [hash]`; only the name until the hash is known."""
        found = self.about.model_hash
        return f"{self.about.name} [{found[:HASH_DIGITS]}]" if found else self.about.name

    def check(self, asked: Overrides, *, field: str = "sd_model_checkpoint") -> None:
        """Raises RequestError for a model that is not here: by its name, title, or the beginning of its hash."""
        name = asked.sd_model_checkpoint
        if not name:
            return
        said, known = TITLE.fullmatch(name), self.about.model_hash or ""
        is_hash = len(name) >= HASH_DIGITS and known.startswith(name)
        if said is None or not (said["name"] == self.about.name or is_hash):
            raise RequestError(f"{field}: {name[:200]!r} is not here; this server has {self.about.name!r}")

    def choose(self, visitor: str, asked: Overrides) -> None:
        """Keep what a visitor set."""
        if asked.samples_format is not None:
            if len(self._formats) >= MAX_CHOOSERS and visitor not in self._formats:
                del self._formats[next(iter(self._formats))]
            self._formats[visitor] = asked.samples_format

    def samples_format(self, visitor: str) -> str | None:
        return self._formats.get(visitor)

    def model_info(self) -> dict[str, Any]:
        """What is said about the model beside pictures."""
        return {
            "sd_model_name": self.about.name,
            "sd_model_hash": (self.about.model_hash or "")[:HASH_DIGITS] or None,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "version": f"sote {metadata.version('sote')}",
        }


def fact_routes(context: Context, chosen: Chosen) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/samplers", summary="Samplers; their other names are taken too")
    async def samplers() -> list[SamplerItem]:
        return [SamplerItem(name=label, aliases=_aliases(short)) for short, label in SAMPLERS.items()]

    @router.get("/schedulers", summary="Step grids")
    async def schedulers() -> list[SchedulerItem]:
        return [
            SchedulerItem(name=short, label=label, default_rho=KARRAS_RHO if short == "karras" else -1.0)
            for short, label in SCHEDULERS.items()
        ]

    @router.get("/sd-models", summary="The model")
    async def models() -> list[ModelItem]:
        context.about.hashes.start()
        found, name = context.about.model_hash, context.about.name
        item = ModelItem(title=chosen.title, model_name=name, hash=None, sha256=found, filename=name)
        return [item.model_copy(update={"hash": found[:HASH_DIGITS]}) if found else item]

    @router.get("/options", summary="The options that have a meaning here, as the visitor set them")
    async def options(request: Request) -> Options:
        found = chosen.samples_format(visitor_of(request).name) or context.recipe.defaults.output_format
        short = (context.about.model_hash or "")[:HASH_DIGITS]
        return Options(sd_model_checkpoint=chosen.title, sd_checkpoint_hash=short, samples_format=found)

    @router.post("/options", summary="Set samples_format for oneself", responses=documented("webui", 422))
    async def set_options(asked: Overrides, request: Request) -> dict[str, Any]:
        chosen.check(asked)
        chosen.choose(visitor_of(request).name, asked)
        return {}

    @router.post("/png-info", summary="The parameters inside of a file", responses=documented("webui", 422))
    async def png_info(asked: PictureInfoRequest) -> PictureInfo:
        return await asyncio.to_thread(_info_of, asked.image)

    @router.get("/memory", summary="Memory of the machine that answers")
    async def memory() -> Memory:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
        return Memory(ram={"free": free, "used": total - free, "total": total})

    for name, value in EMPTY.items():
        router.add_api_route(f"/{name}", _always(value), methods=["GET"], summary="Empty here", operation_id=name)
    for name in NOTHING_TO_DO:
        router.add_api_route(
            f"/{name}", _always({}), methods=["POST"], summary="Nothing is to be done here", operation_id=name
        )
    return router


def _aliases(short: Sampler) -> list[str]:
    return [short, *(name for name, meant in MORE_SAMPLERS.items() if meant == short)]


def _always(value: Any) -> Any:
    async def answer() -> dict[str, Any] | list[Any]:
        found: dict[str, Any] | list[Any] = value
        return found

    return answer


def _info_of(text: str) -> PictureInfo:
    """Raises RequestError: no picture that can be read."""
    try:
        data = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text.strip(), validate=True)
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        info = pictures.comment_of(image) or ""
    except BROKEN:
        raise RequestError("image: no PNG, JPEG or WebP picture that can be read") from None
    items = {
        name: value
        for name, value in image.info.items()
        if isinstance(name, str) and name != "parameters" and isinstance(value, str)
    }
    found = parameters.read(info)
    return PictureInfo(info=info, items=items, parameters=found, request=parameters.request_of(found))
