"""Painted pictures that are fetched by address: files in one folder, each under a name that cannot be guessed.

Who knows the name may fetch the picture, without a key: so that an address can be put into a page or a message. A name
has 128 random bits, is told only to who asked for the picture, and is gone `keep_seconds` later.

Kind: pure, but for files.
"""

import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sote.serve import disk
from sote.serve.pictures import Painted
from sote.serve.settings import CONTENT_TYPES

NAME: Final = re.compile(r"[0-9a-f]{32}\.(" + "|".join(CONTENT_TYPES) + ")", re.ASCII)
BY_ENDING: Final[dict[str, str]] = {f".{ending}": content_type for ending, content_type in CONTENT_TYPES.items()}


@dataclass(frozen=True)
class Results:
    """The pictures in `folder`, kept for `keep_seconds` of the clock `now`. Safe for threads and several servers."""

    folder: Path
    keep_seconds: float
    now: Callable[[], float] = time.time

    def keep(self, painted: Painted) -> str:
        """Write the picture's file and return its name. Waits for the disk: call it in a thread.

        Raises DiskFull where there is no room, RunFailed where it cannot be written for another reason.
        """
        name = f"{secrets.token_hex(16)}.{painted.output_format}"
        path = self.folder / name
        with disk.in_words("the picture"):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            disk.write(path, painted.data)
            os.utime(path, (self.now(), self.now()))
        return name

    def path(self, name: str) -> Path | None:
        """The file of that name; None for what is no name, was never kept, or is over its time."""
        return self.folder / name if self.seconds_left(name) else None

    def read(self, name: str) -> bytes | None:
        """The bytes of the picture, or None as `path`; also where it is removed at this moment."""
        path = self.path(name)
        try:
            return path.read_bytes() if path else None
        except FileNotFoundError:
            return None

    def seconds_left(self, name: str) -> int:
        """How long the picture is still kept, in whole seconds; 0 where there is none."""
        if not NAME.fullmatch(name):
            return 0
        try:
            kept = self._kept(name)
        except FileNotFoundError:
            return 0
        return max(0, math.ceil(kept + self.keep_seconds - self.now()))

    def remove(self, names: Iterable[str]) -> None:
        """Remove pictures before their time."""
        for name in names:
            if NAME.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove what is over its time, half-written files with it; returns how many. Call it in a thread."""
        removed = 0
        try:
            entries = list(os.scandir(self.folder))
        except FileNotFoundError:
            return 0
        for entry in entries:
            try:
                if entry.is_file() and entry.stat().st_mtime + self.keep_seconds <= self.now():
                    Path(entry.path).unlink()
                    removed += 1
            except FileNotFoundError:  # another server's sweep was faster
                continue
        return removed

    def _kept(self, name: str) -> float:
        """When it was kept. Raises FileNotFoundError."""
        return (self.folder / name).stat().st_mtime


def content_type(name: str) -> str:
    """The content type of the picture of that name."""
    return BY_ENDING[Path(name).suffix]
