"""Files at a URI through fsspec: put, get, list and delete, tried again where the network fails.

A put is whole or not at all: one request, or several parts that count when the last one says so; where a file system
knows neither (hdfs, sftp), a temporary name and a rename. What failed for good is one line that names the URI.
Credentials are the business of the store's own chain (AWS_*, ~/.aws, GOOGLE_APPLICATION_CREDENTIALS, the machine's
role); none is taken from a URI, and none is written anywhere.

Kind: pure, but for files elsewhere.
"""

import errno
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from sote.cluster.errors import Denied, Unreachable, UserError

ATTEMPTS: Final = 5  # of one act; a client library tries each of its requests again, too
FIRST_WAIT_SECONDS: Final = 1.0  # doubled each time, and the half of it by chance: half a minute in all
REQUEST_ATTEMPTS: Final = 4
WHOLE_BYTES: Final = 64 << 20  # up to here a file is one request
PART_BYTES: Final = 32 << 20  # of larger ones; S3 takes 10,000 parts
AT_ONCE: Final = 16  # requests
S3: Final = ("s3", "s3a")
GCS: Final = ("gs", "gcs")
# Where a put that did not end leaves nothing, and a name can be taken by one alone
OBJECTS: Final = (*S3, *GCS, "abfs", "abfss", "az", "memory")
EXTRAS: Final = dict.fromkeys(S3, "sote[s3]") | dict.fromkeys(GCS, "gcsfs")  # what to install, where it is not clear

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One file there. `token` changes with its content: the store's ETag, or size and time."""

    token: str
    size: int


def at(uri: str, *, attempts: int = ATTEMPTS) -> tuple[Any, str]:
    """fsspec's file system for a URI (it keeps one of each kind in a process, and makes it anew after a fork), and
    what the file is called there. `attempts` = 1: its requests are not tried again.

    Raises UserError: the protocol is not known, or its package is missing.
    """
    import fsspec  # only where something does not lie on this machine

    protocol = uri.partition("://")[0].lower()
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **options(protocol, min(attempts, REQUEST_ATTEMPTS)))
    except ImportError as error:
        mend = f"pip install '{EXTRAS[protocol]}'" if protocol in EXTRAS else str(error).splitlines()[0]
        raise UserError(f"{uri}: {protocol}:// needs a package that is not here: {mend} (on every node)") from None
    except ValueError as error:
        raise UserError(f"{uri}: {str(error).splitlines()[0]}; name a path, or a URI that fsspec knows") from None
    if protocol in (*S3, *GCS):
        filesystem.retries = attempts
    return filesystem, str(path)


def put(uri: str, content: Path | bytes, *, attempts: int = ATTEMPTS) -> str:
    """Bring a file or bytes to `uri`, whole or not at all; what was there is replaced. Returns its token."""
    filesystem, path = at(uri, attempts=attempts)

    def do() -> str:
        to = path if _is_object(uri) else f"{path}.tmp"
        if to != path:
            filesystem.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
        if isinstance(content, Path) and content.stat().st_size > WHOLE_BYTES:
            filesystem.put_file(str(content), to, **({"chunksize": PART_BYTES} if _is_object(uri) else {}))
        else:
            answer = filesystem.pipe_file(to, content if isinstance(content, bytes) else content.read_bytes())
            if isinstance(answer, dict) and "ETag" in answer:
                return str(answer["ETag"])
        if to != path:
            if filesystem.exists(path):
                filesystem.rm_file(path)
            filesystem.mv(to, path)
        return _entry(filesystem.info(path)).token

    return _putting(do, uri, attempts)


def create(uri: str, data: bytes) -> str | None:
    """Put `data` there if nothing is there; its token, or None if somebody was first.

    A store that has no such request (hdfs, sftp) is asked before: two who ask within a moment may both be told yes.
    """
    filesystem, path = at(uri)

    def do() -> str | None:
        try:
            if _is_object(uri):
                filesystem.pipe_file(path, data, mode="create")
            elif filesystem.exists(path):
                return None
            else:
                filesystem.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
                filesystem.pipe_file(path, data)
        except FileExistsError:
            return None
        except OSError as error:  # S3's answers: 412 PreconditionFailed; 409 while another put goes on
            if "PreconditionFailed" not in str(error) and "pre-conditions" not in str(error):
                raise
            return None
        return _entry(filesystem.info(path)).token

    found = _putting(do, uri, ATTEMPTS)
    if found is None and read(uri) == data:  # ours: the answer to an earlier try was lost on its way
        return entry(uri).token
    return found


def get(uri: str, file: Path) -> None:
    """Bring what lies at `uri` into `file`. Raises FileNotFoundError."""
    filesystem, path = at(uri)
    tried(lambda: filesystem.get_file(path, str(file)), uri)


def read(uri: str) -> bytes:
    """What lies at `uri`. Raises FileNotFoundError."""
    filesystem, path = at(uri)
    return bytes(tried(lambda: filesystem.cat_file(path), uri))


