"""A painting as the native answer, in fal's form: for /v1/generate and for jobs.

Kind: pure.
"""

from collections.abc import Sequence

from sote.serve import latentfile
from sote.serve.schema import GenerateRequest, GenerateResponse, ImageOut
from sote.serve.service import Painting
from sote.serve.settings import Settings


def response_of(
    painting: Painting, settings: Settings, asked: GenerateRequest, *, urls: Sequence[str]
) -> GenerateResponse:
    """The answer; `urls` are where the pictures are to be had, in their order."""
    flagged = painting.flagged
    return GenerateResponse(
        images=[
            ImageOut(
                url=url,
                content_type=painted.content_type,
                width=painted.width,
                height=painted.height,
                seed=painted.seed,
                latents=latentfile.packed(painted.latents) if asked.return_latents else None,
            )
            for painted, url in zip(painting.images, urls, strict=True)
        ],
        timings=timings_of(painting),
        seed=settings.seed,
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        prompt_tokens=painting.prompt_tokens,
        has_nsfw_concepts=None if flagged is None else [bool(tags) for tags in flagged],
        warnings=list(painting.warnings),
    )


def timings_of(painting: Painting) -> dict[str, float]:
    """Seconds: of each stage, of its wait in line, and `inference` for all of it."""
    found: dict[str, float] = {}
    for work in painting.work:
        found[work.stage] = round(work.seconds, 4)
        found[f"{work.stage}_waited"] = round(work.waited_seconds, 4)
    return found | {"inference": round(painting.seconds, 4)}
