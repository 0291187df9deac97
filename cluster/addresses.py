"""Addresses of a cluster, in the two forms that there are, and whether somebody listens there.

    HOST:PORT, auto         Ray's control store (port 6379): what a command on a machine of the cluster connects to
    http[s]://HOST:PORT     the job API (port 8265), which the dashboard of the head node serves

Kind: pure, but for the network.
"""

import socket
from typing import Any, Final
from urllib.parse import urlsplit

from sote.cluster.errors import UserError

AUTO: Final = "auto"
API: Final = "http://127.0.0.1:8265"  # Ray's default: the dashboard listens on the head's loopback
SECONDS_TO_CONNECT: Final = 5.0


def control(address: str) -> tuple[str, int] | None:
    """Host and port of a control store; None for "auto", which Ray finds by itself. Raises UserError."""
    if address == AUTO:
        return None
    if address.startswith("ray://"):
        raise UserError(
            f"--address {address}: Ray Client is off in our clusters; submit the command as a job: "
            f"`sote submit --address http://{urlsplit(address).hostname or 'HOST'}:8265 -- VERB RECIPE`"
        )
    if "://" in address:
        raise UserError(
            f"--address {address}: this is the form of the job API's address: `sote submit --address {address} -- VERB "
            "RECIPE`; a command that runs here takes HOST:PORT of the control store (port 6379), or auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(
            f"--address {address}: not an address; give HOST:PORT of the control store (port 6379), or auto"
        )
    return host.strip("[]"), int(port)


def listens(host: str, port: int) -> str | None:
    """None if something listens there; else why it cannot be reached, in the system's words."""
    try:
        socket.create_connection((host, port), timeout=SECONDS_TO_CONNECT).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def is_of_this_machine(host: str) -> bool:
    """Whether a name or an address is one of this machine's own, loopback or not."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    return any(_can_bind(family, place) for family, _, _, _, place in found)


def _can_bind(family: int, place: tuple[Any, ...]) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as asked:
        try:
            asked.bind(place)
        except OSError:
            return False
    return True


def api(address: str | None) -> str:
    """The URL of a job API; without an address the one on this machine. Raises UserError."""
    if address is None or address == AUTO:
        return API
    if address.startswith("ray://"):
        raise UserError(f"--address {address}: Ray Client is not used here; jobs go to http://HOST:8265")
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    try:
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_whole = False
    if not is_whole:
        raise UserError(f"--address {address}: not the address of a job API; give http://HOST:8265 or https://HOST")
    if parts.username is not None or parts.password is not None:
        raise UserError("--address: holds a user or a password; take them out, Ray's token is what opens the door")
    return url.rstrip("/")
