"""An S3 server in a process of its own (moto), on loopback, for all tests that need one.

Its fixtures are those of all tests (tests/conftest.py).

`s3` gives a test an empty bucket, this process the credentials for it, and a mirror of its own. `fail_every(20)` lets
the server refuse each twentieth write with 503 SlowDown, as S3 does under load, until `fail_every(0)`.
"""

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

WRITES = ("PUT", "POST", "DELETE")
CONTROL = "/-/fail-every/"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_numbers = itertools.count()


@dataclass(frozen=True)
class Store:
    """A bucket that is empty at first."""

    endpoint: str
    bucket: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    def fail_every(self, writes: int) -> None:
        """Refuse each write of that number; 0: none."""
        httpx.get(f"{self.endpoint}{CONTROL}{writes}", trust_env=False).raise_for_status()

    def files(self) -> dict[str, bytes]:
        """All that is there."""
        import s3fs

        system = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        return {path.removeprefix(f"{self.bucket}/"): system.cat_file(path) for path in system.find(self.bucket)}


@pytest.fixture(scope="session", name="s3_server")
def server() -> Iterator[str]:
    """The server's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "tests.stores", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _await(endpoint, process)
        yield endpoint
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(name="s3")
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """An empty bucket; this process, and those it starts, have the key to it and an empty mirror."""
    import fsspec

    named = {"AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests"}
    named |= {"AWS_DEFAULT_REGION": "us-east-1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    store = Store(s3_server, f"tests-{os.getpid()}-{next(_numbers)}")
    fsspec.filesystem("s3").mkdir(store.bucket)
    yield store
    store.fail_every(0)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _await(endpoint: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{endpoint}{CONTROL}0", timeout=5, trust_env=False)
        except httpx.TransportError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.05)
        else:
            return


class _Failing:
    """The server's application; each so many writes one is refused."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.every, self.writes = app, 0, 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith(CONTROL):
            self.every, self.writes = int(environ["PATH_INFO"].removeprefix(CONTROL)), 0
            start("200 OK", [])
            return []
        if self.every and environ["REQUEST_METHOD"] in WRITES:
            self.writes += 1
            if self.writes % self.every == 0:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start("503 Slow Down", [("Content-Type", "application/xml")])
                return [SLOW_DOWN]
        return self.app(environ, start)


def _serve(port: int) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    app = _Failing(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", port, app, threaded=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
