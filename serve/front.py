"""Where a server listens: Serve's HTTP proxy is on the head node alone, which need not be the node of the command.

What can be told there only (whether the port is free, whether somebody answers) a task on that node tells.

Kind: wiring.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, TypeVar

import httpx
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sote.cluster.errors import UserError
from sote.serve.recipe import ServeRecipe
from sote.serve.retrying import MARK

HEAD: Final = "node:__internal_head__"  # a resource that Ray gives the head node alone
LOOK_SECONDS: Final = 60.0  # of one request for readiness
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What a server says to a question for readiness. `asks_again`: whether requests outlive its front."""

    is_ready: bool
    asks_again: bool


@dataclass(frozen=True)
class Front:
    """The node of the HTTP proxy: its id and address, and whether this process is on it."""

    node: str
    address: str
    is_here: bool

    @staticmethod
    def find() -> "Front":
        """Of the connected cluster."""
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        head = next(node for node in nodes if node["Alive"] and HEAD in node["Resources"])
        here = ray.get_runtime_context().get_node_id() == head["NodeID"]
        return Front(head["NodeID"], head["NodeManagerAddress"], here)

    def url(self, recipe: ServeRecipe) -> str:
        """What a client that is where this process is should call."""
        host = self.address if not self.is_here and _is_any(recipe.host) else recipe.host
        return f"http://{f'[{host}]' if ':' in host else host}:{recipe.port}"

    def warning(self, recipe: ServeRecipe) -> str | None:
        """What is to be said of the address; None where it can be called from here."""
        if self.is_here or recipe.is_public:
            return None
        return (
            f"host: {recipe.host} is the head node's own ({self.address}), not this one's: only there the server can "
            'be called; for others set host = "0.0.0.0" and access.keys'
        )

    def check_port(self, recipe: ServeRecipe) -> None:
        """Raises UserError if nothing can listen on the recipe's port there."""
        if problem := self._there(port_problem, recipe.host, recipe.port):
            raise UserError(problem)

    def look(self, recipe: ServeRecipe) -> Answer | None:
        """Ask for readiness; None where nobody answers yet."""
        host = recipe.host if ":" not in recipe.host else f"[{recipe.host}]"
        return self._there(_look, f"http://{host}:{recipe.port}/readyz")

    def _there(self, act: Callable[..., T], *arguments: Any) -> T:
        if self.is_here:
            return act(*arguments)
        strategy = NodeAffinitySchedulingStrategy(self.node, soft=False)
        task = ray.remote(act).options(num_cpus=0, scheduling_strategy=strategy)
        found: T = ray.get(task.remote(*arguments))
        return found


def port_problem(host: str, port: int) -> str | None:
    """Why nothing can listen on `port` of `host` of this node; None where something can."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free, as for the proxy
            probe.bind(where)
    except OSError as error:
        return f"port: {port} on {host} cannot be used ({error.strerror}); set `port` (or `host`) to a free one"
    return None


def _look(url: str) -> Answer | None:
    try:
        answer = httpx.get(url, timeout=LOOK_SECONDS, trust_env=False)
    except httpx.TransportError:
        return None
    return Answer(answer.status_code == httpx.codes.OK, MARK[0].decode() not in answer.headers)


def _is_any(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
