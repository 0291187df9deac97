"""The way to a cluster's control store: somebody is there, it is Ray, of our version, and takes our token.

Ray itself would wait for minutes for an address where nobody is, and end the process for some that answer otherwise.
So one question is asked first, with a short time to answer it.

Kind: wiring.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from typing import Any, Final

import grpc  # type: ignore[import-untyped]
import ray
import ray._raylet
import ray.util
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private import ray_constants, services  # ray is pinned; a test looks at what listens where
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from sote.cluster import addresses, tokens
from sote.cluster.errors import UserError

log = logging.getLogger(__name__)

SECONDS_TO_ANSWER: Final = 10.0
core: Any = ray._raylet  # no types
messages: Any = gcs_service_pb2
REFUSED: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def check(address: str) -> str:
    """The HOST:PORT behind `address` ("auto" or HOST:PORT), if a Ray that we can talk to is there.

    Raises UserError, within seconds: nobody there, something else, another version of Ray or Python, no or a wrong
    token.
    """
    host, port = addresses.control(address) or _found()
    where = f"--address {address}" if address != addresses.AUTO else f"--address auto ({host}:{port})"
    if why := addresses.listens(host, port):
        raise UserError(f"{where}: no Ray cluster answers there ({why.lower()}); start one, or name another address")
    _authenticate(where, host, f"{host}:{port}")
    _same_version(where, _metadata(where, f"{host}:{port}"))
    return f"{host}:{port}"


@contextlib.contextmanager
def loopback(is_wanted: bool = True) -> Iterator[None]:
    """What Ray starts or connects to in the block is on 127.0.0.1 alone.

    Ray does so by itself where it takes the machine for a lone one, as it does on macOS; else it listens on every
    network of the machine, and takes an address on loopback for the machine's outer one.
    """
    if not is_wanted:
        yield
        return
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        os.environ.pop(name)
        if before[1] is not None:
            os.environ[name] = before[1]


def is_on_loopback(place: str) -> bool:
    """Whether the control store at HOST:PORT can be had on loopback only."""
    host, _, port = place.rpartition(":")
    outer: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return tokens.is_loopback(host) and addresses.listens(outer, int(port)) is not None


def _found() -> tuple[str, int]:
    """Where Ray's own search finds a cluster: RAY_ADDRESS, or the last that was started on this machine."""
    try:
        found = services.get_ray_address_from_environment(addresses.AUTO, None)
    except ConnectionError:
        found = None
    if not found or found == "local":
        raise UserError("--address auto: no Ray cluster runs on this machine; start one, or leave the option out")
    host, _, port = found.rpartition(":")
    return host.strip("[]"), int(port)


def _authenticate(where: str, host: str, place: str) -> None:
    """Switch Ray's token authentication on or off for this process, as the cluster has it: a driver with a token is
    lost to a cluster without, some seconds later. Raises UserError where no token is here and one is asked for, and
    where a cluster of other machines takes anybody."""
    if tokens.find() is None and not addresses.is_of_this_machine(host):
        raise UserError(f"{where}: no token, and no other machine is talked to without one: {tokens.MAKE}")
    _switch("disabled")
    try:
        _metadata(where, place)
    except UserError:  # perhaps for want of a token
        if tokens.find() is not None:
            _switch("token")
        return
    if not addresses.is_of_this_machine(host):
        raise UserError(
            f"{where}: that cluster takes anybody: start its nodes with RAY_AUTH_MODE=token and one token "
            f"({tokens.MAKE}), see SECURITY.md"
        )
    if not tokens.is_loopback(host):
        log.warning("the cluster at %s takes anybody who reaches it: start it with RAY_AUTH_MODE=token", place)


def _switch(mode: str) -> None:
    os.environ[tokens.MODE] = mode
    core.Config.initialize("")  # reads the environment anew
    core.AuthenticationTokenLoader.instance().reset_cache()


def _metadata(where: str, place: str) -> dict[str, str]:
    """What the control store says about itself."""
    with contextlib.closing(init_grpc_channel(place)) as channel:
        request = messages.InternalKVGetRequest(namespace=ray_constants.KV_NAMESPACE_CLUSTER, key=CLUSTER_METADATA_KEY)
        try:
            grpc.channel_ready_future(channel).result(timeout=SECONDS_TO_ANSWER)
            asked: Any = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            answer = asked.InternalKVGet(request, timeout=SECONDS_TO_ANSWER)
            said: dict[str, str] = json.loads(answer.value)
        except grpc.RpcError as error:
            if error.code() in REFUSED:
                raise UserError(f"{where}: {_locked()}") from None
            raise UserError(f"{where}: {_strange()}") from None
        except (grpc.FutureTimeoutError, ValueError):
            raise UserError(f"{where}: {_strange()}") from None
    return said


def _same_version(where: str, there: dict[str, str]) -> None:
    version, python = ray._private.utils.compute_version_info()  # type: ignore[no-untyped-call]
    if there["ray_version"] != version:
        raise UserError(
            f"{where}: Ray {there['ray_version']} is there, here is Ray {version}: use the image of the same version "
            "of sote on both sides"
        )
    if there["python_version"] != python:  # Ray compares all of it
        raise UserError(f"{where}: Python {there['python_version']} is there, here is {python}: use the same on both")


def _strange() -> str:
    return "something else than Ray's control store answers there; give HOST:PORT of the head (port 6379)"


def _locked() -> str:
    if tokens.find() is None:
        return (
            "the cluster asks for a token and there is none here; put the cluster's into ~/.ray/auth_token, or name "
            "its file in RAY_AUTH_TOKEN_PATH"
        )
    return "the cluster does not take the token that is here; use the cluster's own (RAY_AUTH_TOKEN_PATH)"
