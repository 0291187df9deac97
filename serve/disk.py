"""Private files of the server: written whole or not at all, for its owner's eyes only, and words for a full disk.

Kind: pure, but for files.
"""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from sote.cluster import storage
from sote.cluster.errors import DiskFull, RunFailed

MODE = 0o600  # prompts and pictures are the visitor's; nobody else on this machine reads them
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def in_words(what: str) -> Iterator[None]:
    """Raise DiskFull, or RunFailed for another OSError, where the block cannot write `what`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(
                f"the server's disk is full: {what} cannot be kept; ask for data URIs (sync_mode true) at "
                "/v1/generate, or come again when its keeper has made room"
            ) from error
        raise RunFailed(f"{what} cannot be kept: {error.strerror or type(error).__name__}") from error


def write(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all, readable by its owner alone. Raises OSError."""
    with storage.atomic(path) as temporary:
        temporary.touch(MODE)
        temporary.write_bytes(data)


def replace(path: Path, data: bytes) -> None:
    """As `write`, without waiting for the disk: after a power cut an older one may be there. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(MODE)
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` against other threads and processes; a process that dies lets go of it. Raises FileNotFoundError.

    Source: flock(2): the lock belongs to the open file, so that two threads hold it against each other too.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
