"""The server's life: started on Ray, brought to another recipe while it runs, and ended without a request lost.

Kind: wiring.
"""

import contextlib
import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TextIO

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from sote.cluster import arrival, capacity, errors, logs, session, storage
from sote.cluster import recipe as recipes
from sote.cluster.errors import RunFailed, SoteError, UserError
from sote.cluster.storage import RunFolder
from sote.serve import plan, retrying
from sote.serve.deployments import build
from sote.serve.front import Front, port_problem
from sote.serve.recipe import ServeRecipe

APPLICATION: Final = "sote"
READY_SECONDS: Final = 60.0  # from deployed replicas to an answer over HTTP
MARGIN_SECONDS: Final = 10.0  # for the ingress to say that it is drained
FIXED: Final = ("run", "host", "port")  # of a recipe: what a running server cannot change

NOT_ASKED_AGAIN: Final = (
    "this cluster's HTTP proxy runs without the part that asks again: what is under way when the server's front dies "
    "is answered 500, and clients must ask again themselves"
)
FAILED: Final = ("DEPLOY_FAILED", "UNHEALTHY")

log = logging.getLogger(__name__)


def start(recipe: ServeRecipe) -> str:
    """Start the server on the connected Ray and wait until it answers; returns its URL.

    Raises UserError (weights, port in use, another server on this cluster) before anything is started, RunFailed if
    the models cannot be brought up.
    """
    plan.weights(recipe)
    front = Front.find()
    if serve.status().proxies:
        raise UserError("this Ray cluster already runs a Serve application; stop it (`serve shutdown`) or use another")
    front.check_port(recipe)
    url = front.url(recipe)
    try:
        with _quiet():
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": recipe.host, "port": recipe.port},
                logging_config={"enable_access_log": False, "log_level": "WARNING"},
            )
        _deploy(recipe)
        _await_ready(front, recipe, url)
    except BaseException:
        stop()
        raise
    return url


def update(now: ServeRecipe, wanted: ServeRecipe, *, address: str | None = None) -> None:
    """Bring the running server from one recipe to another without a failed request, and wait until it is there.

    Raises UserError for a recipe that cannot be served here, RunFailed if its models cannot be brought up; the server
    goes on with the recipe before.
    """
    for field in FIXED:
        if getattr(now, field) != getattr(wanted, field):
            raise UserError(
                f"{field}: {getattr(wanted, field)} instead of {getattr(now, field)}: stays while the server runs; "
                "start it anew for that"
            )
    plan.check(wanted, address=address)
    try:
        _deploy(wanted, room=_room(wanted))
    except RunFailed:
        _deploy(now, room=_room(now))
        raise


def stop() -> None:
    """Stop the server. Does nothing if there is none."""
    with _quiet(), _silent():
        serve.shutdown()  # type: ignore[no-untyped-call]


