"""Files and folders, local or wherever fsspec reaches: one way to list and to read both.

A local file is named by its plain absolute path, any other by its fsspec URI (s3://, gs://, http://, memory://, ...).
What a plug-in of fsspec raises comes out as an OSError, a store (s3, gs) that fails several times as Unreachable; a
protocol that is not known here, or whose package is not installed, as a SourceError.

Kind: pure, but for reading files.
"""

import errno
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from sote.cluster import store
from sote.cluster.errors import Denied, SoteError, SourceError

T = TypeVar("T")
LOCAL = re.compile(r"^(file|local)://")
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True)
class Listing:
    """What lies in one folder, by names, but for hidden ones; `sizes` in bytes, as far as the listing says them."""

    folders: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    sizes: Mapping[str, int | None] = field(default_factory=dict)


def is_local(uri: str) -> bool:
    """Whether `uri` is a plain path."""
    return REMOTE.match(uri) is None


def absolute(path: str) -> str:
    """A path or URI of the user's as rows name it: `~` expanded and absolute, or the URI; no slash at the end."""
    path = LOCAL.sub("", path)
    if is_local(path):
        return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111  # Path raises for an unknown ~user
    return path.rstrip("/") if not path.endswith("://") else path


def real(uri: str) -> str:
    """The same for every spelling of one place: links followed, `..` resolved."""
    return os.path.realpath(uri) if is_local(uri) else _remote(uri)[0].unstrip_protocol(_remote(uri)[1].rstrip("/"))


def join(folder: str, name: str) -> str:
    """The file or folder `name` in `folder`."""
    return f"{folder.rstrip('/')}/{name}"


def kind(uri: str) -> Literal["folder", "file"] | None:
    """What lies there; None if nothing does. Raises OSError where that cannot be told."""
    if is_local(uri):
        path = Path(uri)
        return "folder" if path.is_dir() else "file" if path.exists() else None
    filesystem, path_there = _remote(uri)
    with _as_os_errors(uri):
        if _tried(lambda: filesystem.isdir(path_there), uri):
            return "folder"
        return "file" if _tried(lambda: filesystem.exists(path_there), uri) else None


def listing(folder: str) -> Listing:
    """What lies in a folder: regular files (and local links that lead nowhere), and folders. Raises OSError."""
    return _listing_here(folder) if is_local(folder) else _listing_there(folder)


def size(uri: str) -> int | None:
    """Size of a file in bytes; None for one that is gone, or whose server does not say."""
    if not is_local(uri):
        filesystem, path = _remote(uri)
        with _as_os_errors(uri):
            found = _tried(lambda: filesystem.info(path), uri).get("size")
            return None if found is None else int(found)
    try:
        return os.stat(uri).st_size  # noqa: PTH116  # for every file: Path costs as much again
    except OSError:
        return None


def matching(pattern: str) -> list[str]:
    """The files that a glob pattern names, sorted."""
    if is_local(pattern):
        folder = Path(pattern).anchor or "."
        return sorted(str(path) for path in Path(folder).glob(str(Path(pattern).relative_to(folder))) if path.is_file())
    filesystem, path = _remote(pattern)
    with _as_os_errors(pattern):
        found = _tried(lambda: filesystem.glob(path), pattern)
        return sorted(filesystem.unstrip_protocol(name) for name in found)


@contextmanager
def opened(uri: str) -> Iterator[IO[bytes]]:
    """The file, open for reading and seeking. Raises OSError."""
    if is_local(uri):
        with Path(uri).open("rb") as file:
            yield file
        return
    filesystem, path = _remote(uri)
    with _as_os_errors(uri):
        there = _tried(lambda: filesystem.open(path, "rb"), uri)
    with there, io.BufferedReader(_Reader(there, uri)) as file:
        yield file


def read(uri: str, *, start: int = 0, length: int | None = None) -> bytes:
    """`length` bytes of a file from `start` on (fewer at its end), or all that follow. Raises OSError."""
    path = LOCAL.sub("", uri)
    if is_local(path):
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # twice as fast as Path.open, for every sidecar
            file.seek(start)
            return file.read() if length is None else _up_to(file, length)
    filesystem, path = _remote(uri)
    with _as_os_errors(uri):
        end = None if length is None else start + length
        data = bytes(_tried(lambda: filesystem.cat_file(path, start=start or None, end=end), uri))
    # a server may send the whole file where a part was asked for
    return data if length is None or len(data) <= length else data[start : start + length]


def read_each(uris: Sequence[str]) -> list[bytes | OSError]:
    """Several whole files, those of a server at the same time; what cannot be read is its OSError."""
    if not uris or all(is_local(uri) for uri in uris):
        return [_read_or_error(uri) for uri in uris]
    filesystem = _remote(uris[0])[0]
    paths = [_remote(uri)[1] for uri in uris]
    with _as_os_errors(uris[0]):
        found = filesystem.cat(paths, on_error="return")
    return [_again(_bytes_or_error(found[path], uri), uri) for path, uri in zip(paths, uris, strict=True)]


