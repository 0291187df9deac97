"""The ingress: one replica without a model, which answers HTTP with the routes of `api` and asks the models' replicas.

Kind: wiring.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI
from ray import serve
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sote.cluster import remote
from sote.cluster.errors import RunFolderError
from sote.serve import api
from sote.serve.about import About
from sote.serve.access import READING, Gate, answer_to
from sote.serve.context import Context
from sote.serve.desk import Desk
from sote.serve.figures import Figures
from sote.serve.jobs import Jobs
from sote.serve.recipe import ServeRecipe
from sote.serve.replicas import IS_ACCEPTED, Replicas
from sote.serve.results_far import results_of
from sote.serve.retrying import AGAIN, MARK
from sote.serve.service import Service

LOOK_SECONDS: Final = 0.05
CUT_SECONDS: Final = 2.0  # for requests that are cut off to clean up behind them
READY: Final = "/readyz"
WRITTEN: Final = ("recipe.serve.toml", "recipe.toml", "run.json")  # into the run folder, before a server starts
RETRY_AFTER: Final = "5"
ENDING: Final = "the server is ending; come again when it is back"


def context_of(recipe: ServeRecipe, service: Service, figures: Figures | None = None) -> Context:
    """What the routes share, for `recipe` and whatever paints behind `service`, which may itself count into `figures`.

    Raises UserError (keys, licence).
    """
    about, figures, run = About.of(recipe), figures or Figures(), remote.place(recipe.run)
    desk = Desk(recipe, service, figures)
    results = results_of(run / "results", recipe.jobs.keep_seconds)
    return Context(
        recipe=recipe,
        service=service,
        gate=Gate.of(recipe),
        desk=desk,
        jobs=Jobs(run / "jobs", recipe.jobs, desk, results),
        results=results,
        figures=figures,
        about=about,
    )


def check_run(recipe: ServeRecipe) -> None:
    """Raises RunFolderError where this node does not see the run folder that the command has made: jobs would be kept
    where no other server finds them."""
    root = remote.place(recipe.run)
    if not any(remote.exists(root / name) for name in WRITTEN):
        raise RunFolderError(
            f"{recipe.run}: run: is not seen from the node of the server's front; name a folder on a file system that "
            "all nodes share, or a URI (s3://bucket/folder)"
        )


class Inside:
    """Who is inside. Once it is closed, nobody comes in who wants something painted."""

    def __init__(self) -> None:
        self.is_closed = False
        self.painting: set[asyncio.Task[Any]] = set()
        self.reading: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def entered(self, method: str) -> Iterator[None]:
        """Count this task in for the block."""
        inside, task = self.reading if method in READING else self.painting, asyncio.current_task()
        if task is None:
            raise RuntimeError("a request outside of a task")
        inside.add(task)
        try:
            yield
        finally:
            inside.discard(task)

    async def close(self, seconds: float) -> int:
        """Wait up to `seconds` for what is painted, then cut off what is left. Returns how many paintings were cut."""
        self.is_closed = True
        deadline = time.monotonic() + seconds
        while self.painting and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
        cut = len(self.painting)
        if left := self.painting | self.reading:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=CUT_SECONDS)
        return cut


@dataclass(frozen=True)
class Entrance:
    """ASGI middleware between gate and routes: lets in, or says that the server is ending."""

    app: ASGIApp
    inside: Inside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.inside.is_closed and (scope["method"] not in READING or scope["path"] == READY):
            refusal = await answer_to(HTTPException(503, ENDING, {"Retry-After": RETRY_AFTER}), scope, receive)
            await refusal(scope, receive, send)
            return
        if AGAIN in scope["headers"]:
            IS_ACCEPTED.set(True)
        with self.inside.entered(scope["method"]):
            await self.app(scope, receive, send)


@dataclass(frozen=True)
class Marked:
    """ASGI middleware, outermost: marks every answer as the ingress' own."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), MARK]
            await send(message)

        await self.app(scope, receive, marked)


@serve.ingress()
class Ingress:
    """The replica: the routes over both models' handles."""

    def __init__(self, recipe: ServeRecipe, prior: Any, decoder: Any) -> None:
        check_run(recipe)
        self.recipe, self.inside = recipe, Inside()
        part = recipe.decoder_replicas
        places = part.slots * part.max_replicas + part.max_queued_requests
        self.figures = Figures()
        slots = recipe.prior_replicas.slots
        self.service = Replicas(prior, decoder, slots=slots, places=places, figures=self.figures)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = api.build(context_of(self.recipe, self.service, self.figures))
        app.add_middleware(Entrance, inside=self.inside)
        gated = app.build_middleware_stack  # the gate lies outside of all that is added in the usual way
        app.build_middleware_stack = lambda: Marked(gated())  # type: ignore[method-assign]
        return app

    async def drain(self, seconds: float) -> int:
        """Take no new request, finish those that are worked on for up to `seconds`; returns how many were cut off."""
        return await self.inside.close(seconds)
