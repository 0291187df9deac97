"""The server: prior and decoder as Ray Serve deployments behind a FastAPI ingress, started and stopped.

The ingress awaits the prior, then asks the decoder: what passes between them is below 100 KB a picture, and so each
deployment's queue and autoscaling count only its own work. Latents and pictures are made in a thread of the replica:
its event loop stays free for health checks, and a request that is given up stops at the next step.

Kind: wiring.
"""

import asyncio
import contextlib
import io
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
from ray import serve

from sote.cluster import errors, logs, session
from sote.cluster.errors import RunFailed, SoteError, UserError
from sote.cluster.storage import RunFolder
from sote.serve import plan
from sote.serve.pictures import Painted
from sote.serve.recipe import ModelPart, ReplicasPart, ServeRecipe
from sote.serve.routes import Ingress
from sote.serve.schema import Latents, Settings

T = TypeVar("T")
APPLICATION = "sote"
# Serve keeps a request that a replica is working on, and one more at hand so that the replica never waits
ONGOING_REQUESTS = 2
# A request ahead of the ingress' own work only waits: it must not be what limits the line
INGRESS_ONGOING_REQUESTS = 256
STARTS = 2  # of a replica that fails to load, before the server gives up
DRAIN_SECONDS = 2.0  # what a stopped replica may take for the request it is working on
READY_SECONDS = 60.0  # from deployed replicas to an answer over HTTP


class GivenUp(Exception):
    """Nobody waits for the work any more."""


class Line:
    """One thread for the work of a replica, off its event loop: one request computes, the others wait in line."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1)

    async def work(self, task: Callable[[Callable[[int], None]], T]) -> T:
        """Await `task(each_step)`. If this await is cancelled, `each_step` raises GivenUp at the next step."""
        given_up = threading.Event()

        def each_step(step: int) -> None:
            if given_up.is_set():
                raise GivenUp(f"before step {step}")

        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, task, each_step)
        except asyncio.CancelledError:
            given_up.set()
            raise


class Prior:
    """Replica of the prior. The model's module is imported here, so that the ingress never loads torch."""

    def __init__(self, part: ModelPart, *, on_gpu: bool) -> None:
        import torch

        from sote.serve.prior import PriorModel

        self.model = PriorModel(part, device=torch.device("cuda" if on_gpu else "cpu"))
        self.line = Line()

    async def latents(self, settings: Settings) -> Latents:
        return await self.line.work(lambda each_step: self.model.latents(settings, each_step=each_step))


class Decoder:
    """Replica of the decoder and vqgan."""

    def __init__(self, part: ModelPart, *, on_gpu: bool) -> None:
        import torch

        from sote.serve.decoder import DecoderModel

        self.model = DecoderModel(part, device=torch.device("cuda" if on_gpu else "cpu"))
        self.line = Line()

    async def paint(self, latents: Latents, settings: Settings) -> tuple[list[Painted], float]:
        return await self.line.work(lambda each_step: self.model.paint(latents, settings, each_step=each_step))


def build(recipe: ServeRecipe) -> Any:
    """The Serve application of `recipe`. Serve's own config files can name it as `sote.serve.app:build`."""
    prior, decoder = recipe.prior_replicas, recipe.decoder_replicas
    return (
        serve.deployment(name="Ingress")(Ingress)
        .options(
            max_ongoing_requests=INGRESS_ONGOING_REQUESTS,
            max_queued_requests=INGRESS_ONGOING_REQUESTS,
            ray_actor_options={"num_cpus": recipe.ingress_cpus},
            graceful_shutdown_timeout_s=DRAIN_SECONDS,
        )
        .bind(
            _model(Prior, prior).bind(recipe.model, on_gpu=prior.gpus > 0),
            _model(Decoder, decoder).bind(recipe.model, on_gpu=decoder.gpus > 0),
            defaults=recipe.defaults,
            limits=recipe.limits,
        )
    )


