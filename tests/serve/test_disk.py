"""Private files, whole or not at all; a lock that its holder's end lets go."""

import stat
import threading
import time
from pathlib import Path

import pytest

from sote.serve import disk


@pytest.mark.parametrize("write", [disk.write, disk.replace])
def test_a_file_is_replaced_whole_and_stays_private(tmp_path: Path, write: object) -> None:
    path = tmp_path / "job.json"
    for data in (b"one", b"two"):
        write(path, data)  # type: ignore[operator]
        assert path.read_bytes() == data
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["job.json"]


def test_a_lock_keeps_another_thread_out_until_it_is_let_go(tmp_path: Path) -> None:
    order: list[str] = []

    def other() -> None:
        with disk.locked(tmp_path):
            order.append("other")

    thread = threading.Thread(target=other)
    with disk.locked(tmp_path):
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_a_folder_that_is_gone_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk.locked(tmp_path / "none"):
        pass
