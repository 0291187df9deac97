"""Webhooks: who may be told, what they are told, how often it is tried, and that the next server goes on with it."""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sote.cluster.errors import RequestError
from sote.serve.jobfiles import Hook
from sote.serve.recipe import JobsPart, ServeRecipe
from sote.serve.webhooks import NoAddress, Rule, Teller, is_public, signature
from tests.serve.brush import Brush, Clock, House, asked, until, visitor

OPEN = Rule(None, is_public=False)
STRICT = Rule(None, is_public=True)
ADA = visitor()


@dataclass
class Listener:
    """A small real HTTP server that answers as a test says, and keeps what it was sent."""

    statuses: list[int] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    url: str = ""
    extra: str = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:"))
        self.heads.append(head)
        self.bodies.append(await reader.readexactly(length))
        status = self.statuses.pop(0) if self.statuses else 200
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{self.extra}\r\n".encode())
        await writer.drain()
        writer.close()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Listener"]:
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/done?x=1"
        async with server:
            yield self


def header(head: str, name: str) -> str:
    return next(line.partition(": ")[2] for line in head.splitlines() if line.lower().startswith(name.lower() + ":"))


async def told(teller: Teller, hook: Hook, body: bytes = b"{}") -> tuple[Hook, list[Hook]]:
    noted: list[Hook] = []

    async def note(each: Hook) -> bool:
        noted.append(each)
        return True

    return await teller.tell(hook, body, noted=note), noted


@pytest.mark.parametrize(
    ("address", "is_good"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # where clouds keep their machines' credentials
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::808:808", True),
    ],
)
def test_only_addresses_that_everybody_can_reach_are_public(address: str, is_good: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is is_good


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "//example.com",
        "http://",
        "http:///path",
        "https://user:secret@example.com/",
        "not an address",
        "http://exa mple.com/",
        "http://[::1/",
        "http://example.com:99999999/",
        "http://example.com:0/",
        "http://\x00/",
        "http://\ud800/",
        "http://xn--a/",
        "",
        "https://example.com/" + "a" * 2000,
    ],
)
def test_what_is_no_address_of_the_web_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="webhook_url: "):
        asyncio.run(OPEN.address(url))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://localhost:8000/v1/jobs",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://169.254.169.254/latest/meta-data",
    ],
)
def test_a_public_server_asks_nothing_in_its_own_network(url: str) -> None:
    with pytest.raises(RequestError, match=r"no public address|no address that can be found"):
        asyncio.run(STRICT.address(url))


def test_a_name_that_leads_nowhere_is_told_as_such() -> None:
    with pytest.raises(NoAddress, match="has no address"):
        asyncio.run(STRICT.address("http://nowhere.invalid/"))


def test_listed_hosts_may_be_anywhere_and_no_other_may_be_told() -> None:
    rule = Rule(("Localhost",), is_public=True)
    assert asyncio.run(rule.address("http://LOCALHOST/")) == "localhost"
    with pytest.raises(RequestError, match="tells only Localhost"):
        asyncio.run(rule.address("http://8.8.8.8/"))
    with pytest.raises(RequestError, match="tells only nobody"):
        asyncio.run(Rule((), is_public=False).address("http://localhost/"))


