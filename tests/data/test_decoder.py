"""A decoder that may be killed: what crashes, hangs or swells it costs its own row, and nothing is left behind.

Where no inputs are asked for and no JPEG is among the pictures, its processes need no torch and start at once.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sote.data import decode, scenes
from sote.data.decoder import Decoder
from sote.data.inputs import InputShapes
from sote.data.recipe import DecodePart

RULE = DecodePart(min_pixels=1000, max_pixels=300_000_000, timeout_seconds=3.0, max_memory_bytes=1 << 30)
SHAPES = InputShapes(tagger_side=16, aesthetic_size=(20, 12), quality_side=8)
WORKED_SECONDS = 0.05  # of CPU time: more than reading takes, less than decoding a large picture


def row(path: Path, **more: Any) -> dict[str, Any]:
    return {"uri": str(path), "offset": None, "bytes": None, "index_skip": None, "index_error": None, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small picture, one that takes long to decode, and one that takes more memory than there is."""
    made = tmp_path_factory.mktemp("pictures")
    scenes.paint(scenes.plan(1, 3), scale=0.3).save(made / "a.png")
    Image.new("L", (7500, 7500), 7).save(made / "large.png", compress_level=1)
    (made / "swells.png").write_bytes(scenes._png(290_000_000, 1, bits=8, colour=2, rows=b""))  # 4 bytes a pixel
    return made


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(RULE, InputShapes(), slice_rows=8) as made:
        yield made


