"""Run folders, pictures, latents and weights at a URI: all code works on paths, and a URI has a mirror here.

The mirror of `s3://bucket/runs/a` is `<cache>/sote/remote/s3/bucket/runs/a` on each node. URI and path say the same, so
a path in the mirror is its URI, whichever function it is handed to; a local path (a shared file system, too) is used in
place, and everything below leaves it alone. A file of the mirror carries in its time of change what it was there, so
that one request tells whether it still is; who changes it here makes it another, which is brought again.

Kind: pure, but for files here and there.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import IO, Final

from sote.cluster import store
from sote.cluster.errors import UserError
from sote.cluster.store import Entry

REMOTE: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
LOCAL: Final = ("file", "local")
READ_ONLY: Final = ("http", "https", "github", "data")
_GLOB: Final = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_ODD: Final = re.compile(r"//|/\.{1,2}/")  # in a key that no path can have


@dataclass
class _Held:
    """A folder that this process alone writes to: what lies there. `check` raises once it is another's."""

    root: Path
    check: Callable[[], None]
    entries: dict[Path, Entry] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)

    def note(self, path: Path, entry: Entry) -> None:
        self.entries[path] = entry
        while path != self.root and path.parent not in self.folders:
            path = path.parent
            self.folders.add(path)

    def forget(self, path: Path) -> None:
        self.entries.pop(path, None)
        if path in self.folders:
            self.entries = {each: entry for each, entry in self.entries.items() if not each.is_relative_to(path)}
            self.folders = {each for each in self.folders if not each.is_relative_to(path)}


_held: list[_Held] = []


def place(text: str) -> Path:
    """Where a path or URI lies on this machine: a path as it is, a URI in the mirror. Nothing is asked or made.

    Raises UserError: an unknown protocol, a missing package, credentials in the URI, a name that no path can have.
    """
    found = REMOTE.fullmatch(text)
    if found is None:
        return Path(text)
    protocol, rest = found[1].lower(), found[2]
    if protocol in LOCAL:
        return Path(rest)
    host = rest.partition("/")[0]
    if ":" in host.rpartition("@")[0] or "?" in rest:
        shown = f"{protocol}://{rest.rpartition('@')[2].partition('?')[0]}"
        raise UserError(
            f"{shown}: a URI has no credentials or options in it; they come from the environment or the machine's role"
        )
    parts = rest.rstrip("/").split("/")
    if protocol in READ_ONLY or "::" in rest:
        raise UserError(f"{text}: cannot be a folder that is written to; name a path or s3://bucket/folder")
    if not host or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{text}: is no place: say {protocol}://bucket/folder")
    store.at(text)  # known, and its package is here
    return _mirror().joinpath(protocol, *parts)


def uri(path: Path) -> str | None:
    """The URI of a path in the mirror; None for a local one."""
    root = str(_mirror()) + os.sep
    text = str(path)
    if not text.startswith(root):
        return None
    protocol, _, rest = text[len(root) :].replace(os.sep, "/").partition("/")
    return f"{protocol}://{rest}" if rest else None


def named(path: Path) -> str:
    """A path for people and records: its URI, or itself."""
    return uri(path) or str(path)


def push(path: Path, *, source: Path | None = None) -> None:
    """Bring the file to its URI, whole or not at all. `source`: where its content lies, which then becomes `path`."""
    where = uri(path)
    if where is None:
        return
    held, content = _holder(path), source or path
    if held is not None:
        held.check()
    token = store.put(where, content)
    _stamp(content, token)
    if held is not None:
        held.note(path, Entry(token, content.stat().st_size))


def put(path: Path, data: bytes) -> None:
    """Bring `data` to the URI of a path in the mirror, and not here."""
    held = _holder(path)
    if held is not None:
        held.check()
    token = store.put(named(path), data)
    if held is not None:
        held.note(path, Entry(token, len(data)))


def fetch(path: Path) -> Path:
    """The file here, as it is at its URI at this moment. Raises FileNotFoundError."""
    where = uri(path)
    if where is None:
        return path
    try:
        entry = store.entry(where)
    except FileNotFoundError:
        path.unlink(missing_ok=True)
        raise
    _bring(path, entry)
    return path


def known(path: Path) -> Path:
    """As `fetch`; but in the process that holds the folder, which knows what lies there, nothing is asked: for what
    that process alone writes.

    Raises FileNotFoundError.
    """
    held = _holder(path)
    if held is None:
        return fetch(path)
    if path not in held.entries:
        raise FileNotFoundError(errno.ENOENT, "no such file", named(path))
    _bring(path, held.entries[path])
    return path


def is_known(path: Path) -> bool:
    """As `exists`, for a file or folder; but in the process that holds the folder nothing is asked."""
    held = _holder(path)
    return exists(path) if held is None else path in held.entries or path in held.folders


def known_paths(folder: Path, pattern: str) -> list[Path]:
    """As `paths`; but in the process that holds the folder nothing is asked."""
    held = _holder(folder)
    if held is None:
        return paths(folder, pattern)
    name = pattern.rpartition("/")[2]  # of tens of thousands of files, most are told apart by it alone
    alike = held.entries if "*" in name else [path for path in held.entries if path.name == name]
    inside = (path for path in alike if path.is_relative_to(folder))
    return sorted(path for path in inside if _matches(path.relative_to(folder), pattern))