def test_a_public_server_connects_to_the_address_that_it_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is looked up once: what it says a moment later has no part in it."""
    asked_for: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def looked_up(host: str, port: int, **more: object) -> object:
            name = host.decode() if isinstance(host, bytes) else host
            asked_for.append(name)
            return await real("8.8.8.8" if name == "hook.example" else name, port, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "getaddrinfo", looked_up)
        # Where the test's own server is stands for a public address
        monkeypatch.setattr("sote.serve.webhooks._resolved", resolved_here)
        monkeypatch.setattr("sote.serve.webhooks.is_public", lambda _: True)
        async with Listener().open() as listener:
            url = listener.url.replace("127.0.0.1", "hook.example")
            hook, _ = await told(Teller(STRICT), Hook(url=url, secret="s"))
            assert hook.state == "delivered"
            assert header(listener.heads[0], "host").startswith("hook.example:")
            assert "hook.example" not in asked_for

    asyncio.run(main())


async def resolved_here(host: str, port: int) -> list[ipaddress.IPv4Address]:
    return [ipaddress.IPv4Address("127.0.0.1")]


def test_the_body_is_signed_with_the_secret() -> None:
    async def main() -> None:
        async with Listener().open() as listener:
            hook, noted = await told(Teller(OPEN), Hook(url=listener.url, secret="secret"), b'{"status": "OK"}')
            assert (hook.state, hook.tries, hook.error) == ("delivered", 1, None)
            assert noted == [hook]
            assert listener.bodies == [b'{"status": "OK"}']
            assert listener.heads[0].startswith("POST /done?x=1 ")
            signed = hmac.new(b"secret", b'{"status": "OK"}', hashlib.sha256).hexdigest()
            assert header(listener.heads[0], "X-Sote-Signature") == f"sha256={signed}"
            assert signature(b'{"status": "OK"}', "other") != f"sha256={signed}"

    asyncio.run(main())


def test_a_failure_is_tried_again_and_given_up_after_five_times() -> None:
    async def main() -> None:
        async with Listener([500, 404, 200]).open() as listener:
            hook, noted = await told(Teller(OPEN, waits=(0, 0, 0, 0)), Hook(url=listener.url, secret="s"))
            assert [each.error for each in noted] == ["answered 500", "answered 404", None]
            assert hook.state == "delivered"
        async with Listener([500] * 9).open() as listener:
            hook, noted = await told(Teller(OPEN, waits=(0, 0, 0, 0)), Hook(url=listener.url, secret="s"))
            assert (hook.state, hook.tries, hook.error) == ("failed", 5, "answered 500")

    asyncio.run(main())


def test_nobody_there_is_a_failure_in_words() -> None:
    async def main() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
            hook, _ = await told(Teller(OPEN, waits=(0,)), Hook(url=url, secret="s"))
        assert (hook.state, hook.tries) == ("failed", 2)
        assert hook.error is not None
        assert "ConnectError" in hook.error

    asyncio.run(main())


def test_a_redirect_is_not_followed() -> None:
    async def main() -> None:
        async with Listener().open() as other:
            listener = Listener([307], extra=f"Location: {other.url}\r\n")
            async with listener.open():
                hook, _ = await told(Teller(OPEN, waits=()), Hook(url=listener.url, secret="s"))
            assert hook.error == "answered 307"
            assert other.bodies == []

    asyncio.run(main())


def test_an_address_that_is_refused_is_not_tried_again() -> None:
    hook, _ = asyncio.run(told(Teller(STRICT), Hook(url="http://127.0.0.1/", secret="s")))
    assert (hook.state, hook.tries) == ("failed", 1)


def test_a_job_tells_its_end_in_fals_form(tmp_path: Path) -> None:
    async def main() -> None:
        house, brush = House(tmp_path, Clock()), Brush()
        async with Listener().open() as listener, house.open(brush) as jobs:
            first, second, third = [
                (await jobs.create(asked(seed), ADA, base_url="http://x", webhook_url=listener.url)).record
                for seed in (1, 2, 3)
            ]
            await jobs.cancel(second.id, ADA)
            brush.errors = []
            brush.gate.set()
            await until(lambda: len(listener.bodies) == 3)
            told = {document["request_id"]: document for document in map(json.loads, listener.bodies)}
            assert told[first.id]["status"] == "OK"
            assert told[first.id]["payload"] == json.loads(await jobs.answer(first.id) or b"")
            assert told[first.id]["error"] is None
            assert (told[second.id]["status"], told[second.id]["payload"]) == ("ERROR", None)
            assert told[second.id]["error"] == "the job was cancelled"
            assert told[third.id]["status"] == "OK"
            assert first.webhook is not None
            place = [json.loads(body)["request_id"] for body in listener.bodies].index(first.id)
            signed = signature(listener.bodies[place], first.webhook.secret)
            assert header(listener.heads[place], "X-Sote-Signature") == signed

            def is_noted() -> bool:
                record = jobs.files.record(first.id)
                return record is not None and record.webhook is not None and record.webhook.state == "delivered"

            await until(is_noted)

    asyncio.run(main())


def test_a_failed_job_tells_its_error(tmp_path: Path) -> None:
    from sote.cluster.errors import RunFailed

    async def main() -> None:
        house, brush = House(tmp_path, Clock()), Brush()
        brush.errors = [RunFailed("prior: step 2 of 4: values are not finite")]
        async with Listener().open() as listener, house.open(brush) as jobs:
            await jobs.create(asked(), ADA, base_url="http://x", webhook_url=listener.url)
            await until(lambda: len(listener.bodies) == 1)
            told = json.loads(listener.bodies[0])
            assert (told["status"], told["error"]) == ("ERROR", "prior: step 2 of 4: values are not finite")

    asyncio.run(main())


def test_a_webhook_that_was_not_delivered_is_delivered_by_the_next_server(tmp_path: Path) -> None:
    async def main() -> None:
        house, brush = House(tmp_path, Clock()), Brush()
        brush.gate.set()
        async with Listener([500]).open() as listener:
            async with house.open(brush) as jobs:
                id = (await jobs.create(asked(), ADA, base_url="http://x", webhook_url=listener.url)).record.id

                def is_tried() -> bool:
                    record = jobs.files.record(id)
                    return record is not None and record.webhook is not None and record.webhook.tries == 1

                await until(is_tried)
            async with house.open(Brush()) as after:
                after.keeper.teller.waits = (0,)
                await until(lambda: len(listener.bodies) == 2)
                assert listener.bodies[0] == listener.bodies[1]

    asyncio.run(main())


def test_a_slow_listener_holds_up_no_job(tmp_path: Path) -> None:
    async def main() -> None:
        house, brush = House(tmp_path, Clock()), Brush()
        brush.gate.set()
        hanging = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{hanging.sockets[0].getsockname()[1]}/"
        async with house.open(brush) as jobs:
            for seed in (1, 2, 3):
                await jobs.create(asked(seed), ADA, base_url="http://x", webhook_url=url)
            await until(lambda: brush.done == [1, 2, 3])
            tries = [record.webhook.tries for record in jobs.files.records() if record.webhook]
            assert tries == [0, 0, 0]  # none has come to an end yet
        hanging.close()

    asyncio.run(main())


def test_a_public_server_refuses_a_job_that_would_ask_its_own_network(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    recipe = ServeRecipe.model_validate(
        {"run": str(tmp_path), "host": "0.0.0.0", "access": {"keys": str(keys)}, "jobs": JobsPart()}
    )

    async def main() -> None:
        house = House(tmp_path, Clock(), recipe=recipe)
        async with house.open(Brush()) as jobs:
            with pytest.raises(RequestError, match=r"webhook_url: '127\.0\.0\.1' is no public address"):
                await jobs.create(asked(), ADA, base_url="http://x", webhook_url="http://127.0.0.1:9/")
            assert jobs.files.ids() == []

    asyncio.run(main())
