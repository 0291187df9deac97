"""Keys of the API: who they belong to and what they may ask for, in a TOML file that holds only their hashes.

    [[key]]
    name = "ada"
    hash = "sha256:9f86d0..."
    created = "2025-01-31T12:00:00+00:00"
    [key.limits]
    requests_per_minute = 30

A key is 256 random bits, so one plain SHA-256 of it is enough at rest: slow, salted hashes hold off guesses at words
that people choose, and there is no guessing here.

Kind: pure, but for files.
"""

import contextlib
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import Field, StringConstraints, ValidationError

from sote.cluster import storage
from sote.cluster.errors import UserError
from sote.cluster.recipe import Part

log = logging.getLogger(__name__)

KEY_BYTES = 32
PREFIX = "sote_"  # of every key, so that people and scanners of leaked secrets know what it is
LOOK_SECONDS = 1.0  # how often a running server looks whether the file has changed, at most
TITLE = "# Keys of a Sote server: hashes only. `sote key` adds and removes; comments stay until a key is removed.\n"

Name = Annotated[str, StringConstraints(pattern=r"^[\w.@-]{1,64}$")]
Count = Annotated[int, Field(ge=1)]


class Limits(Part):
    """What a key may ask for at most; None: no more than the server's own limits.

    `requests_per_minute` in the long run; as many may come at once after a minute's rest. `concurrency`: requests that
    are worked on or wait in line. `max_pixels` and `max_steps` hold for one picture; steps are those of both stages.
    """

    requests_per_minute: Count | None = None
    concurrency: Count | None = None
    max_pixels: Count | None = None
    max_steps: Count | None = None
    max_images: Count | None = None


class Key(Part):
    """One key as it stands in the file."""

    name: Name
    hash: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    created: str
    limits: Limits = Limits()


class _File(Part):
    key: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Keys:
    """All keys of a file."""

    keys: tuple[Key, ...] = ()

    def find(self, key: str) -> Key | None:
        """Whose key it is. Takes the same time for every key, known or not."""
        given, found = hash_of(key).encode(), None
        for each in self.keys:
            if hmac.compare_digest(each.hash.encode(), given):
                found = each
        return found


def hash_of(key: str) -> str:
    """A key as it stands in the file."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def load(path: Path) -> Keys:
    """The keys of a file. Raises UserError with a line `file: field: what is wrong` for each problem."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of keys; `sote key {path} NAME` makes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a file of keys ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    try:
        found = _File.model_validate(values).key
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise UserError("\n".join(lines)) from None
    for field in ("name", "hash"):
        values_of = [getattr(each, field) for each in found]
        if twice := next((value for value in values_of if values_of.count(value) > 1), None):
            raise UserError(f"{path}: key.{field}: {twice!r} stands there twice; remove one")
    return Keys(found)


def add(path: Path, name: str, limits: Limits) -> str:
    """Make a key and add it to the file, which is made if it is not there; returns the key, which is kept nowhere.

    Raises UserError: the name is taken or none that can be used, or the file is broken.
    """
    with _locked(path):
        known = load(path).keys if path.exists() else ()
        if any(each.name == name for each in known):
            raise UserError(f"{path}: name: {name!r} has a key already; take another name, or remove it with --revoke")
        made = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        try:
            key = Key(name=name, hash=hash_of(made), created=storage.now(), limits=limits)
        except ValidationError:
            raise UserError(f"name: {name!r} must be 1 to 64 letters, digits or any of . _ @ -") from None
        before = path.read_text(encoding="utf-8") if path.exists() else TITLE
        _write(path, before.rstrip("\n") + "\n" + _text(key))
    return made


def revoke(path: Path, name: str) -> None:
    """Remove a key from the file. Raises UserError if there is none of that name."""
    with _locked(path):
        known = load(path).keys
        left = [each for each in known if each.name != name]
        if len(left) == len(known):
            raise UserError(f"{path}: name: no key is named {name!r}; there are {', '.join(k.name for k in known)}")
        _write(path, TITLE + "".join(_text(each) for each in left))


class Watched:
    """The keys of a file as it is now: a key that is added or removed counts a second later.

    Raises UserError at first if the file is missing or broken. Later a missing file knows no key, and a broken one is
    named in the log while the keys before it hold on.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.clock = path, clock
        self.seen, self.keys, self.looked = _stamp(path), load(path), clock()  # a change in between is seen later

    def find(self, key: str) -> Key | None:
        """As `Keys.find`."""
        if self.clock() - self.looked >= LOOK_SECONDS:
            self.looked = self.clock()
            self._look()
        return self.keys.find(key)

    def _look(self) -> None:
        stamp = _stamp(self.path)
        if stamp == self.seen:
            return
        self.seen = stamp
        try:
            self.keys = load(self.path) if stamp else Keys()
            log.info("keys read file=%s keys=%d", self.path.name, len(self.keys.keys))
        except UserError as error:
            log.error("keys not read, those before hold on: %s", error)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file's content; None: there is no such file, or none that can be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _text(key: Key) -> str:
    """One key as TOML."""
    values = key.model_dump(exclude_none=True)
    limits = values.pop("limits")
    return f"\n[[key]]\n{tomli_w.dumps(values)}" + (f"[key.limits]\n{tomli_w.dumps(limits)}" if limits else "")


def _write(path: Path, text: str) -> None:
    """Only who owns the file may read it: names and limits are nobody else's business."""
    with storage.atomic(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among all who change files of keys in this folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