def start(recipe: ServeRecipe) -> str:
    """Start the server on the connected Ray and wait until it answers; returns its URL.

    Raises UserError (weights, port in use, another server on this cluster) before anything is started, RunFailed if
    the models cannot be brought up.
    """
    plan.check(recipe)
    check_port(recipe.host, recipe.port)
    if serve.status().proxies:
        raise UserError("this Ray cluster already runs a Serve application; stop it (`serve shutdown`) or use another")
    url = f"http://{recipe.host}:{recipe.port}"
    try:
        _deploy(recipe)
        _await_ready(url)
    except BaseException:
        stop()
        raise
    return url


def stop() -> None:
    """Stop the server. Does nothing if there is none."""
    # Ray prints on standard output that the call that ends Serve's controller did not come back from it
    with _quiet(), contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()  # type: ignore[no-untyped-call]


def run(
    recipe: ServeRecipe, *, folder: RunFolder, address: str | None, ready: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM, then shut down in order. `ready(url)` is called when the server answers."""
    plan.check(recipe)
    check_port(recipe.host, recipe.port)
    begin = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), session.connect(address), _interruptible():
        url = start(recipe)
        try:
            logs.Metrics(folder.metrics).write(kind="serve", url=url, start_seconds=time.monotonic() - begin)
            if ready is not None:
                ready(url)
            threading.Event().wait()
        finally:
            with _deaf():
                stop()


def check_port(host: str, port: int) -> None:
    """Raises UserError if nothing can listen on `port` of `host`."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free, as for the proxy
            probe.bind(where)
    except OSError as error:
        raise UserError(
            f"port: {port} on {host} cannot be used ({error.strerror}); set `port` (or `host`) to a free one"
        ) from None


def _model(kind: type, part: ReplicasPart) -> Any:
    """The deployment of a model, scaled between the recipe's bounds."""
    return serve.deployment(name=kind.__name__)(kind).options(
        max_ongoing_requests=ONGOING_REQUESTS,
        max_queued_requests=part.max_queued_requests,
        max_constructor_retry_count=STARTS,
        ray_actor_options={"num_cpus": part.cpus, "num_gpus": part.gpus},
        autoscaling_config={
            "min_replicas": part.min_replicas,
            "initial_replicas": part.min_replicas,
            "max_replicas": part.max_replicas,
            "target_ongoing_requests": 1,
        },
        graceful_shutdown_wait_loop_s=DRAIN_SECONDS / 4,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )


def _deploy(recipe: ServeRecipe) -> None:
    """Start Serve and the application, and wait until its replicas are up. Raises RunFailed if one cannot be."""
    with _quiet():
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": recipe.host, "port": recipe.port},
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        try:
            serve.run(build(recipe), name=APPLICATION, route_prefix="/", logging_config={"enable_access_log": False})
        except RuntimeError as error:
            raise _failure(_reason() or str(error)) from None


def _failure(reason: str) -> SoteError:
    """What a replica could not start for: an error of ours as it was raised there, else RunFailed."""
    place, _, message = reason.partition(": ")
    kind = getattr(errors, place.rpartition(".")[2], None)
    if isinstance(kind, type) and issubclass(kind, SoteError):
        return kind(message)
    return RunFailed(f"the models could not be brought up: {reason}")


def _reason() -> str:
    """The last line of what Serve says about the deployment that failed."""
    found = serve.status().applications.get(APPLICATION)
    for deployment in found.deployments.values() if found else ():
        lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
        if str(deployment.status) != "HEALTHY" and lines:
            return lines[-1]
    return ""


def _await_ready(url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=READY_SECONDS, trust_env=False).status_code == httpx.codes.OK:
                return
        if time.monotonic() > deadline:
            raise RunFailed(f"the server does not answer at {url} though its replicas are up")
        time.sleep(0.1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Serve's own lines off the terminal; they stay in Ray's session folder."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.serve")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt too, as SIGINT does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C does not break an orderly shutdown."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
