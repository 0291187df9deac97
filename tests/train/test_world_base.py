"""How `make base` runs its commands: chains beside each other, and what is made is kept when one fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from sote.train import world_base


def _write(path: Path, *, after: Path | None = None) -> list[str]:
    """A command that waits for the file `after`, then writes `path`."""
    code = "import pathlib, sys, time\n"
    if after is not None:
        code += f"while not pathlib.Path({str(after)!r}).exists(): time.sleep(0.01)\n"
    return [sys.executable, "-c", f"{code}pathlib.Path({str(path)!r}).touch()"]


def test_chains_run_beside_each_other_and_each_in_its_order(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    # The first chain waits for the second's first command, the second chain for the first's: one by one they would hang
    world_base._together([[_write(first, after=second)], [_write(second), _write(third, after=first)]])
    assert all(path.exists() for path in (first, second, third))


def test_a_chain_that_fails_ends_alone_and_is_told(tmp_path: Path) -> None:
    fails, never, kept = [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "never", tmp_path / "kept"
    with pytest.raises(subprocess.CalledProcessError, match="3"):
        world_base._together([[fails, _write(never)], [_write(kept)]])
    assert kept.exists()
    assert not never.exists()
