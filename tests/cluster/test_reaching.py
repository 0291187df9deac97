import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
import ray
from ray._private.utils import compute_version_info
from ray.core.generated import gcs_service_pb2

from sote.cluster import reaching, tokens
from sote.cluster.errors import UserError

ASKED = "/ray.rpc.InternalKVGcsService/InternalKVGet"
RAY, PYTHON = compute_version_info()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "SECONDS_TO_ANSWER", 2.0)
    monkeypatch.setenv(tokens.TOKEN, "aa" * 32)
    monkeypatch.setenv(tokens.MODE, "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@contextlib.contextmanager
def control_store(version: str, python: str, *, takes: bool = True) -> Iterator[str]:
    """What speaks as the control store of a Ray of that version does, as far as it is asked."""

    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        if not takes:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid or missing authentication token")
        says = json.dumps({"ray_version": version, "python_version": python}).encode()
        return bytes(gcs_service_pb2.InternalKVGetReply(value=says).SerializeToString())

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            return grpc.unary_unary_rpc_method_handler(answer) if details.method == ASKED else None

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def refused(address: str) -> str:
    with pytest.raises(UserError) as error:
        reaching.check(address)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_ray_of_our_version_is_taken() -> None:
    with control_store(RAY, PYTHON) as address:
        assert reaching.check(address) == address


def test_another_version_of_ray_or_python_is_named() -> None:
    with control_store("2.9.3", PYTHON) as address:
        assert f"Ray 2.9.3 is there, here is Ray {ray.__version__}" in refused(address)
    with control_store(RAY, "3.9.1") as address:
        assert f"Python 3.9.1 is there, here is {PYTHON}" in refused(address)


def test_a_token_that_is_not_taken_is_said_and_not_shown() -> None:
    with control_store(RAY, PYTHON, takes=False) as address:
        said = refused(address)
    assert "does not take the token that is here" in said
    assert "aa" * 32 not in said


def test_nobody_at_the_address_is_known_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "no Ray cluster answers there (connection refused)" in refused(address)


def test_something_else_at_the_address_is_not_waited_for() -> None:
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "something else than Ray's control store answers there" in refused(f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_cluster_beyond_loopback_is_not_talked_to_without_a_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.delenv(tokens.TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sote.cluster.addresses.listens", lambda *_: None)  # as if somebody listened there
    assert "ray get-auth-token --generate" in refused("198.51.100.7:6379")
