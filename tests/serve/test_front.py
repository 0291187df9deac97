"""Where a server says that it listens."""

import socket

from sote.serve.front import Front, port_problem
from sote.serve.recipe import AccessPart, ServeRecipe

HERE = Front("a", "10.0.0.1", is_here=True)
THERE = Front("b", "10.0.0.2", is_here=False)


def recipe(host: str) -> ServeRecipe:
    return ServeRecipe(run="r", host=host, port=8123, access=AccessPart(keys="keys.toml"))


def test_a_server_on_another_node_is_called_by_that_nodes_address() -> None:
    assert HERE.url(recipe("127.0.0.1")) == "http://127.0.0.1:8123"
    assert HERE.url(recipe("0.0.0.0")) == "http://0.0.0.0:8123"
    assert THERE.url(recipe("0.0.0.0")) == "http://10.0.0.2:8123"
    assert THERE.url(recipe("10.0.0.2")) == "http://10.0.0.2:8123"


def test_a_server_on_the_loopback_of_another_node_is_said_to_be_out_of_reach() -> None:
    assert HERE.warning(recipe("127.0.0.1")) is None
    assert THERE.warning(recipe("0.0.0.0")) is None
    assert "the head node's own (10.0.0.2)" in (THERE.warning(recipe("127.0.0.1")) or "")


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port: {port} on 127.0.0.1 cannot be used" in (port_problem("127.0.0.1", port) or "")
    assert port_problem("127.0.0.1", port) is None