def read_ranges(uris: Sequence[str], starts: Sequence[int], lengths: Sequence[int]) -> list[bytes | OSError]:
    """A part of each of several files, those of a server at the same time; what cannot be read is its OSError."""
    wanted = list(zip(uris, starts, lengths, strict=True))
    if not uris or all(is_local(uri) for uri in uris):
        return [_read_or_error(uri, start=start, length=length) for uri, start, length in wanted]
    filesystem = _remote(uris[0])[0]
    paths = [_remote(uri)[1] for uri in uris]
    ends = [start + length for _, start, length in wanted]
    with _as_os_errors(uris[0]):
        found = filesystem.cat_ranges(paths, list(starts), ends, on_error="return")
    parts = [
        _again(_bytes_or_error(each, uri), uri, start=start, length=length)
        for each, (uri, start, length) in zip(found, wanted, strict=True)
    ]
    # a server may send the whole file where a part was asked for
    return [
        part[start : start + length] if isinstance(part, bytes) and len(part) > length else part
        for part, (_, start, length) in zip(parts, wanted, strict=True)
    ]


def _listing_here(folder: str) -> Listing:
    found = Listing()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                found.folders.add(entry.name)
            elif _is_file(entry):
                found.files.append(entry.name)
    return found


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a regular file, or a link that leads nowhere: of that, stage decode says what is wrong."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True


def _listing_there(folder: str) -> Listing:
    """What fsspec lists, but for what is not of this folder: its own marker (s3), links to elsewhere (http)."""
    filesystem, path = _remote(folder)
    with _as_os_errors(folder):
        entries = _tried(lambda: filesystem.ls(path, detail=True), folder)
        filesystem.invalidate_cache(path)  # or it would hold the names of all folders
    folders, sizes = set(), {}
    for entry in entries:
        above, _, name = entry["name"].rstrip("/").rpartition("/")
        if above.strip("/") != path.strip("/") or not name or name.startswith((".", "?")):
            continue
        if entry["type"] == "directory":
            folders.add(name)
        else:
            sizes[name] = entry.get("size")
    return Listing(folders=folders, files=list(sizes), sizes=sizes)


def _remote(uri: str) -> tuple[Any, str]:
    """fsspec's file system for a URI, and what the file is called there. fsspec itself keeps one of each."""
    import fsspec  # only where a source does not lie on this machine

    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **store.options(uri.partition("://")[0].lower()))
    except (ImportError, ValueError) as error:
        raise SourceError(f"{uri} cannot be read: {_mend(uri, error)}") from None
    return filesystem, path


def _tried(do: Callable[[], T], uri: str) -> T:
    """What `do` gives, tried again where a store of ours fails. Of http only once: pictures come from anybody's server,
    and what cannot be had there is an error of its row."""
    if uri.partition("://")[0].lower() not in store.OBJECTS:
        return do()
    try:
        return store.tried(do, uri)
    except Denied as error:
        raise PermissionError(errno.EACCES, str(error).removeprefix(f"{uri}: "), uri) from error


def _again(part: bytes | OSError, uri: str, *, start: int = 0, length: int | None = None) -> bytes | OSError:
    """A part that was read; or another try at it, alone, where a store of ours failed."""
    is_settled = isinstance(part, bytes | FileNotFoundError | PermissionError)
    if is_settled or uri.partition("://")[0].lower() not in store.OBJECTS:
        return part
    return _read_or_error(uri, start=start, length=length)


def _mend(uri: str, error: Exception) -> str:
    """What to do about a protocol that cannot be had: the package to install, as fsspec says it."""
    protocol = uri.partition("://")[0]
    if isinstance(error, ImportError):
        return f"{str(error).splitlines()[0]} (on every node)"
    if str(error).startswith("Protocol not known"):
        return f"the protocol {protocol} is not known; name a path, or a URI that fsspec reads (s3, gs, http, ...)"
    return str(error).splitlines()[0]


@contextmanager
def _as_os_errors(uri: str) -> Iterator[None]:
    """What a plug-in of fsspec raises (its client library's own errors) as an OSError that names it."""
    try:
        yield
    except (OSError, SoteError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {' '.join(str(error).split())}", uri) from error


def _up_to(file: IO[bytes], length: int) -> bytes:
    """`length` bytes or all that are left: one unbuffered read may give fewer."""
    parts = []
    while length > 0 and (part := file.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


class _Reader(io.RawIOBase):
    """A file of fsspec, whose errors come out as OSErrors."""

    def __init__(self, file: Any, uri: str) -> None:
        self._file, self._uri = file, uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _as_os_errors(self._uri):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _as_os_errors(self._uri):
            start = self._file.tell()

            def do() -> Any:
                self._file.seek(start)
                return self._file.read(len(buffer))

            data = _tried(do, self._uri)
        buffer[: len(data)] = data
        return len(data)


def _read_or_error(uri: str, *, start: int = 0, length: int | None = None) -> bytes | OSError:
    try:
        return read(uri, start=start, length=length)
    except OSError as error:
        return error


def _bytes_or_error(found: Any, uri: str) -> bytes | OSError:
    if isinstance(found, OSError):
        return found
    if isinstance(found, Exception):
        return OSError(errno.EIO, f"{type(found).__name__}: {found}", uri)
    return bytes(found)
