"""AUTOMATIC1111's API for painting: txt2img, img2img, progress, interrupt, skip.

Source: AUTOMATIC1111 modules/api/api.py, modules/processing.py (facts only).

Kind: wiring.
"""

import base64
import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from sote.cluster.errors import RequestError
from sote.serve.access import visitor_of
from sote.serve.answers import PAINTING, documented
from sote.serve.api_a1111_facts import Chosen, fact_routes
from sote.serve.context import Context
from sote.serve.schedules import SAMPLERS, SCHEDULERS
from sote.serve.schema import renamed
from sote.serve.schema_a1111 import NAMES, ImageToImage, PaintAnswer, ProgressAnswer, TextToImage
from sote.serve.service import Painting
from sote.serve.settings import Settings
from sote.serve.underway import Run, Underway, progress_of

Skip = Annotated[bool, Query(description="Leave out the preview")]
INTERRUPTED = "interrupted before it was done"


def routes(context: Context) -> APIRouter:
    """The routes, those of lists and settings among them."""
    router, underway, chosen = APIRouter(prefix="/sdapi/v1", tags=["webui"]), Underway(), Chosen(context.about)
    router.include_router(fact_routes(context, chosen))
    how: dict[str, Any] = {"responses": documented("webui", *PAINTING)}

    async def paint(asked: TextToImage, request: Request, *, job: str) -> PaintAnswer:
        visitor = visitor_of(request)
        try:
            if asked.override_settings:
                chosen.check(asked.override_settings, field="override_settings.sd_model_checkpoint")
            native = asked.native(context.recipe.defaults, samples_format=chosen.samples_format(visitor.name))
            settings = await context.desk.settings(native, visitor)
            with underway.begun(visitor.name, Run(job, settings)) as run:
                painting = await run.result(context.desk.paint(settings, visitor, watch=run.see))
        except RequestError as error:
            raise renamed(error, NAMES) from error
        images = painting.images if painting is not None and asked.send_images is not False else ()
        info = _info(asked, settings, painting, run) | chosen.model_info()
        return PaintAnswer(
            images=[base64.b64encode(painted.data).decode("ascii") for painted in images],
            parameters=asked.echo(),
            info=json.dumps(info, ensure_ascii=False),
        )

    @router.post("/txt2img", summary="Make pictures, for AUTOMATIC1111's clients", **how)
    async def txt2img(asked: TextToImage, request: Request) -> PaintAnswer:
        return await paint(asked, request, job="txt2img")

    @router.post("/img2img", summary="Make pictures from a picture", **how)
    async def img2img(asked: ImageToImage, request: Request) -> PaintAnswer:
        return await paint(asked, request, job="img2img")

    @router.get(
        "/progress", summary="How far the visitor's own requests under /sdapi are", responses=documented("webui", 422)
    )
    async def progress(request: Request, skip_current_image: Skip = False) -> ProgressAnswer:
        answer, preview = progress_of(underway.of(visitor_of(request).name), now=time.time())
        if preview is not None and not skip_current_image:
            answer.current_image = base64.b64encode(preview).decode("ascii")
        return answer

    @router.post("/interrupt", summary="End the visitor's own requests under /sdapi; they answer without pictures")
    async def interrupt(request: Request) -> dict[str, Any]:
        underway.end(visitor_of(request).name, is_skip=False)
        return {}

    @router.post("/skip", summary="As /interrupt: pictures of one request are painted together")
    async def skip(request: Request) -> dict[str, Any]:
        underway.end(visitor_of(request).name, is_skip=True)
        return {}

    return router


def _info(asked: TextToImage, settings: Settings, painting: Painting | None, run: Run) -> dict[str, Any]:
    """What AUTOMATIC1111 says about pictures, and in `comments` what was not done or not taken."""
    images = () if painting is None else painting.images
    seeds = [settings.image_seed(index) for index in range(settings.images)]
    warnings = [INTERRUPTED] if painting is None else list(painting.warnings)
    return {
        "prompt": settings.prompt,
        "all_prompts": [settings.prompt] * settings.images,
        "negative_prompt": settings.negative_prompt,
        "all_negative_prompts": [settings.negative_prompt] * settings.images,
        "seed": settings.seed,
        "all_seeds": seeds,
        "subseed": settings.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": settings.width,
        "height": settings.height,
        "sampler_name": SAMPLERS[settings.prior.sampler],
        "scheduler": SCHEDULERS[settings.prior.scheduler],
        "cfg_scale": settings.prior.guidance,
        "steps": settings.prior.steps,
        "batch_size": settings.images,
        "denoising_strength": settings.strength if settings.start is not None else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [painted.parameters for painted in images],
        "styles": [],
        "job_timestamp": run.timestamp,
        "clip_skip": 1,
        "interrupted": painting is None,
        "prompt_tokens": None if painting is None else painting.prompt_tokens,
        "comments": [*warnings, *asked.not_done()],
    }