def worked(pid: int | None) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_gone(pid: int) -> bool:
    """Whether a process has ended; nobody may have asked yet how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_until_gone(*pids: int) -> None:
    until = time.monotonic() + 60
    while not all(is_gone(pid) for pid in pids):
        assert time.monotonic() < until, "the processes are still there"
        time.sleep(0.02)


def sliced_while(decoder: Decoder, folder: Path, number: signal.Signals) -> list[dict[str, Any]]:
    """A slice of small, large, small, whose worker gets a signal while it decodes the large one."""
    decoder.slice([row(folder / "a.png")])
    worker = decoder.worker
    before = worked(worker)

    def send() -> None:
        while worked(worker) < before + WORKED_SECONDS:
            time.sleep(0.005)
        os.kill(worker or 0, number)

    sender = threading.Thread(target=send)
    sender.start()
    found = decoder.slice([row(folder / name) for name in ("a.png", "large.png", "a.png")])[0]
    sender.join()
    assert decoder.worker != worker
    return found


def assert_only_the_second_is_lost(found: list[dict[str, Any]], folder: Path, reason: str) -> None:
    expected = decode.decode_row(row(folder / "a.png"), rule=RULE, shapes=InputShapes())
    assert found[0] == found[2] == expected
    large = hashlib.sha256((folder / "large.png").read_bytes()).hexdigest()
    assert found[1] == {**decode.UNKNOWN, "id": large, "decode_error": f"decode: {reason}"}


def test_a_slice_holds_what_each_row_gives_by_itself_and_zeros_up_to_its_end(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scene = Image.open(folder / "a.png")
    scene.save(tmp_path / "b.jpg")
    scene.save(tmp_path / "c.webp")
    flipped = bytearray((tmp_path / "b.jpg").read_bytes())
    flipped[-400:-380] = b"\xff\x01" * 10  # libjpeg warns of it on standard error
    (tmp_path / "d.jpg").write_bytes(flipped)
    (tmp_path / "e.png").write_bytes((folder / "a.png").read_bytes()[:3000])
    rows = [row(tmp_path / name) for name in ("b.jpg", "c.webp", "d.jpg", "e.png", "gone.png")]
    rows += [
        row(folder / "a.png"),
        row(folder / "a.png", index_error="index: no"),
        row(folder / "a.png", index_skip="x"),
    ]
    with Decoder(RULE, SHAPES, slice_rows=10) as decoder:
        found, arrays = decoder.slice(rows)
        again = decoder.slice(rows[::-1])[0]
    assert capfd.readouterr() == ("", "")
    expected = [decode.decode_row(one, rule=RULE, shapes=SHAPES) for one in rows]
    for name in ("tagger_input", "aesthetic_input", "quality_input"):
        assert arrays[name].dtype == np.uint8
        assert (arrays[name][: len(rows)] == np.stack([one.pop(name) for one in expected])).all()
        assert arrays[name].shape[0] == 10
        assert not arrays[name][len(rows) :].any()
    assert found == again[::-1] == expected
    assert [one["sound"] for one in found] == [True, True, True, False, False, True, False, False]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_costs_the_row_that_was_decoded(decoder: Decoder, folder: Path, number: signal.Signals) -> None:
    found = sliced_while(decoder, folder, number)
    assert_only_the_second_is_lost(found, folder, f"decoder crashed ({number.name})")


def test_a_decoder_that_hangs_is_ended_and_costs_the_row_that_was_decoded(decoder: Decoder, folder: Path) -> None:
    found = sliced_while(decoder, folder, signal.SIGSTOP)
    assert_only_the_second_is_lost(found, folder, "decoder took more than 3 s")


def test_a_file_that_cannot_be_read_in_time_costs_its_row(decoder: Decoder, folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it
    found = decoder.slice([row(tmp_path / "pipe.png"), row(folder / "a.png")])[0]
    assert found[0] == {**decode.UNKNOWN, "decode_error": "decode: reading it took more than 3 s"}
    assert found[1]["sound"]


def test_a_picture_that_needs_too_much_memory_costs_its_row(decoder: Decoder, folder: Path) -> None:
    decoder.slice([row(folder / "a.png")])
    worker = decoder.worker
    found = decoder.slice([row(folder / "swells.png"), row(folder / "a.png")])[0]
    assert (found[0]["decode_error"], found[0]["width"]) == ("decode: not enough memory to decode it", 290_000_000)
    assert found[0]["id"] == hashlib.sha256((folder / "swells.png").read_bytes()).hexdigest()
    assert found[1]["sound"]
    assert decoder.worker == worker  # it was told so in time, and lives


def test_a_worker_that_dies_between_slices_costs_nothing(decoder: Decoder, folder: Path) -> None:
    decoder.slice([row(folder / "a.png")])
    os.kill(decoder.worker or 0, signal.SIGKILL)
    assert [one["sound"] for one in decoder.slice([row(folder / "a.png")] * 3)[0]] == [True] * 3


def test_an_error_of_the_decoders_own_code_is_raised_and_not_made_a_row(decoder: Decoder, folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)the decoder failed \(exit code 1\).*Traceback.*in read_row.*Error"):
        decoder.slice([row(folder / "a.png"), row(folder / "a.png", uri=None)])
    assert decoder.slice([row(folder / "a.png")])[0][0]["sound"]


def test_more_rows_than_a_slice_has_are_refused(decoder: Decoder, folder: Path) -> None:
    with pytest.raises(ValueError, match="9 rows are more than a slice of 8"):
        decoder.slice([row(folder / "a.png")] * 9)


def test_a_closed_decoder_leaves_no_process_and_no_open_file_and_starts_again(folder: Path) -> None:
    files = open_files()
    decoder = Decoder(RULE, InputShapes(), slice_rows=1)
    assert decoder.worker is None
    decoder.slice([row(folder / "a.png")])
    first = decoder.worker or 0
    keeper = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    decoder.close()
    wait_until_gone(first, keeper)
    assert open_files() == files
    assert decoder.slice([row(folder / "a.png")])[0][0]["sound"]
    again = decoder.worker or 0
    os.kill(int(Path(f"/proc/{again}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    wait_until_gone(again)  # a worker does not outlive its keeper
    assert decoder.slice([row(folder / "a.png")])[0][0]["sound"]
    decoder.close()


OWNER = """
import sys, time
from sote.data.decoder import Decoder
from sote.data.inputs import InputShapes
from sote.data.recipe import DecodePart
decoder = Decoder(DecodePart(min_pixels=1), InputShapes(), slice_rows=1)
row = {"uri": sys.argv[1], "offset": None, "bytes": None, "index_skip": None, "index_error": None}
assert decoder.slice([row])[0][0]["sound"]
print(decoder.worker, flush=True)
time.sleep(600)
"""


def test_the_processes_end_when_their_owner_is_killed(folder: Path) -> None:
    picture = str(folder / "a.png")
    with subprocess.Popen([sys.executable, "-c", OWNER, picture], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        worker = int(owner.stdout.readline())
        keeper = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(worker, signal.SIGSTOP)  # one that hangs ends too
        owner.kill()
    wait_until_gone(worker, keeper)
