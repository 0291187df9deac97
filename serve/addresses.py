"""Addresses on this server, as who asked can reach it, of pictures that are kept for a while.

Kind: wiring.
"""

import asyncio
from collections.abc import Sequence

from fastapi import Request

from sote.serve.pictures import Painted
from sote.serve.results import Results

SCHEMES = ("http", "https")


def base_of(request: Request) -> str:
    """Scheme and host of this server without a slash at the end, as the request came: by its `Host`, and by
    `X-Forwarded-Proto` where a proxy in front of it speaks TLS."""
    forwarded = request.headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
    scheme = forwarded if forwarded in SCHEMES else request.url.scheme
    return f"{scheme}://{request.base_url.netloc}{request.base_url.path}".rstrip("/")


async def kept(images: Sequence[Painted], request: Request, results: Results) -> list[str]:
    """Keep pictures, and where each can be fetched. Raises DiskFull and RunFailed as `Results.keep`."""
    names = [await asyncio.to_thread(results.keep, painted) for painted in images]
    return [f"{base_of(request)}/v1/results/{name}" for name in names]
