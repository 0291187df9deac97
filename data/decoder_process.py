"""The processes behind a Decoder: the keeper, which has the libraries loaded, and the worker that it forks.

    python -m sote.data.decoder_process SOCKET MEMORY FACTS     (two file descriptors; JSON)

The worker answers a request {serial, row} twice: when it has read the file, and when it has decoded it. It ends with
its keeper, and the keeper ends when nobody holds the socket's other end.

Kind: pure, but for processes.
"""

import ctypes
import json
import mmap
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from sote.data import decode
from sote.data.inputs import InputShapes, blank_inputs
from sote.data.recipe import DecodePart

SLOTS = 2  # rows under way: one is decoded while the arrays of the one before it are copied
MESSAGE_BYTES = 1 << 17  # more than any uri
BINARY = ("phash", "thumb", "czkawka")  # columns of bytes, which JSON does not have
WATCH_MILLISECONDS = 1000
DIE_WITH_PARENT = 1  # prctl(2), PR_SET_PDEATHSIG
LOWEST = 19  # nice(2): models that compute on the same cores go first, for half a core is of little use to them

Arrays = dict[str, NDArray[np.uint8]]


class Slots:
    """Shared memory for the inputs of SLOTS rows, in a file without a name."""

    def __init__(self, file: int, shapes: InputShapes) -> None:
        blanks = blank_inputs(shapes)
        self._shapes = {name: blank.shape for name, blank in blanks.items()}
        self._bytes = sum(blank.nbytes for blank in blanks.values())
        size = max(self._bytes * SLOTS, mmap.PAGESIZE)
        os.ftruncate(file, size)
        self._whole = np.frombuffer(mmap.mmap(file, size), np.uint8)

    def of(self, serial: int) -> Arrays:
        """The place of each input of the row `serial`, which is that of the row `serial` - SLOTS."""
        at, views = serial % SLOTS * self._bytes, {}
        for name, shape in self._shapes.items():
            end = at + int(np.prod(shape))
            views[name] = self._whole[at:end].reshape(shape)
            at = end
        return views


def to_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Decode columns as JSON can hold them."""
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()}


def from_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Decode columns as they were before `to_json`."""
    return {name: bytes.fromhex(value) if name in BINARY and value else value for name, value in row.items()}


def main() -> None:
    """The keeper: sees to it that there is a worker, until nobody holds the other end of the socket."""
    channel, facts = socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[3])
    shapes = TypeAdapter(InputShapes).validate_python(facts["shapes"])
    if shapes != InputShapes():
        import_module("sote.data.pixels")  # torch, once for all workers
    rule, slots = DecodePart(**facts["rule"]), Slots(int(sys.argv[2]), shapes)
    keeper = os.getpid()
    while True:
        worker = os.fork()
        if worker == 0:
            _bind(keeper, rule)
            _work(channel, slots, rule=rule, shapes=shapes)
            return
        code = _end_of(worker, channel, owner=facts["owner"])
        _drop_requests(channel)
        channel.send(json.dumps({"died": code}).encode())


def _end_of(worker: int, channel: socket.socket, *, owner: int) -> int:
    """Wait for the worker's end: minus the signal, or its exit code. Without an owner both end here."""
    ended = os.pidfd_open(worker)
    watched = select.poll()
    watched.register(channel, 0)  # nothing but that the other end is closed
    watched.register(ended, select.POLLIN)
    while True:
        events = dict(watched.poll(WATCH_MILLISECONDS))
        if channel.fileno() in events or os.getppid() != owner:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            sys.exit()
        if ended in events:
            os.close(ended)
            return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])


def _drop_requests(channel: socket.socket) -> None:
    """Forget what was asked of a worker that is no more: its owner asks again."""
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    while any(event & select.POLLIN for _, event in waiting.poll(0)):
        if not channel.recv(MESSAGE_BYTES):
            sys.exit()


def _bind(keeper: int, rule: DecodePart) -> None:
    """Let the worker die with its keeper, and let its memory grow to `rule.max_memory_bytes` and no further.

    The limit is on private memory (RLIMIT_DATA), since libraries and reserved addresses say nothing of what is used.
    """
    ctypes.CDLL(None, use_errno=True).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != keeper:
        sys.exit()
    os.nice(LOWEST)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    kib = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines) if "kB" in value}
    most = kib["VmData"] * 1024 + max(rule.max_memory_bytes - kib["VmRSS"] * 1024, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _work(channel: socket.socket, slots: Slots, *, rule: DecodePart, shapes: InputShapes) -> None:
    """The worker: decode what is asked for until the other end of the socket is closed."""
    _tell(channel, ready=os.getpid())
    while message := channel.recv(MESSAGE_BYTES):
        request = json.loads(message)
        serial, row = request["serial"], request["row"]
        data, found = decode.read_row(row, rule=rule)
        _tell(channel, serial=serial, row=to_json(found), done=data is None)
        if data is None:
            continue
        found |= decode.decode_data(data, row, rule=rule, shapes=shapes)
        for name, place in slots.of(serial).items():
            if name in found:
                place[:] = found.pop(name)
        _tell(channel, serial=serial, row=to_json(found), done=True)


def _tell(channel: socket.socket, **message: Any) -> None:
    channel.send(json.dumps(message).encode())


if __name__ == "__main__":
    main()
