"""Telling somebody that a job has ended: a POST to the address that the request named, tried again when it fails.

The body has fal's form and is signed: `X-Sote-Signature: sha256=<HMAC-SHA256 of the body, hex>` with the secret that
was told when the job was made. A server that strangers can reach asks no address in its own network: the name is
resolved, every address must be public, and the connection goes to the address that was checked, so that a name that
changes its mind (DNS rebinding) gains nothing. No redirect is followed and no proxy of the environment is used.

Kind: wiring.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx

from sote.cluster.errors import RequestError
from sote.serve.jobfiles import Hook, Record

SIGNATURE: Final = "X-Sote-Signature"
MAX_URL = 2000  # characters
HOST: Final = re.compile(r"[\w.:-]+")  # a name, or an address
WAITS: Final = (1.0, 4.0, 15.0, 40.0)  # seconds between the tries: five in a minute
TRY_SECONDS = 10.0  # for one try, from the name to the answer's status
AT_ONCE = 8

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class NoAddress(RequestError):
    """A name that cannot be resolved now; later it may."""


@dataclass(frozen=True)
class Rule:
    """Who may be told. `hosts`: these alone, wherever they are; None: anybody, on a public server at public
    addresses."""

    hosts: tuple[str, ...] | None
    is_public: bool

    async def address(self, url: str, *, turn: int = 0) -> str:
        """The address to connect to for `url`, another one each `turn` where there are several.

        Raises RequestError naming `webhook_url` if it may not be asked; its child NoAddress if none is found.
        """
        parsed = _parsed(url)
        host = parsed.raw_host.decode("ascii")
        if self.hosts is not None and host.lower() not in {each.lower() for each in self.hosts}:
            raise RequestError(f"webhook_url: this server tells only {', '.join(self.hosts) or 'nobody'}")
        if self.hosts is not None or not self.is_public:
            return host
        found = await _resolved(host, parsed.port or (443 if parsed.scheme == "https" else 80))
        if not all(is_public(each) for each in found):
            raise RequestError(f"webhook_url: {host!r} is no public address, and this server asks no other")
        return str(found[turn % len(found)])


class Teller:
    """Tells the ends of jobs. Each is tried at most `len(waits) + 1` times."""

    def __init__(self, rule: Rule, *, waits: tuple[float, ...] = WAITS) -> None:
        self.rule, self.waits = rule, waits
        self._places = asyncio.Semaphore(AT_ONCE)

    async def tell(self, hook: Hook, body: bytes, *, noted: Callable[[Hook], Awaitable[bool]]) -> Hook:
        """Deliver `body`; `noted` gets the hook after each try, so that the next owner goes on from there. Where it
        says False this ends."""
        while hook.state == "waiting":
            if hook.tries:
                await asyncio.sleep(self.waits[min(hook.tries, len(self.waits)) - 1])
            hook = await self._tried(hook, body)
            if not await noted(hook):
                break
        return hook

    async def _tried(self, hook: Hook, body: bytes) -> Hook:
        """The hook after one more try."""
        tries = hook.tries + 1
        is_last = tries > len(self.waits)
        try:
            async with self._places, asyncio.timeout(TRY_SECONDS):
                status = await self._post(hook, body)
            error = None if 200 <= status < 300 else f"answered {status}"
        except NoAddress as unknown:
            error = str(unknown)
        except RequestError as refused:
            error, is_last = str(refused), True
        except (httpx.HTTPError, OSError, UnicodeError) as failed:  # UnicodeError: a name that is none
            error = f"{type(failed).__name__}: {failed}".removesuffix(": ")
        state = "delivered" if error is None else "failed" if is_last else "waiting"
        return hook.model_copy(update={"tries": tries, "error": error, "state": state})

    async def _post(self, hook: Hook, body: bytes) -> int:
        """The status of the answer; its body is not read."""
        address = await self.rule.address(hook.url, turn=hook.tries)
        url = httpx.URL(hook.url)
        headers = {
            "Host": url.netloc.decode("ascii"),
            "Content-Type": "application/json",
            SIGNATURE: signature(body, hook.secret),
        }
        # Kept connections are told apart by address alone, and two names may share one
        limits = httpx.Limits(max_keepalive_connections=0)
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TRY_SECONDS, limits=limits) as client,
            client.stream(
                "POST",
                url.copy_with(host=address),
                content=body,
                headers=headers,
                extensions={"sni_hostname": url.raw_host.decode("ascii")},  # the certificate is that of the name
            ) as answer,
        ):
            return answer.status_code


def body_of(record: Record, answer: bytes | None) -> bytes:
    """What is told of an ended job, in fal's form. `answer`: result.json of a job that was completed."""
    is_ok = record.state == "COMPLETED" and answer is not None
    error = record.failure.message if record.failure else "the job was cancelled"
    document: dict[str, Any] = {
        "request_id": record.id,
        "gateway_request_id": record.id,
        "status": "OK" if is_ok else "ERROR",
        "payload": json.loads(answer) if answer is not None and is_ok else None,
        "error": None if is_ok else error,
    }
    return json.dumps(document).encode()


def signature(body: bytes, secret: str) -> str:
    """The value of the signature's header."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def is_public(address: Address) -> bool:
    """Whether everybody on the internet means the same machine by it; an IPv4 address inside an IPv6 one is looked at
    too."""
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo or ()
        # RFC 6052: the well-known prefix carries an IPv4 address in its last 32 bits
        carried = [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)] if address in _TRANSLATED else []
        inner = [each for each in (address.ipv4_mapped, address.sixtofour, *teredo, *carried) if each]
        if inner:
            return all(is_public(each) for each in inner)
    return address.is_global and not address.is_multicast


_TRANSLATED: Final = ipaddress.IPv6Network("64:ff9b::/96")


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        if len(url) <= MAX_URL and _is_sane(parsed):
            return parsed
    except (httpx.InvalidURL, UnicodeError):  # UnicodeError: a name that is none in IDNA's eyes
        pass
    raise RequestError(
        f"webhook_url: must be an http or https address of at most {MAX_URL} characters without a password in it"
    )


def _is_sane(url: httpx.URL) -> bool:
    is_port = url.port is None or 1 <= url.port <= 65_535
    return url.scheme in ("http", "https") and HOST.fullmatch(url.host) is not None and is_port and not url.userinfo


async def _resolved(host: str, port: int) -> list[Address]:
    """All addresses of `host`, at least one."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    except (OSError, UnicodeError):
        raise NoAddress(f"webhook_url: {host!r} has no address that can be found") from None
