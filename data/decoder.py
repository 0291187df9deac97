"""Decoding in a process that may be killed: a picture that crashes, hangs or swells its decoder costs its own row.

    Decoder (here)  -- request -->         worker    decodes; forked anew, its libraries loaded, when it has died
                    <-- read, done --      |
                    <-- died --            keeper    the worker's parent: forks it and tells how it ended

Both ends talk through one packet socket, so that no message is ever half there. Arrays lie in shared memory without a
name. The keeper ends with its worker when the socket's other end is closed, so that nothing is left behind, however
the process that owns a Decoder ends. What libraries print goes to a file in memory. data/decoder_process.py is the
other side.

Kind: pure, but for processes.
"""

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from types import TracebackType
from typing import Any, Self

import numpy as np

from sote.data import decode
from sote.data.decoder_process import MESSAGE_BYTES, SLOTS, Arrays, Slots, from_json
from sote.data.inputs import InputShapes, blank_inputs
from sote.data.recipe import DecodePart

START_SECONDS = 600.0  # a keeper loads torch, perhaps from a slow disk of the network
END_SECONDS = 10.0  # what is there so long after it was killed waits for a disk, and is left to itself
TRIES = 3  # of a row whose worker ended before it had read the row's file, which is not that file's fault
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# glibc's mallopt(3): arrays of a picture's size come from memory that the last picture used, without page faults
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 28)}
LOG_BYTES = 4000  # of what a process printed before it failed
REQUEST = ("uri", "offset", "bytes", "index_skip", "index_error")  # what decode.py reads of a row

Row = dict[str, Any]


class Decoder:
    """Decodes slices of rows, one picture at a time, in a process of its own, which starts with the first slice."""

    def __init__(self, rule: DecodePart, shapes: InputShapes, *, slice_rows: int) -> None:
        self._rule, self._shapes, self._slice_rows = rule, shapes, slice_rows
        self._keeper: _Keeper | None = None
        self._serial = 0  # of the first row of the next slice

    def slice(self, rows: list[Row]) -> tuple[list[Row], Arrays]:
        """The decode columns and `sound` of each row, and the inputs as [slice_rows, ...], zeros where not sound.

        A row that the decoder did not survive has an error. Raises RuntimeError where the decoder's own code fails, and
        ValueError for more rows than a slice has.
        """
        if len(rows) > self._slice_rows:
            raise ValueError(f"{len(rows)} rows are more than a slice of {self._slice_rows}")
        blanks = blank_inputs(self._shapes)
        arrays = {name: np.zeros((self._slice_rows, *blank.shape), np.uint8) for name, blank in blanks.items()}
        first, self._serial = self._serial, self._serial + len(rows)
        found: list[Row] = []
        sent = tries = 0
        while (at := len(found)) < len(rows):
            keeper = self._running()
            ahead = range(max(sent, at), min(at + SLOTS, len(rows)))
            for next_at in ahead:
                keeper.request(first + next_at, rows[next_at])
            sent = ahead.stop
            try:
                found.append(keeper.answer(first + at, self._rule.timeout_seconds))
            except _Lost as lost:
                sent, tries = at, tries + 1  # what was under way is sent again
                if lost.row is not None:
                    found.append(lost.row)
                elif tries == TRIES:
                    raise RuntimeError(f"the decoder ends before it reads a file: {lost}") from None
                continue
            tries = 0
            if found[at]["sound"]:
                for name, array in keeper.slots.of(first + at).items():
                    arrays[name][at] = array
        return found, arrays

    @property
    def worker(self) -> int | None:
        """The process that decodes now; None before the first slice."""
        return self._keeper.worker if self._keeper else None

    def close(self) -> None:
        """End the processes; the next slice would start new ones."""
        if self._keeper:
            self._keeper.end()
            self._keeper = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _running(self) -> "_Keeper":
        if self._keeper is None or self._keeper.ended:
            self._keeper = _Keeper(self._rule, self._shapes)
        return self._keeper


class _Lost(Exception):
    """The worker has ended. `row`: the columns of the row that it had read; None if it had read none."""

    def __init__(self, how: str, row: Row | None) -> None:
        super().__init__(how)
        self.row = row | {"decode_error": f"decode: {how}"} if row is not None else None