def run(
    recipe: ServeRecipe,
    *,
    folder: RunFolder,
    address: str | None,
    ready: Callable[[str], None] | None = None,
    reread: Callable[[], ServeRecipe] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is worked on and end; a second signal ends it at once.

    `ready(url)` is called when the server answers. SIGHUP brings the server to the recipe that `reread()` returns;
    where it cannot be had or served, one line says why and the recipe before goes on.
    """
    plan.check(recipe, address=address)
    if address is None:
        check_port(recipe.host, recipe.port)
    begin = time.monotonic()
    with (
        _silent() as terminal,
        _hangups() as hangups,
        session.connect(address, environment=retrying.ENVIRONMENT),
        _interruptible(),
        contextlib.suppress(KeyboardInterrupt),
    ):
        if address is not None:
            _check_cluster(recipe)
        url = start(recipe)
        try:
            logs.Metrics(folder.metrics).write(kind="serve", url=url, start_seconds=time.monotonic() - begin)
            if ready is not None:
                with contextlib.redirect_stdout(terminal):
                    ready(url)
            while hangups.get():
                recipe = _updated(recipe, folder=folder, address=address, reread=reread)
        except KeyboardInterrupt:
            _drain(recipe.drain_seconds)
        finally:
            with _deaf():
                stop()


def _updated(
    now: ServeRecipe, *, folder: RunFolder, address: str | None, reread: Callable[[], ServeRecipe] | None
) -> ServeRecipe:
    """The recipe that the server has after an update; `now` where there was nothing to go over to."""
    begin = time.monotonic()
    try:
        wanted = reread() if reread is not None else now
        update(now, wanted, address=address)
    except SoteError as error:
        words = "; ".join(str(error).splitlines())
        print(f"sote: {words}; the server goes on with the recipe before", file=sys.stderr, flush=True)
        return now
    storage.write_text(folder.recipe("serve"), recipes.dumps(wanted))
    logs.Metrics(folder.metrics).write(kind="serve update", update_seconds=time.monotonic() - begin)
    return wanted


def _drain(seconds: float) -> None:
    """Take no new request and finish those that are worked on; a signal meanwhile cuts them off."""
    try:
        _close(seconds)
    except KeyboardInterrupt:
        with _deaf():
            _close(0.0)


def _close(seconds: float) -> None:
    """Let the ingress close its door and wait up to `seconds` for those inside."""
    try:
        cut = serve.get_app_handle(APPLICATION).drain.remote(seconds).result(timeout_s=seconds + MARGIN_SECONDS)
    except (RayError, RayServeException, TimeoutError) as error:
        log.warning("the ingress did not say whether its requests are done: %s", error)
        return
    if cut:
        log.warning("requests were cut off requests=%d", cut)


def check_port(host: str, port: int) -> None:
    """Raises UserError if nothing can listen on `port` of `host`."""
    if problem := port_problem(host, port):
        raise UserError(problem)


def _check_cluster(recipe: ServeRecipe) -> None:
    """Raises UserError where the nodes lack the code, or will never have room for the replicas that start."""
    arrival.check("serve")
    asked = plan.bundles(recipe)
    capacity.require(list(asked.values()), what="replicas: the server", mend="set fewer replicas or smaller shares")


def _deploy(recipe: ServeRecipe, *, room: frozenset[str] = frozenset()) -> None:
    """Bring the application to `recipe` and wait until its replicas are up. Raises RunFailed if one cannot be."""
    application = build(recipe, room=room)
    with _quiet():
        try:
            serve.run(application, name=APPLICATION, route_prefix="/", logging_config={"enable_access_log": False})
        except RuntimeError as error:
            raise _failure(_reason() or str(error)) from None


def _room(recipe: ServeRecipe) -> frozenset[str]:
    """The deployments of which one more replica has a place now."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    prior, decoder = recipe.prior_replicas, recipe.decoder_replicas
    needs = {
        "Ingress": (recipe.ingress_cpus, 0.0),
        "Prior": (prior.cpus, prior.gpus),
        "Decoder": (decoder.cpus, decoder.gpus),
    }
    # Shares of several GPUs do not add up to one: what needs a GPU has a place for certain on a whole free one only
    return frozenset(
        name
        for name, (cpus, gpus) in needs.items()
        if free.get("CPU", 0) >= cpus and (not gpus or free.get("GPU", 0) >= max(gpus, 1))
    )


def _failure(reason: str) -> SoteError:
    """What a replica could not start for: an error of ours as it was raised there, else RunFailed."""
    place, _, message = reason.partition(": ")
    kind = getattr(errors, place.rpartition(".")[2], None)
    if isinstance(kind, type) and issubclass(kind, SoteError):
        return kind(message)
    return RunFailed(f"the models could not be brought up: {reason}")


def _reason() -> str:
    """The last line of what Serve says about the deployment that failed; others may only be slow."""
    found = serve.status().applications.get(APPLICATION)
    failed = [each for each in found.deployments.values() if each.status.value in FAILED] if found else []
    for deployment in failed:
        lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return ""


def _await_ready(front: Front, recipe: ServeRecipe, url: str) -> None:
    """Wait for an answer over HTTP, and say what does not hold here."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        answer = front.look(recipe)
        if answer is not None and answer.is_ready:
            if warning := front.warning(recipe):
                log.warning("%s", warning)
            if not answer.asks_again:
                log.warning("%s", NOT_ASKED_AGAIN)
            return
        if time.monotonic() > deadline:
            raise RunFailed(f"the server does not answer at {url} though its replicas are up")
        time.sleep(0.1)


@contextlib.contextmanager
def _silent() -> Iterator[TextIO]:
    """Keep off standard output what Ray prints there about processes that end; gives the standard output itself."""
    terminal = sys.stdout
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield terminal


@contextlib.contextmanager
def _hangups() -> Iterator["queue.SimpleQueue[int]"]:
    """What SIGHUP puts a number into, instead of ending the process."""
    received: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = signal.signal(signal.SIGHUP, lambda number, _: received.put(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGHUP, before)


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
