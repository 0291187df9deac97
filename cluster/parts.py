"""A file of lines that several processes append to, at a URI: object stores know no append, so each has its own parts.

The lines of `RUN/metrics.jsonl` are those of that file and of `RUN/metrics/<host>-<pid>-<n>.jsonl`; the end of a verb
puts the parts into the file. A line stands in both where that was cut short, and counts once. What a process wrote in
its last seconds goes with it, unless it calls `bring` before its end. In a local folder there are no parts.

Kind: pure, but for files and the threads that bring the parts.
"""

import json
import logging
import os
import platform
import re
import secrets
import threading
from pathlib import Path
from typing import Final

from sote.cluster import remote
from sote.cluster.errors import SoteError

SECONDS: Final = 5.0  # between two puts of a part, at the least
FULL_BYTES: Final = 1 << 20  # of a part: the whole of it is put each time, so the next is begun

log = logging.getLogger(__name__)


class Part:
    """What this process appends to the file at `path`, a path in the mirror."""

    def __init__(self, path: Path) -> None:
        host = re.sub(r"[^\w.-]", "-", platform.node())
        self.stem, self.folder, self.number = f"{host}-{os.getpid()}-{secrets.token_hex(4)}", path.with_suffix(""), 0
        self._lines: list[str] = []
        self._bytes, self._there = 0, 0  # of the lines; and as many of them are there
        self._busy, self._putting = threading.Lock(), threading.Lock()  # nobody who adds a line waits for the network
        self._waiting, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="brings lines", daemon=True)
        self._thread.start()

    def add(self, line: str) -> None:
        """Append a line, which is brought within `SECONDS`."""
        with self._busy:
            self._lines.append(line)
            self._bytes += len(line) + 1
        self._waiting.set()

    def bring(self) -> None:
        """Put what is not there yet. Raises Unreachable."""
        with self._putting:
            with self._busy:
                lines = list(self._lines)
                size = self._bytes
            if self._there < len(lines):
                data = "".join(f"{line}\n" for line in lines).encode()
                remote.put(self.folder / f"{self.stem}-{self.number}.jsonl", data)
                self._there = len(lines)
            if size > FULL_BYTES:
                with self._busy:
                    del self._lines[: len(lines)]
                    self._bytes -= size
                self._there, self.number = 0, self.number + 1

    def close(self) -> None:
        """Bring the last, and end."""
        self._over.set()
        self._waiting.set()
        self._thread.join()
        self._try()

    def _go_on(self) -> None:
        while not self._over.is_set():
            self._waiting.wait()
            self._waiting.clear()
            self._try()
            self._over.wait(SECONDS)

    def _try(self) -> None:
        try:
            self.bring()
        except (SoteError, OSError) as error:  # the lines stay, and the next try brings them
            log.warning("lines were not brought folder=%s reason=%s", self.folder.name, error)


_parts: dict[tuple[int, Path], Part] = {}
_busy = threading.Lock()


def add(path: Path, line: str) -> None:
    """Append a line to the file at `path`, which is a path in the mirror."""
    with _busy:
        key = os.getpid(), path  # a process that was forked has none of its parent's threads
        if key not in _parts:
            _parts[key] = Part(path)
        part = _parts[key]
    part.add(line)


def bring(path: Path) -> None:
    """Bring what this process has appended to the file so far. Raises Unreachable."""
    if (mine := _parts.get((os.getpid(), path))) is not None:
        mine.bring()


def lines(path: Path) -> list[str]:
    """The lines of the file and its parts, as they are at the URI; those of this process are brought there first.

    In the order of their field `time` as soon as there are parts. Of a local file, its own: a last line that a kill has
    cut is left out, and no file gives no lines.
    """
    if remote.uri(path) is None:
        return _whole(path)
    bring(path)
    return _together(path, remote.fetch_tree(path.with_suffix(""), "*.jsonl"))


def merge(path: Path) -> None:
    """Put the parts into the file, at the end of a verb; what is appended later makes new parts."""
    if remote.uri(path) is None:
        return
    with _busy:
        mine = _parts.pop((os.getpid(), path), None)
    if mine is not None:
        mine.close()
    parts = remote.fetch_tree(path.with_suffix(""), "*.jsonl")
    if parts:
        remote.put(path, "".join(f"{line}\n" for line in _together(path, parts)).encode())
        remote.remove(*parts)


def _together(path: Path, parts: list[Path]) -> list[str]:
    try:
        found = _whole(remote.fetch(path))
    except FileNotFoundError:
        found = []
    known = set(found)
    added = [line for part in parts for line in _whole(part) if line not in known]
    return sorted(found + added, key=_time) if added else found


def _whole(path: Path) -> list[str]:
    """The lines of one file that end."""
    if not path.exists():
        return []
    return path.read_bytes().rpartition(b"\n")[0].decode("utf-8").splitlines()


def _time(line: str) -> float:
    return float(json.loads(line).get("time", 0.0))
