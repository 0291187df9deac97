"""Files of a curate run at a URI, brought to this node when they are first read: epochs read the same latents again.

One process of a node brings a file, the others wait for it. Where the disk gets short, or where a place can only be
read (http), files are read there, part by part.

Kind: pure, but for files here and there.
"""

import logging
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sote.cluster import bringing, remote
from sote.cluster.errors import Unreachable, UserError
from sote.data import files

FREE_SHARE = 0.1  # of the disk, that is left to others
AT_ONCE = 16  # files

log = logging.getLogger(__name__)


def near(uri: str) -> str:
    """The path of a file that is here now, else what was asked for. Raises Unreachable."""
    path = _mirror(uri)
    if path is None:
        return uri
    try:
        return str(bringing.bring(path))
    except FileNotFoundError:  # who reads it says so
        return uri


class Nearby:
    """Which files below the folder are read here. For any number of threads."""

    def __init__(self, folder: str, *, free_share: float = FREE_SHARE) -> None:
        self.folder, self.free_share = folder, free_share
        self.root = _mirror(folder)
        self._here: dict[str, str] = {}
        self._is_said = threading.Event()

    def bring(self, names: Iterable[str]) -> None:
        """Have these files here, if that can be."""
        new = [name for name in dict.fromkeys(names) if name not in self._here] if self.root is not None else []
        if len(new) == 1:
            self._bring(new[0])
        elif new:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._bring, new))

    def uri(self, name: str) -> str:
        """Where a file is read."""
        return self._here.get(name) or files.join(self.folder, name)

    def _bring(self, name: str) -> None:
        if self.root is None or not self._has_room(self.root):
            return
        try:
            self._here[name] = str(bringing.bring(self.root / name))
        except (FileNotFoundError, Unreachable) as error:  # it is read there, which says what is wrong
            log.warning("latents not brought file=%s reason=%s", name, error)

    def _has_room(self, root: Path) -> bool:
        root.mkdir(parents=True, exist_ok=True)
        usage = shutil.disk_usage(root)
        has_room = usage.free > self.free_share * usage.total
        if not has_room and not self._is_said.is_set():
            self._is_said.set()
            log.warning("latents are read where they are: the disk has no room for them folder=%s", self.folder)
        return has_room


def _mirror(uri: str) -> Path | None:
    """Where a URI is brought to; None for a path, and for what can only be read there."""
    if files.is_local(uri):
        return None
    try:
        return remote.place(uri)
    except UserError:
        return None
