"""Certificates of nodes: what Python's own TLS takes and refuses of them."""

import socket
import ssl
import threading
from pathlib import Path

import pytest

from sote.cluster import certificate
from sote.cluster.errors import UserError


@pytest.fixture
def node(tmp_path: Path) -> Path:
    certificate.make_authority(tmp_path / "authority")
    certificate.make(tmp_path / "authority", tmp_path / "node", ["127.0.0.1", "*.sote.svc.cluster.local"])
    return tmp_path / "node"


def context(purpose: ssl.Purpose, folder: Path, trusts: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(purpose, cafile=str(trusts / certificate.AUTHORITY))
    made.load_cert_chain(folder / certificate.CERTIFICATE, folder / certificate.KEY)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def shake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A handshake of both over a pair of sockets; raises what the client's side does, and then the server's."""
    left, right = socket.socketpair()
    failed: list[ssl.SSLError] = []

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as one:
                one.recv(1)
        except ssl.SSLError as error:
            failed.append(error)
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname=name) as other:
            other.send(b"x")
    finally:
        right.close()
        thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("name", ["127.0.0.1", "sote-head-svc.sote.svc.cluster.local"])
def test_nodes_of_one_authority_take_each_other(node: Path, name: str) -> None:
    shake(context(ssl.Purpose.CLIENT_AUTH, node, node), context(ssl.Purpose.SERVER_AUTH, node, node), name)


def test_another_name_is_refused(node: Path) -> None:
    with pytest.raises(ssl.SSLError, match="match"):
        shake(context(ssl.Purpose.CLIENT_AUTH, node, node), context(ssl.Purpose.SERVER_AUTH, node, node), "10.0.0.9")


def test_a_node_of_another_authority_is_refused(node: Path, tmp_path: Path) -> None:
    certificate.make_authority(tmp_path / "foreign")
    certificate.make(tmp_path / "foreign", tmp_path / "stranger", ["127.0.0.1"])
    stranger = context(ssl.Purpose.SERVER_AUTH, tmp_path / "stranger", node)
    with pytest.raises(ssl.SSLError):
        shake(context(ssl.Purpose.CLIENT_AUTH, node, node), stranger, "127.0.0.1")


def test_keys_are_for_their_owner_alone_and_an_authority_is_never_replaced(node: Path, tmp_path: Path) -> None:
    assert (node / certificate.KEY).stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="already"):
        certificate.make_authority(tmp_path / "authority")
    before = (node / certificate.KEY).read_bytes()
    certificate.make(tmp_path / "authority", node, ["127.0.0.1"])  # as when a pod starts again
    assert (node / certificate.KEY).read_bytes() != before


def test_a_folder_without_an_authority_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--new"):
        certificate.make(tmp_path, tmp_path / "out", ["127.0.0.1"])
