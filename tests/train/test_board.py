import struct
from collections import defaultdict
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from sote.cluster import logs
from sote.cluster.errors import RunFailed
from sote.cluster.storage import RunFolder
from sote.train.board import Board


def events(folder: Path) -> list[Event]:
    """What TensorBoard reads: records of length (8 bytes), its checksum (4), the event, its checksum (4)."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def curves(folder: Path) -> dict[str, dict[int, float]]:
    drawn: dict[str, dict[int, float]] = defaultdict(dict)
    for event in events(folder):
        for value in event.summary.value:
            drawn[value.tag][event.step] = round(value.simple_value, 6)
    return drawn


def test_a_step_is_a_line_of_the_metrics_and_a_point_of_each_curve(tmp_path: Path) -> None:
    board = Board(RunFolder(tmp_path), after=0)
    board.line("start", workers=2)
    board.step(1, loss=0.5, mfu=None, epoch=0, bucket="256x256", skipped=None)
    board.step(2, loss=None, mfu=0.25, epoch=0, bucket="256x256", skipped="loss: not finite")
    board.close()
    assert [line["kind"] for line in logs.read_metrics(tmp_path / "metrics.jsonl")] == ["start", "step", "step"]
    assert curves(tmp_path) == {"loss": {1: 0.5}, "mfu": {2: 0.25}, "skipped": {2: 1.0}}


def test_after_a_resume_steps_that_are_made_again_are_drawn_once(tmp_path: Path) -> None:
    for after, steps in ((0, range(1, 5)), (2, range(3, 6))):
        board = Board(RunFolder(tmp_path), after=after)
        for step in steps:
            board.step(step, loss=after + step)
        board.close()
    assert [event.step for event in events(tmp_path) if event.session_log.status == 1] == [3]
    assert curves(tmp_path)["loss"] == {1: 1, 2: 2, 3: 5, 4: 6, 5: 7}


def test_a_disk_that_takes_no_line_ends_the_run_in_one_line(tmp_path: Path) -> None:
    board = Board(RunFolder(tmp_path), after=0)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunFailed, match=r"metrics\.jsonl: cannot be written \(No space left on device\)"):
        board.step(1, loss=0.5)
    board.close()
