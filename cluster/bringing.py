"""Large files from a URI, once for each node: one process brings them, the others of the node wait and find them here.

Kind: pure, but for files here and there.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from sote.cluster import remote


def bring(path: Path) -> Path:
    """As `remote.fetch`, but of several processes of a node that want the same file one alone downloads it."""
    with alone(path):
        return remote.fetch(path)


def bring_tree(folder: Path, pattern: str = "**/*") -> list[Path]:
    """As `remote.fetch_tree`, downloaded by one process of a node."""
    with alone(folder):
        return remote.fetch_tree(folder, pattern)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the name of a path in the mirror against the other processes and threads of this node; a local path is
    nobody's to hold. The lock goes with a process that dies."""
    if remote.uri(path) is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
