"""Putting and getting over a network that fails, against a real S3 server."""

import itertools
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from sote.cluster import store
from sote.cluster.errors import Denied, Unreachable
from tests.stores import Store


class Cutting:
    """A proxy that cuts the connection at each so many PUTs, in turn before one arrives and before its answer."""

    def __init__(self, upstream: str, *, every: int) -> None:
        host, port = upstream.removeprefix("http://").split(":")
        self.upstream, self.every, self.puts, self.cuts = (host, int(port)), every, itertools.count(1), 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            there = socket.create_connection(self.upstream)
            threading.Thread(target=self._forward, args=(client, there), daemon=True).start()
            threading.Thread(target=self._copy, args=(there, client), daemon=True).start()

    def _forward(self, client: socket.socket, there: socket.socket) -> None:
        with client, there:
            try:
                while data := client.recv(1 << 16):
                    if data.startswith(b"PUT") and next(self.puts) % self.every == 0:
                        self.cuts += 1
                        if self.cuts % 2:
                            return
                        client.shutdown(socket.SHUT_WR)  # it arrives, and the answer is lost
                    there.sendall(data)
            except OSError:
                return

    def _copy(self, there: socket.socket, client: socket.socket) -> None:
        try:
            while data := there.recv(1 << 16):
                client.sendall(data)
        except OSError:
            return


@pytest.fixture
def cutting(s3: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cutting]:
    proxy = Cutting(s3.endpoint, every=3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield proxy
    proxy.listening.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FIRST_WAIT_SECONDS", 0.01)


def test_writes_of_which_one_in_three_is_refused_all_arrive(s3: Store) -> None:
    s3.fail_every(3)
    for number in range(12):
        store.put(f"{s3.uri}/{number}", bytes([number]) * 100)
    s3.fail_every(0)
    assert s3.files() == {str(number): bytes([number]) * 100 for number in range(12)}


def test_without_another_try_the_same_writes_fail(s3: Store) -> None:
    s3.fail_every(3)
    store.put(f"{s3.uri}/0", b"0", attempts=1)
    store.put(f"{s3.uri}/1", b"1", attempts=1)
    with pytest.raises(Unreachable, match=f"^{s3.uri}/2: "):
        store.put(f"{s3.uri}/2", b"2", attempts=1)


def test_writes_whose_connection_is_cut_all_arrive(cutting: Cutting, s3: Store) -> None:
    for number in range(12):
        store.put(f"{s3.uri}/{number}", bytes([number]) * 100)
    assert cutting.cuts >= 4
    assert s3.files() == {str(number): bytes([number]) * 100 for number in range(12)}


def test_without_another_try_a_cut_write_fails(cutting: Cutting, s3: Store) -> None:
    cutting.every = 1  # of a connection that was used before, the client takes another by itself
    with pytest.raises(Unreachable):
        store.put(f"{s3.uri}/0", b"0", attempts=1)


def test_a_large_file_goes_in_parts_which_count_when_all_are_there(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "WHOLE_BYTES", 6 << 20)
    monkeypatch.setattr(store, "PART_BYTES", 5 << 20)
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (11 << 12))
    s3.fail_every(2)  # the first request begins the upload, of the parts one fails
    with pytest.raises(Unreachable):
        store.put(f"{s3.uri}/large", large, attempts=1)
    s3.fail_every(0)
    assert s3.files() == {}
    s3.fail_every(3)
    token = store.put(f"{s3.uri}/large", large)
    s3.fail_every(0)
    assert token.strip('"').endswith("-3")
    assert token == store.entry(f"{s3.uri}/large").token
    store.get(f"{s3.uri}/large", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == large.read_bytes()


def test_a_name_is_taken_once(s3: Store) -> None:
    assert store.create(f"{s3.uri}/lock", b"mine")
    assert store.create(f"{s3.uri}/lock", b"yours") is None
    assert store.create(f"{s3.uri}/lock", b"mine") is not None  # the answer was lost on its way
    assert store.read(f"{s3.uri}/lock") == b"mine"


def test_a_bucket_that_is_not_there_and_credentials_that_are_not_are_said_at_once(
    s3: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Denied, match=r"^s3://no-such-bucket/x: .*bucket"):
        store.put("s3://no-such-bucket/x", b"")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with caplog.at_level(logging.WARNING), pytest.raises(Denied, match=rf"^{s3.uri}/x: Unable to locate credentials"):
        store.put(f"{s3.uri}/x", b"")
    assert not caplog.records


def test_a_store_that_nobody_answers_at_is_one_line(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(Unreachable) as told:
        store.tried(lambda: store.at(f"{s3.uri}/x", attempts=1)[0].find(s3.bucket), f"{s3.uri}/x", 2)
    assert str(told.value).startswith(f"{s3.uri}/x: Could not connect")
    assert "the same command continues" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_system_that_renames_gets_a_file_whole(tmp_path: Path) -> None:
    place = f"local://{tmp_path}/deep/a"
    for text in (b"one", b"two"):
        store.put(place, text)
        assert store.read(place) == text
    assert store.names(f"local://{tmp_path}/deep") == ["a"]
    assert store.entries(f"local://{tmp_path}").keys() == {"deep/a"}
    store.delete([place, place])
    assert not store.exists(place)