class _Keeper:
    """The other side as seen from here: the keeper's process, the pid of its worker, the socket, the memory."""

    def __init__(self, rule: DecodePart, shapes: InputShapes) -> None:
        self.worker: int | None = None
        self._log = os.memfd_create("decoder.log")
        fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)
        memory = os.memfd_create("decoder.arrays")
        self.slots = Slots(memory, shapes)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        handed = (theirs.fileno(), memory)
        facts = json.dumps({"rule": rule.model_dump(), "shapes": vars(shapes), "owner": os.getpid()})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sote.data.decoder_process", *map(str, handed), facts],
            pass_fds=handed,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for its owner; it ends with the socket
        )
        theirs.close()
        os.close(memory)
        self.end = weakref.finalize(self, _end, self._process, self._channel, self._log)

    @property
    def ended(self) -> bool:
        return not self.end.alive

    def request(self, serial: int, row: Row) -> None:
        """Ask for a row. A send that fails is found out by the answer that does not come."""
        asked = {"serial": serial, "row": {name: row[name] for name in REQUEST}}
        try:
            self._channel.send(json.dumps(asked).encode())
        except (BrokenPipeError, ConnectionResetError):
            return

    def answer(self, serial: int, seconds: float) -> Row:
        """The decode columns of a row; `seconds` for reading the file, and as many for decoding it. Raises _Lost."""
        row: Row | None = None
        until = time.monotonic() + (START_SECONDS if self.worker is None else seconds)
        while True:
            message = self._message(until)
            if message is None:
                raise self._late(row, seconds)
            if "died" in message:
                raise self._died(message["died"], row)
            if "ready" in message:
                self.worker = message["ready"]
            elif message["serial"] == serial:
                row = from_json(message["row"])
                if message["done"]:
                    self._forget_log()
                    return row
            until = time.monotonic() + seconds

    def _message(self, until: float) -> Row | None:
        """The next message; None if there is none until then. A keeper that is gone has died."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if not poll.poll(max(until - time.monotonic(), 0) * 1000):
            return None
        try:
            data = self._channel.recv(MESSAGE_BYTES)
        except ConnectionResetError:
            data = b""
        return json.loads(data) if data else {"died": self._gone()}

    def _gone(self) -> int:
        """How the keeper ended, as subprocess says it: minus the signal, or the exit code."""
        code = self._process.wait()
        if code >= 0:
            raise RuntimeError(f"the decoder failed (exit code {code}):\n{self._printed()}")
        self.end()
        return code

    def _late(self, row: Row | None, seconds: float) -> _Lost:
        """End the worker that took too long: of a file that it could not read, not even the id is known."""
        if self.worker is None:
            printed = self._printed()
            self.end()
            raise RuntimeError(f"the decoder did not start within {seconds:g} s:\n{printed}")
        what = "reading it" if row is None else "decoder"
        os.kill(self.worker, signal.SIGKILL)
        until = time.monotonic() + END_SECONDS
        while (message := self._message(until)) and "died" not in message:
            continue
        if message is None:
            self.end()
        self.worker = None
        return _Lost(f"{what} took more than {seconds:g} s", row or dict(decode.UNKNOWN))

    def _died(self, code: int, row: Row | None) -> _Lost:
        if code >= 0:
            raise RuntimeError(f"the decoder failed (exit code {code}):\n{self._printed()}")
        self.worker = None
        return _Lost(f"decoder crashed ({signal.Signals(-code).name})", row)

    def _printed(self) -> str:
        size = os.fstat(self._log).st_size
        return os.pread(self._log, LOG_BYTES, max(size - LOG_BYTES, 0)).decode(errors="replace")

    def _forget_log(self) -> None:
        """Libraries warn of many a picture: their words must not fill the memory."""
        if os.fstat(self._log).st_size > LOG_BYTES:
            os.truncate(self._log, 0)


def _environment() -> dict[str, str]:
    """Of the processes: they import what this process can import, and one picture is decoded on one core."""
    return os.environ | ONE_THREAD | KEEP_MEMORY | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _end(process: "subprocess.Popen[bytes]", channel: socket.socket, log: int) -> None:
    """Let the keeper end, by force if it does not; it takes its worker with it."""
    channel.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    os.close(log)