def known_tree(folder: Path, pattern: str) -> list[Path]:
    """As `fetch_tree`; but in the process that holds the folder nothing is listed."""
    held = _holder(folder)
    if held is None:
        return fetch_tree(folder, pattern)
    wanted = known_paths(folder, pattern)
    store.each(lambda path: _bring(path, held.entries[path]), wanted)
    return wanted


def fetch_tree(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Bring every file below `folder` that matches; what is there no more goes here, too. One listing, sorted paths.

    `*` is any part of one name, `**/` any folders or none.
    """
    found = _entries(folder)
    if found is None:
        return paths(folder, pattern)
    wanted = {path: entry for path, entry in found.items() if _matches(path.relative_to(folder), pattern)}
    for path in [path for path in folder.rglob("*") if path.is_file() and path not in found]:
        if _matches(path.relative_to(folder), pattern) and not _is_own(path):
            path.unlink(missing_ok=True)
    stale = [(path, entry) for path, entry in wanted.items() if not _is_current(path, entry)]
    store.each(lambda pair: _bring(*pair), stale)
    return sorted(wanted)


def paths(folder: Path, pattern: str = "**/*") -> list[Path]:
    """The files below `folder` that match, as they are there; none is brought. One listing, sorted."""
    found = _entries(folder)
    if found is None:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    return sorted(path for path in found if _matches(path.relative_to(folder), pattern))


def mirrored(folder: Path) -> list[Path]:
    """The files that lie here in a folder of the mirror, sorted; of a local folder none."""
    if uri(folder) is None:
        return []
    return sorted(path for path in folder.rglob("*") if path.is_file() and not _is_own(path))


def names(folder: Path) -> list[str]:
    """The names of what lies directly in the folder, there; sorted. None there: empty."""
    where = uri(folder)
    if where is not None:
        return store.names(where)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def exists(path: Path) -> bool:
    """Whether a file or a folder with files lies there."""
    where = uri(path)
    return path.exists() if where is None else store.exists(where)


def remove(*several: Path) -> None:
    """Take files and whole folders away, here and there, if they are there."""
    gone: list[Path] = []
    for path in several:
        held, known = _holder(path), list[Path]()
        if held is not None:
            held.check()
            known = [each for each in held.entries if each == path or each.is_relative_to(path)]
            held.forget(path)
        if uri(path) is not None:  # what the holder does not know of may be another process's
            gone += known or ([path] if path.is_file() else list(_entries(path) or [path]))
    store.delete([named(path) for path in gone])
    for path in several:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def holding(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """While it lasts, this process knows what lies in `folder`: one listing now, and what it writes itself. `check` is
    asked before every write, and raises when the folder has become another's."""
    found = _entries(folder)
    if found is None:
        yield
        return
    held = _Held(folder, check)
    for path, entry in found.items():
        held.note(path, entry)
    _held.append(held)
    try:
        yield
    finally:
        _held.remove(held)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file as it is there, open for reading and seeking, without bringing all of it. Raises FileNotFoundError."""
    where = uri(path)
    if where is None:
        with path.open("rb") as file:
            yield file
        return
    if _is_current(path, store.entry(where)):
        with path.open("rb") as file:
            yield file
        return
    filesystem, there = store.at(where)
    with filesystem.open(there, "rb", cache_type="none") as file:
        yield file


def _holder(path: Path) -> _Held | None:
    return next((held for held in _held if path.is_relative_to(held.root)), None)


def _entries(folder: Path) -> dict[Path, Entry] | None:
    """Every file below a folder of the mirror as it is there; None for a local folder."""
    where = uri(folder)
    if where is None:
        return None
    found = store.entries(where)
    return {folder / name: entry for name, entry in found.items() if not _ODD.search(f"/{name}/")}


def _bring(path: Path, entry: Entry) -> None:
    if _is_current(path, entry):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.tmp")
    try:
        store.get(named(path), temporary)
        _stamp(temporary, entry.token)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _stamp(file: Path, token: str) -> None:
    os.utime(file, ns=(time.time_ns(), _time_of(token)))


def _is_current(path: Path, entry: Entry | None) -> bool:
    """Whether what is here is what `entry` says of what is there."""
    try:
        here = path.stat()
    except FileNotFoundError:
        return False
    return entry is not None and here.st_size == entry.size and here.st_mtime_ns == _time_of(entry.token)


def _time_of(token: str) -> int:
    """A time in nanoseconds, before 2030, that stands for a token: 60 bits of its hash."""
    number = int.from_bytes(hashlib.sha256(token.encode()).digest()[:8])
    return (number >> 32) % 1_900_000_000 * 1_000_000_000 + number % 1_000_000_000


def _is_own(path: Path) -> bool:
    """Whether a file is one of a process here, which never goes there: locks and what is not whole yet."""
    return path.name.startswith(".") and path.suffix in (".tmp", ".lock")


def _matches(path: PurePath, pattern: str) -> bool:
    parts = (_GLOB.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))
    return re.fullmatch("".join(parts), path.as_posix()) is not None


def _mirror() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "sote" / "remote"
