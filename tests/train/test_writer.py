import errno
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sote.cluster.errors import RunFailed
from sote.train import checkpoint, writer
from sote.train.checkpoint import State
from sote.train.recipe import CheckpointPart
from sote.train.tensorfile import Planned
from sote.train.writer import File, Snapshot, Writer

STATE = State(
    step=1,
    updates=1,
    epoch=0,
    images_seen=4,
    seed=0,
    workers=2,
    recipe="cd" * 32,
    compression=32.0,
    encoder_sha256="ab" * 32,
    text_mask="masked",
    text_tokens=77,
    base="stable-cascade-prior",
    recent_losses=(0.1, 0.2),
    bad_steps=0,
    loss_buckets=None,
)


def state(step: int) -> State:
    return replace(STATE, step=step)


def planned(name: str, tensor: Tensor, dtype: str = "F32") -> Planned:
    return Planned(name, dtype, tuple(tensor.shape), lambda: tensor)


def snapshot(folder: Path, step: int, *, size: int = 12) -> Snapshot:
    tensors = [planned("a", torch.arange(float(size))), planned("b", torch.ones(2, 3))]
    return Snapshot(folder / f"step-{step}", {"prior.safetensors": File(tensors, {"format": "pt"})}, state(step))


def save(folder: Path, *steps: int, part: CheckpointPart | None = None) -> None:
    with Writer(part or CheckpointPart()) as writing:
        for step in steps:
            writing.save(snapshot(folder, step))


def steps(folder: Path) -> list[int]:
    return sorted(checkpoint.step_of(path) for path in checkpoint.listed(folder))


def test_tensors_of_all_types_come_back_bit_for_bit_in_the_order_of_the_format(tmp_path: Path) -> None:
    tensors = {
        "a": (torch.randn(3, 1, 2), "F32"),
        "b": (torch.randn(5).bfloat16(), "BF16"),
        "c": (torch.tensor(7), "I64"),
        "d": (torch.randn(2, 2).half(), "F16"),
        "e": (torch.randn(4, 3).T, "F32"),
    }
    made = [planned(name, tensor, dtype) for name, (tensor, dtype) in tensors.items()]
    with Writer(CheckpointPart()) as writing:
        writing.save(Snapshot(tmp_path / "step-1", {"x.safetensors": File(made, {"format": "pt", "step": "1"})}))
    found = load_file(tmp_path / "step-1/x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, (tensor, _) in tensors.items())
    assert [found[name].dtype for name in tensors] == [tensor.dtype for tensor, _ in tensors.values()]
    with safe_open(tmp_path / "step-1/x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "step": "1"}


def test_what_was_written_is_whole_and_says_so(tmp_path: Path) -> None:
    with Writer(CheckpointPart()) as writing:
        writing.save(snapshot(tmp_path, 10))
        writing.wait()
        (done,) = writing.finished()
        assert writing.finished() == []
    assert done.bytes == sum(path.stat().st_size for path in (tmp_path / "step-10").iterdir())
    assert checkpoint.verify(tmp_path / "step-10") == state(10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    reading, writing_end = os.pipe()

    def late() -> Tensor:
        os.read(reading, 1)
        return torch.ones(1)

    with Writer(CheckpointPart()) as writing:
        tensors = [Planned("a", "F32", (1,), late)]
        writing.save(Snapshot(tmp_path / "step-1", {"x.safetensors": File(tensors, {})}, STATE))
        assert writing.finished() == []
        assert steps(tmp_path) == []
        os.write(writing_end, b"x")
        writing.wait()
        assert steps(tmp_path) == [1]


def test_the_newest_are_kept_and_those_of_certain_steps(tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 15, 20, 25, 30, part=CheckpointPart(keep=2, keep_every_steps=10))
    assert steps(tmp_path) == [10, 20, 25, 30]
    save(tmp_path, 100, part=CheckpointPart(keep=1))
    assert steps(tmp_path) == [100]
    assert [path.name for path in tmp_path.iterdir()] == ["step-100"]


def test_the_only_whole_checkpoint_is_never_pruned_for_later_damaged_ones(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30)
    for step in (20, 30):
        (tmp_path / f"step-{step}" / "prior.safetensors").write_bytes(b"broken")
    save(tmp_path, 15, part=CheckpointPart(keep=1))
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.state.step == 15


def test_a_damaged_checkpoint_is_written_over(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "step-10" / "prior.safetensors").write_bytes(b"broken")
    save(tmp_path, 10)
    assert checkpoint.verify(tmp_path / "step-10") == state(10)


def test_what_a_kill_left_unfinished_is_swept(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / ".step-20.123.tmp").mkdir()
    (tmp_path / ".step-20.123.tmp" / "prior.safetensors").write_bytes(b"half")
    writer.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]
    writer.sweep(tmp_path / "none yet")


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Sets the largest file that can be written: as on a full disk, the system refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_the_last_checkpoint_still_loads(
    tmp_path: Path, small_disk: Callable[[int], None]
) -> None:
    save(tmp_path, 10)
    with Writer(CheckpointPart(keep=1)) as writing:
        small_disk(1_000_000)
        writing.save(snapshot(tmp_path, 20, size=500_000))
        with pytest.raises(RunFailed, match=r"step-20/prior\.safetensors: .*File too large.*step-10 is there"):
            writing.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.state == state(10)


def test_an_error_is_raised_at_the_next_call_whichever_it_is(tmp_path: Path) -> None:
    def full() -> Tensor:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    broken = Snapshot(tmp_path / "step-1", {"x.safetensors": File([Planned("a", "F32", (1,), full)], {})}, STATE)
    for call in ("wait", "save", "leave"):
        with pytest.raises(RunFailed, match="No space left on device"), Writer(CheckpointPart()) as writing:
            writing.save(broken)
            if call != "leave":
                writing.wait() if call == "wait" else writing.save(snapshot(tmp_path, 2))
                pytest.fail("nothing was raised")


def test_an_error_of_training_is_not_hidden_by_one_of_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ZeroDivisionError), Writer(CheckpointPart()) as writing:
        writing.save(snapshot(tmp_path / "file", 1))
        raise ZeroDivisionError
