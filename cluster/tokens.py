"""Ray's token authentication, from the client's side: where the token is, and when there must be one.

Nothing beyond loopback is talked to without a token; on loopback one is used if it is there, so that clusters with and
without tokens answer. A token is no encryption: beyond a network that is trusted, it needs https (or Ray's own TLS).

Kind: pure, but for the environment and the token's file.
"""

import contextlib
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from sote.cluster.errors import UserError

# Ray's own names, in the order in which its core looks: ray/_private/authentication, docs of token authentication
MODE: Final = "RAY_AUTH_MODE"
TOKEN: Final = "RAY_AUTH_TOKEN"  # noqa: S105  a variable's name
PLACE: Final = "RAY_AUTH_TOKEN_PATH"
DEFAULT: Final = Path(".ray") / "auth_token"

MAKE: Final = "make one with `ray get-auth-token --generate`, give the same one to the cluster (RAY_AUTH_TOKEN_PATH)"


def find() -> str | None:
    """The token as Ray finds it: the variable, the file that a variable names, the file in the home; None if there is
    none. Raises UserError for a file that is named and cannot be read."""
    if said := os.environ.get(TOKEN, "").strip():
        return said
    if named := os.environ.get(PLACE):
        try:
            return Path(named).read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise UserError(f"{PLACE}: {named}: cannot be read ({reason}); name the file of the token") from None
    try:
        return (Path.home() / DEFAULT).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def use(host: str) -> str | None:
    """The token to show at `host`, with Ray's authentication switched on for this process and those that it starts.

    None on loopback without a token. Raises UserError beyond loopback without one.
    """
    token = find()
    if token is None:
        if not is_loopback(host):
            raise UserError(f"{host}: no token, and nothing beyond this machine is talked to without one: {MAKE}")
        return None
    if not is_loopback(host) or MODE not in os.environ:
        os.environ[MODE] = "token"
    return token


@contextlib.contextmanager
def mode_kept() -> Iterator[None]:
    """What the block switches on or off in Ray's authentication is as it was behind it."""
    before = os.environ.get(MODE)
    try:
        yield
    finally:
        os.environ.pop(MODE, None)
        if before is not None:
            os.environ[MODE] = before


def headers(url: str) -> dict[str, str]:
    """The HTTP headers that show the token to the job API at `url`. Raises UserError as `use` does."""
    token = use(urlsplit(url).hostname or "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) is this machine's loopback. Names but localhost are not looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
