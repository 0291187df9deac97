from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sote.train.order import NOISE, TIME, Order, generator, last_step
from sote.train.recipe import LengthPart
from sote.train.rows import Rows, Tags, read_rows


def _rows(sizes: list[int], repeats: list[int] | None = None) -> Rows:
    """Rows in buckets of these sizes, mixed."""
    random = np.random.default_rng(0)
    bucket = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    repeat = np.ones(len(bucket), np.int64) if repeats is None else random.choice(repeats, len(bucket))
    none = Tags(pa.array([], pa.large_string()), *(np.zeros(0, np.int64) for _ in range(4)))
    names = tuple(f"{64 * at + 64}x64" for at in range(len(sizes)))
    return Rows(pa.chunked_array([[""]]), none, repeat, bucket, names)


def _seen(order: Order, epochs: int) -> Counter[int]:
    steps = range(1, order.steps(epochs) + 1)
    return Counter(int(row) for step in steps for row in order.batch(step, epochs=epochs).rows)


def test_an_epoch_shows_every_image_as_often_as_it_is_repeated(curated: Path) -> None:
    rows = read_rows(curated)
    seen = _seen(Order(rows, effective_batch=1, seed=3), 1)
    assert seen == Counter({row: int(repeat) for row, repeat in enumerate(rows.repeat)})
    assert seen[0] == 3


def test_what_does_not_fill_a_batch_is_seen_in_the_next_epoch() -> None:
    rows = _rows([14, 10])  # nothing divides by 5, but 70 and 50 do
    assert _seen(Order(rows, effective_batch=5, seed=3), 5) == Counter(dict.fromkeys(range(24), 5))


@pytest.mark.parametrize("seed", range(12))
def test_a_run_sees_each_row_repeat_times_an_epoch_and_the_fill_up(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 60, random.integers(1, 9)).tolist()
    rows, size, epochs = _rows(sizes, [1, 1, 1, 5]), int(random.integers(1, 24)), int(random.integers(1, 5))
    order = Order(rows, effective_batch=size, seed=seed)
    seen = _seen(order, epochs)
    due = {row: epochs * int(repeat) for row, repeat in enumerate(rows.repeat)}
    assert all(seen[row] >= times for row, times in due.items())  # none is lost
    for bucket in range(len(sizes)):
        mine = np.flatnonzero(rows.bucket == bucket).tolist()
        more = sum(seen[row] - due[row] for row in mine)
        assert more == -sum(due[row] for row in mine) % size  # fewer than a batch
        turn = int(rows.repeat[mine].sum())
        # the fill-up is the start of one more epoch: no row comes again before all have
        assert all(seen[row] - due[row] <= -(-more // turn) * int(rows.repeat[row]) for row in mine)


@pytest.mark.parametrize("seed", range(4))
def test_the_batches_of_a_bucket_are_its_epochs_end_to_end(seed: int) -> None:
    rows = _rows([23, 7, 40], [1, 2])
    order = Order(rows, effective_batch=6, seed=seed)
    streams: dict[str, list[int]] = {name: [] for name in rows.buckets}
    for step in range(1, 120):
        batch = order.batch(step)
        streams[batch.bucket] += batch.rows.tolist()
    for bucket, name in enumerate(rows.buckets):
        mine = np.flatnonzero(rows.bucket == bucket).tolist()
        turn = int(rows.repeat[mine].sum())
        for start in range(0, len(streams[name]) - turn + 1, turn):
            found = Counter(streams[name][start : start + turn])
            assert found == Counter({row: int(rows.repeat[row]) for row in mine})


def test_a_run_of_whole_epochs_ends_with_the_remainders() -> None:
    order = Order(_rows([14, 10]), effective_batch=5, seed=3)
    found = [order.batch(step, epochs=1) for step in range(1, order.steps(1) + 1)]
    assert {row for batch in found for row in batch.rows} == set(range(24))
    assert all(batch.epoch == 0 for batch in found)
    assert len(found) == 5  # ceil(14 / 5) + ceil(10 / 5)


def test_all_images_of_a_step_have_one_bucket() -> None:
    rows = _rows([30, 8, 3])
    order = Order(rows, effective_batch=4, seed=3)
    for step in range(1, 40):
        batch = order.batch(step)
        assert {rows.buckets[rows.bucket[row]] for row in batch.rows} == {batch.bucket}


def test_the_order_depends_on_seed_and_step_alone() -> None:
    rows = _rows([30, 8, 3])
    forward = [Order(rows, effective_batch=4, seed=3).batch(step).rows.tolist() for step in range(1, 20)]
    used = Order(rows, effective_batch=4, seed=3)
    backward = [used.batch(step).rows.tolist() for step in reversed(range(1, 20))]
    assert forward == backward[::-1]
    assert forward != [Order(rows, effective_batch=4, seed=4).batch(step).rows.tolist() for step in range(1, 20)]


def test_epochs_have_orders_of_their_own() -> None:
    order = Order(_rows([32]), effective_batch=32, seed=0)
    assert order.batch(1).rows.tolist() != order.batch(2).rows.tolist()


def test_buckets_smaller_than_a_batch_are_trained_too() -> None:
    order = Order(_rows([14, 10]), effective_batch=32, seed=3)
    found = [order.batch(step) for step in range(1, 9)]
    assert len({batch.bucket for batch in found}) == 2
    assert found[0].epoch == 2  # the first epoch that fills one: 3 x 14 images


def test_a_run_ends_at_whichever_end_comes_first() -> None:
    order = Order(_rows([14, 10]), effective_batch=4, seed=3)
    assert last_step(LengthPart(max_steps=3), order) == 3
    assert last_step(LengthPart(epochs=1), order) == 7  # ceil(14 / 4) + ceil(10 / 4)
    assert last_step(LengthPart(epochs=1, max_steps=3), order) == 3


def test_random_numbers_are_normal_and_uniform() -> None:
    noise = np.concatenate([generator(0, NOISE, 1, at).standard_normal(500) for at in range(40)])
    times = np.array([generator(0, TIME, 1, at).random() for at in range(2000)])
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert abs(times.mean() - 0.5) < 0.03
