"""The lock of a run folder at a URI: a lease, for a store knows no lock that ends with its process.

`RUN/.<verb>.lock/` holds numbered files; the highest is the lease, and a number can be taken by one alone. Its holder
writes it again every `RENEW_SECONDS`. Who finds one watches it: once it changes, its holder lives; one that stays the
same for `SECONDS` by the watcher's own clock, or whose process on this machine is gone, is left behind and the next
number is taken. A holder that finds another's number, or its own gone, has lost the folder: it writes nothing any more.

Kind: pure, but for files elsewhere and a thread.
"""

import contextlib
import json
import logging
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sote.cluster import store
from sote.cluster.errors import RunFailed, RunFolderError, Unreachable

SECONDS = 60.0  # a lease that is not renewed for so long is left behind
RENEW_SECONDS = 15.0
WATCH_SECONDS = 1.0  # between two looks at another's lease
_PROC: Final = Path("/proc")

log = logging.getLogger(__name__)


class Lease:
    """A lease that this process holds. `check` raises RunFailed once it is another's."""

    def __init__(self, folder: str, number: int, *, verb: str, lock: str) -> None:
        self.folder, self.number, self.verb, self.lock = folder, number, verb, lock
        self.facts = _me() | {"verb": verb}
        self.renewed, self.count, self.lost = time.monotonic(), 0, False
        self._token = ""
        self._busy, self._ended = threading.Lock(), threading.Event()

    @property
    def uri(self) -> str:
        return f"{self.lock}/{self.number:06d}"

    def take(self) -> bool:
        """Create the lease; False if another was first."""
        self.renewed = time.monotonic()
        self._token = store.create(self.uri, self._data()) or ""
        return bool(self._token)

    def check(self) -> None:
        """Before a write: raises RunFailed if the folder is another's. A lease that is late is renewed first."""
        if not self.lost and time.monotonic() - self.renewed > SECONDS / 2:
            self.renew()
        if self.lost:
            raise RunFailed(
                f"{self.folder}: run: another `sote {self.verb}` has taken it, for this one was not heard of for "
                f"{SECONDS:.0f} s; this one ends and writes nothing any more"
            )

    def renew(self) -> None:
        """Say that the holder lives, if it still holds. Raises Unreachable."""
        with self._busy:
            moment, found = time.monotonic(), store.entries(self.lock)
            mine = found.get(f"{self.number:06d}")
            if self.lost or mine is None or mine.token != self._token or max(found) > f"{self.number:06d}":
                self.lost = True
                return
            self.count += 1
            self._token, self.renewed = store.put(self.uri, self._data()), moment

    def keep(self) -> None:
        """Renew until `release`; when it is lost, interrupt the main thread."""
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self.renew()
            except Unreachable as error:
                log.warning("the lease of a run folder was not renewed: %s", error)
            if self.lost:
                log.error("a run folder was taken by another process run=%s", self.folder)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def release(self, thread: threading.Thread) -> None:
        """Give the lease back, unless it is another's."""
        self._ended.set()
        thread.join()
        if not self.lost:
            try:
                store.delete([self.uri])
            except Unreachable as error:  # it is left behind, and found dead by the next
                log.warning("the lease of a run folder was not given back: %s", error)

    def _data(self) -> bytes:
        return json.dumps(self.facts | {"renewed": self.count}, sort_keys=True).encode()


@contextlib.contextmanager
def held(folder: str, *, verb: str) -> Iterator[Lease]:
    """Hold the run folder at the URI `folder` for a verb.

    Raises RunFolderError: another process holds it, which takes up to `RENEW_SECONDS` to see (on this machine no time).
    Raises RunFailed where the lease was lost inside.
    """
    lease = _taken(folder, verb=verb)
    thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
    thread.start()
    try:
        try:
            yield lease
        finally:
            lease.release(thread)
    except KeyboardInterrupt:
        lease.check()  # it is this that interrupted us, or the user
        raise


def _taken(folder: str, *, verb: str) -> Lease:
    lock = f"{folder}/.{verb}.lock"
    found = store.entries(lock)
    number = int(max(found)) if found else 0
    if found:
        _watch(folder, verb=verb, lease=f"{lock}/{max(found)}")
    lease = Lease(folder, number + 1, verb=verb, lock=lock)
    if not lease.take():
        raise in_use(folder, verb)
    store.delete([f"{lock}/{name}" for name in found])
    return lease


def _watch(folder: str, *, verb: str, lease: str) -> None:
    """Come back when a lease is left behind or given back; raises RunFolderError once its holder is seen to live."""
    try:
        there = json.loads(store.read(lease))
        token = store.entry(lease).token
        alive = _alive(there)
        if alive:
            raise in_use(folder, verb)
        end = time.monotonic() + (SECONDS if alive is None else 0)
        if alive is None:
            log.warning("the run folder is held by %s: waiting %.0f s for a sign of it", there.get("host"), SECONDS)
        while time.monotonic() < end:
            time.sleep(WATCH_SECONDS)
            if store.entry(lease).token != token:
                raise in_use(folder, verb)
    except FileNotFoundError:
        return


def in_use(folder: str, verb: str) -> RunFolderError:
    """What is said to the second of two commands on one folder, here or at a URI."""
    return RunFolderError(f"{folder}: run: another `sote {verb}` is writing to it; wait for that one or stop it")


def _me() -> dict[str, Any]:
    """What tells this process from all others, and whether it lives can be seen by on its own machine."""
    pid = os.getpid()
    return {
        "host": platform.node(),
        "machine": _machine(),
        "pid": pid,
        "since": _since(pid),
        "nonce": secrets.token_hex(8),
    }


def _machine() -> str | None:
    """The running system and its space of process numbers: a container has its own. None where that cannot be told."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return None


def _since(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; None if it does not live."""
    try:
        state, *rest = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]


def _alive(holder: dict[str, Any]) -> bool | None:
    """Whether a lease's holder lives, as far as that can be seen from here."""
    if _machine() is None or holder.get("machine") != _machine():
        return None
    return _since(int(holder["pid"])) == holder.get("since")