def entry(uri: str) -> Entry:
    """What is known of the file at `uri`. Raises FileNotFoundError, also for a folder."""
    filesystem, path = at(uri)
    found = tried(lambda: filesystem.info(path), uri)
    if found["type"] == "directory":
        raise FileNotFoundError(errno.ENOENT, "no such file", uri)
    return _entry(found)


def exists(uri: str) -> bool:
    """Whether a file or a folder with files lies at `uri`."""
    filesystem, path = at(uri)
    try:
        tried(lambda: filesystem.info(path), uri)
    except FileNotFoundError:
        return False
    return True


def entries(uri: str) -> dict[str, Entry]:
    """Every file below the folder `uri`, by its path from there: one request for a thousand. None there: empty."""
    filesystem, path = at(uri)
    try:
        found: dict[str, Any] = tried(lambda: filesystem.find(path, detail=True), uri)
    except FileNotFoundError:
        return {}
    start = len(path.rstrip("/")) + 1
    below = {name[start:]: info for name, info in found.items() if len(name) >= start}
    return {name: _entry(info) for name, info in below.items() if name and not name.endswith("/")}


def names(uri: str) -> list[str]:
    """The names of what lies directly in the folder `uri`, sorted; of none, empty."""
    filesystem, path = at(uri)
    try:
        found = tried(lambda: filesystem.ls(path, detail=False), uri)
    except (FileNotFoundError, NotADirectoryError):
        return []
    inside = [name.rstrip("/") for name in found if name.rstrip("/") != path.rstrip("/")]
    return sorted({PurePosixPath(name).name for name in inside})


def delete(uris: Sequence[str]) -> None:
    """Take files away, if they are there: on S3 a request for a thousand."""
    if not uris:
        return
    filesystem = at(uris[0])[0]
    paths = [at(uri)[1] for uri in uris]
    if uris[0].startswith(tuple(f"{protocol}://" for protocol in S3)) and len(paths) > 1:
        tried(lambda: filesystem.rm(paths), uris[0])
    else:
        each(lambda pair: _delete(filesystem, *pair), list(zip(uris, paths, strict=True)))


def each(do: Callable[[Any], object], items: Sequence[Any]) -> None:
    """Do the same for several, some at a time. The first error is raised."""
    with ThreadPoolExecutor(min(AT_ONCE, max(len(items), 1))) as pool:
        for _ in pool.map(do, items):
            pass


def tried(do: Callable[[], T], uri: str, attempts: int = ATTEMPTS) -> T:
    """What `do` gives, tried again while the network or the store fails.

    Raises FileNotFoundError and FileExistsError as they are, OSError of this machine's full disk, Denied (no
    credentials or permission) at once, and Unreachable after the last attempt.
    """
    for attempt in range(1, attempts + 1):
        try:
            return do()
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            raise
        except Exception as error:  # a client library raises errors of its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if _is_final(error):
                raise Denied(f"{uri}: {_said(error)}; see the credentials and what they allow") from error
            if attempt == attempts:
                raise Unreachable(
                    f"{uri}: {_said(error)} ({attempts} times); what is committed stays and the same command continues"
                ) from error
            log.warning("storage failed uri=%s attempt=%d reason=%s", uri, attempt, _said(error))
        time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1))
    raise ValueError(f"attempts: {attempts} must be at least 1")


def _putting(do: Callable[[], T], uri: str, attempts: int) -> T:
    try:
        return tried(do, uri, attempts)
    except FileNotFoundError as error:  # a put needs nothing there but the bucket
        raise Denied(f"{uri}: {_said(error)}; make the bucket or name one that is there") from error


def _delete(filesystem: Any, uri: str, path: str) -> None:
    try:
        tried(lambda: filesystem.rm_file(path), uri)
    except FileNotFoundError:
        return


def _entry(info: dict[str, Any]) -> Entry:
    token = next((info[name] for name in ("ETag", "etag", "md5Hash", "content_md5") if info.get(name)), None)
    when = next((info[name] for name in ("LastModified", "mtime", "created") if info.get(name)), None)
    size = int(info.get("size") or 0)
    return Entry(str(token or f"{size} {when}"), size)


def options(protocol: str, attempts: int = REQUEST_ATTEMPTS) -> dict[str, Any]:
    """What fsspec's file system of a protocol is made with."""
    if protocol in S3:
        retries = {"mode": "standard", "total_max_attempts": attempts}
        return {"use_listings_cache": False, "config_kwargs": {"retries": retries, "connect_timeout": 10}}
    return {"use_listings_cache": False} if protocol in OBJECTS else {}


def _is_object(uri: str) -> bool:
    return uri.partition("://")[0].lower() in OBJECTS


def _is_final(error: Exception) -> bool:
    """Whether another try cannot help: credentials, permission, a name that no store takes."""
    kind = type(error).__name__
    return (
        isinstance(error, PermissionError | ValueError | TypeError)
        or "Credential" in kind
        or kind in ("ParamValidationError", "RefreshError", "NoRegionError")
        or getattr(error, "code", None) in (401, 403)
    )


def _said(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
