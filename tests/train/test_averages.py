import pytest
import torch
from torch import nn

from sote.train.averages import Averages
from sote.train.engine import Plain
from sote.train.recipe import BatchPart, EmaPart, OptimizerPart, WorkersPart


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Linear(2, 1, bias=False)


@pytest.fixture
def engine() -> Plain:
    return Plain(Model(), part=OptimizerPart(), batch=BatchPart(), work=WorkersPart())


def put(engine: Plain, value: float) -> None:
    engine.pieces()[0].fill_(value)


def mean(averages: Averages) -> float:
    (found,) = averages.assemble().values()
    assert torch.equal(found, found[:1, :1].expand(1, 2))
    return float(found[0, 0])


def test_the_mean_follows_the_weights_by_its_decay(engine: Plain) -> None:
    put(engine, 1.0)
    averages = Averages(EmaPart(decay=0.75), engine)
    put(engine, 5.0)
    averages.follow(1)
    assert mean(averages) == 0.75 * 1.0 + 0.25 * 5.0
    averages.follow(2)
    assert mean(averages) == 0.75 * 2.0 + 0.25 * 5.0
    assert float(engine.pieces()[0][0, 0]) == 5.0


def test_it_moves_only_every_so_many_steps(engine: Plain) -> None:
    put(engine, 0.0)
    averages = Averages(EmaPart(decay=0.5, every_steps=3), engine)
    put(engine, 8.0)
    seen = []
    for step in range(1, 7):
        averages.follow(step)
        seen.append(mean(averages))
    assert seen == [0.0, 0.0, 4.0, 4.0, 4.0, 6.0]


def test_before_its_first_step_it_is_the_weights(engine: Plain) -> None:
    averages = Averages(EmaPart(decay=0.5, start_step=2), engine)
    seen = []
    for step, value in enumerate((1.0, 2.0, 4.0), start=1):
        put(engine, value)
        averages.follow(step)
        seen.append(mean(averages))
    assert seen == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_it_goes_on_from_a_checkpoint_as_if_never_stopped(engine: Plain, stop: int) -> None:
    part = EmaPart(decay=0.9, every_steps=2, start_step=2)
    averages = Averages(part, engine)
    for step in range(1, 7):
        put(engine, step**2)
        averages.follow(step)
        if step == stop:
            kept = averages.assemble()
            resumed = Averages(part, engine, step=step)
            resumed.load(lambda name, kept=kept: kept[name])  # type: ignore[misc]
        elif step > stop:
            resumed.follow(step)
    assert mean(resumed) == mean(averages)
