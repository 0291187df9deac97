"""Lines of the access log: whole, rotated, and lost without harm."""

import json
from pathlib import Path

import pytest

from sote.serve.accesslog import BACKUPS, AccessLog, Entry

ENTRY = Entry("r-1", "GET", "/v1/jobs/{name}", 200, seconds=0.12345678, visitor="ada", bytes=5, images=0)


def never() -> None:
    raise AssertionError("a line was lost")


def test_a_line_is_the_entry_and_its_time(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "run" / "access.jsonl", lost=never)  # the folder is made
    log.write(ENTRY)
    log.close()
    (line,) = map(json.loads, (tmp_path / "run" / "access.jsonl").read_text().splitlines())
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "request_id": "r-1",
        "method": "GET",
        "route": "/v1/jobs/{name}",
        "status": 200,
        "seconds": 0.1235,
        "visitor": "ada",
        "bytes": 5,
        "images": 0,
    }


def test_probes_that_went_well_are_left_out(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.jsonl", lost=never)
    for status in (200, 503):
        log.write(Entry("r", "GET", "/readyz", status, seconds=0, visitor="", bytes=0, images=0))
    log.close()
    assert [json.loads(line)["status"] for line in (tmp_path / "access.jsonl").read_text().splitlines()] == [503]


def test_a_full_file_is_put_aside_and_only_a_few_are_kept(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.jsonl", lost=never, max_bytes=400)
    for _ in range(100):
        log.write(ENTRY)
    log.close()
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["access.jsonl", *(f"access.jsonl.{number}" for number in range(1, BACKUPS + 1))]
    for file in tmp_path.iterdir():
        assert file.stat().st_size <= 400
        assert all(json.loads(line)["request_id"] == "r-1" for line in file.read_text().splitlines())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_full_disk_fails_no_request_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    lost = []
    log = AccessLog(Path("/dev/full"), lost=lambda: lost.append(1))
    for _ in range(5):
        log.write(ENTRY)
    assert len(lost) == 5
    log.close()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "No space left on device" in caplog.text


def test_a_log_that_can_be_written_again_says_the_next_loss_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = []
    log = AccessLog(tmp_path / "run" / "access.jsonl", lost=lambda: lost.append(1))
    for is_blocked in (True, True, False, True):
        log.close()  # so that it is opened again
        blocker = tmp_path / "run"
        if is_blocked and not blocker.exists():
            blocker.write_text("a file where the folder should be")
        elif not is_blocked and blocker.is_file():
            blocker.unlink()
        elif is_blocked and blocker.is_dir():
            (blocker / "access.jsonl").unlink()
            blocker.rmdir()
            blocker.write_text("again")
        log.write(ENTRY)
    log.close()
    assert len(lost) == 3
    assert len(caplog.records) == 2
