"""The process beside a model's actor that ends it when it hangs.

    python -m sote.data.watchdog_process FACTS     (JSON; standard input is what the actor tells)

It reads JSON lines: an object when a call begins, null when it ended, "alive" every now and then. It ends when nobody
holds the other end of its standard input any more.

Kind: pure, but for processes.
"""

import json
import math
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

INPUT = 0  # file descriptor
READ_BYTES = 1 << 16
ALIVE = "alive"


@dataclass
class Heard:
    """What the actor told, and when. Times are of `time.monotonic`, in seconds."""

    limit_seconds: float
    at: float
    call: dict[str, Any] | None = None
    began: float = math.inf
    rest: bytes = field(default=b"", repr=False)

    def take(self, data: bytes, *, now: float) -> None:
        """Read what came; the end of the last line may still be under way."""
        self.at = now
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if said != ALIVE:
                self.call, self.began = said, math.inf if said is None else now

    def due(self) -> float:
        """When the actor counts as hung: its call takes too long, or the whole process says nothing."""
        return self.limit_seconds + min(self.began, self.at)


def main() -> None:
    """Listen to the actor until it ends; end it when it hangs, and note that."""
    facts = json.loads(sys.argv[1])
    owner = int(facts["owner"])
    heard = Heard(float(facts["seconds"]), at=time.monotonic())
    coming = select.poll()
    coming.register(INPUT, select.POLLIN)
    while True:
        rest = max(0.0, heard.due() - time.monotonic())
        if coming.poll(math.ceil(rest * 1000)):
            data = os.read(INPUT, READ_BYTES)
            if not data:
                return
            heard.take(data, now=time.monotonic())
        if time.monotonic() >= heard.due():
            break
    if os.getppid() == owner:
        os.kill(owner, signal.SIGKILL)
        _note(heard, facts)


def _note(heard: Heard, facts: dict[str, Any]) -> None:
    """Write down which piece it was, after the kill: a storage that hangs too shall not keep the actor."""
    from sote.cluster import remote, storage  # pyarrow: memory that is taken only in this case

    piece = heard.call or {"shard": None, "rows": "", "key": "between"}
    host = socket.gethostname()
    note = {"stage": facts["stage"], "seconds": heard.limit_seconds, "host": host, "at": storage.now()}
    name = f"{piece['key']}.{host}-{facts['owner']}.json"
    storage.write_text(remote.place(facts["notes"]) / name, json.dumps(note | piece, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
