import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.optimization import Adafactor as Original

from sote.train import shards
from sote.train.adafactor import Adafactor
from sote.train.piecewise import Piecewise, views
from sote.train.shards import Piece

# matrices, a depthwise kernel, three axes, one axis, a row, a column, a scalar, one element, one that many hold
SHAPES = [(5, 7), (6, 1, 3, 3), (2, 3, 4), (9,), (1, 8), (8, 1), (), (1,), (40, 13), (3,)]
RATE, DECAY = 1e-2, 0.01
STEPS = 4


def _gradients(step: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(step)
    sizes = [10.0 ** (number % 5 - 3) for number in range(len(SHAPES))]
    return {f"t{n}": torch.randn(shape, generator=random) * sizes[n] for n, shape in enumerate(SHAPES)}


def _start() -> dict[str, Tensor]:
    # zeros: what is compared in the end is the movement, to all its digits
    return {f"t{number}": torch.zeros(shape) for number, shape in enumerate(SHAPES)}


def _original(*, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    weights = {name: tensor.to(dtype).requires_grad_() for name, tensor in _start().items()}
    settings = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    theirs = Original(list(weights.values()), lr=RATE, weight_decay=DECAY, **settings)  # type: ignore[no-untyped-call]
    for step in range(1, STEPS + 1):
        for name, gradient in _gradients(step).items():
            weights[name].grad = gradient.to(dtype)
        theirs.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


def _group(tensors: dict[str, Tensor]) -> dict[str, object]:
    return {"params": list(tensors.values()), "names": list(tensors), "lr": RATE, "weight_decay": DECAY}


class Meeting:
    """A sum over threads, each of which plays a worker."""

    def __init__(self, workers: int) -> None:
        self.barrier, self.given, self.sent = threading.Barrier(workers), {}, 0

    def reduce(self, rank: int) -> Callable[[Tensor], None]:
        def add(tensor: Tensor) -> None:
            self.given[rank] = tensor.clone()
            self.barrier.wait(timeout=20)
            tensor.copy_(sum(self.given[other] for other in sorted(self.given)))
            self.sent += rank == 0
            self.barrier.wait(timeout=20)

        return add


def _sharded(workers: int, *, order: int = 0) -> tuple[dict[str, Tensor], list[Piecewise], Meeting]:
    """The weights after all steps, each worker's optimizer, and where they met."""
    names = sorted(_start(), key=lambda name: (int(name[1:]) * 7 + order) % len(SHAPES))
    given = [Piece.of(name, _start()[name].shape) for name in names]
    every, meeting = shards.cut(given, workers=workers, alignment=workers), Meeting(workers)
    size = -(-sum(piece.length for piece in given) // workers)
    flats = [torch.zeros(size, requires_grad=True) for _ in range(workers)]
    made = [_worker(flats[rank], every, rank=rank, meeting=meeting) for rank in range(workers)]
    threads = [threading.Thread(target=_steps, args=(made[rank], flats[rank], every[rank])) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = _start()
    for flat, shard in zip(flats, every, strict=True):
        for piece, part in zip(shard, views(flat, shard), strict=True):
            found[piece.name].view(-1)[piece.start :][: piece.length] = part.reshape(-1)
    return found, made, meeting


def _worker(flat: Tensor, every: list[shards.Shard], *, rank: int, meeting: Meeting) -> Adafactor:
    made = Adafactor([_group({"flat": flat})])
    made.lay_out(0, every=every, rank=rank, reduce=meeting.reduce(rank))
    return made


def _steps(made: Piecewise, flat: Tensor, shard: shards.Shard) -> None:
    for step in range(1, STEPS + 1):
        gradients, flat.grad = _gradients(step), torch.zeros_like(flat)
        for piece, part in zip(shard, views(flat.grad, shard), strict=True):
            part.copy_(gradients[piece.name].reshape(-1)[piece.start :][: piece.length].view(part.shape))
        made.updates = step
        made.step()


def _assert_exact(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, tensor in theirs.items():
        far = float((ours[name] - tensor).abs().max() / tensor.abs().max())
        assert far < 1e-6, f"{name}: {far:.1e}"


def test_whole_tensors_move_as_with_transformers_adafactor_to_the_bit() -> None:
    weights = {name: tensor.requires_grad_() for name, tensor in _start().items()}
    ours = Adafactor([_group(weights)])
    for step in range(1, STEPS + 1):
        for name, gradient in _gradients(step).items():
            weights[name].grad = gradient
        ours.updates = step
        ours.step()
    theirs = _original()
    assert all(torch.equal(weights[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 8, 33])
def test_cut_tensors_move_as_whole_ones_wherever_the_cuts_are(workers: int) -> None:
    theirs = _original()
    for order in range(5):
        _assert_exact(_sharded(workers, order=order)[0], theirs)


def test_float64_agrees() -> None:
    ours, theirs = _sharded(4)[0], _original(dtype=torch.float64)
    _assert_exact(ours, {name: tensor.float() for name, tensor in theirs.items()})


def test_all_cut_tensors_are_settled_by_two_sums_over_the_workers_in_a_step() -> None:
    assert _sharded(8)[2].sent == 2 * STEPS
    assert _sharded(1)[2].sent == 0


def test_who_holds_a_piece_keeps_the_whole_tensors_rows_and_columns() -> None:
    holders = [made.moments for made in _sharded(8)[1] if "t8/exp_avg_sq_row" in made.moments]
    assert len(holders) > 2
    for moments in holders:
        assert moments["t8/exp_avg_sq_row"].shape == (40,)
        assert moments["t8/exp_avg_sq_col"].shape == (13,)
        assert torch.equal(moments["t8/exp_avg_sq_row"], holders[0]["t8/exp_avg_sq_row"])


def test_the_state_is_factored_over_the_last_two_axes() -> None:
    moments = _sharded(1)[1][0].moments
    assert moments["t1/exp_avg_sq_row"].shape == moments["t1/exp_avg_sq_col"].shape == (6, 1, 3)
    assert moments["t3/exp_avg_sq"].shape == (9,)
    assert moments["t6/exp_avg_sq"].shape == ()


def test_a_tensor_without_gradient_stays() -> None:
    weight = torch.ones(3, 4, requires_grad=True)
    ours = Adafactor([{"params": [weight], "names": ["weight"], "lr": RATE}])
    ours.step()
    assert torch.equal(weight, torch.ones(3, 4))
    assert ours.moments["weight/exp_avg_sq_row"].shape == (3,)
