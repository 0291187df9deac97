from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from sote.cluster import storage
from sote.cluster.errors import SourceError
from sote.train import batches
from sote.train.batches import Loader, Order
from sote.train.recipe import BatchPart, CaptionsPart, LengthPart

PART = BatchPart(effective_batch=4, micro_batch=2, seed=3)


def _order(curated: Path, *, size: int = 4, seed: int = 3) -> Order:
    return Order(batches.read_rows(curated), effective_batch=size, seed=seed)


def test_an_epoch_shows_every_image_as_often_as_it_is_repeated(curated: Path) -> None:
    rows = batches.read_rows(curated)
    order = _order(curated, size=1)
    seen = Counter(int(order.batch(step, epochs=1).rows[0]) for step in range(1, order.steps(1) + 1))
    assert seen == Counter({row: int(repeat) for row, repeat in enumerate(rows.repeat)})
    assert seen[0] == 3


def test_what_does_not_fill_a_batch_is_seen_in_the_next_epoch(curated: Path) -> None:
    order = _order(curated, size=5)  # 14 + 10 images of two buckets: nothing divides
    epochs = 5  # 70 and 50 do
    seen = Counter(row for step in range(1, order.steps(epochs) + 1) for row in order.batch(step, epochs=epochs).rows)
    rows = batches.read_rows(curated)
    assert seen == Counter({row: epochs * int(repeat) for row, repeat in enumerate(rows.repeat)})


def test_a_run_of_whole_epochs_ends_with_the_remainders(curated: Path) -> None:
    order = _order(curated, size=5)
    found = [order.batch(step, epochs=1) for step in range(1, order.steps(1) + 1)]
    assert {row for batch in found for row in batch.rows} == set(range(22))
    assert all(batch.epoch == 0 for batch in found)
    assert len(found) == 5  # ceil(14 / 5) + ceil(10 / 5)


def test_all_images_of_a_step_have_one_bucket(curated: Path) -> None:
    rows, order = batches.read_rows(curated), _order(curated)
    for step in range(1, 40):
        batch = order.batch(step)
        assert {rows.buckets[rows.bucket[row]] for row in batch.rows} == {batch.bucket}


def test_the_order_depends_on_seed_and_step_alone(curated: Path) -> None:
    forward = [_order(curated).batch(step).rows.tolist() for step in range(1, 20)]
    used = _order(curated)
    backward = [used.batch(step).rows.tolist() for step in reversed(range(1, 20))]
    assert forward == backward[::-1]
    other = [_order(curated, seed=4).batch(step).rows.tolist() for step in range(1, 20)]
    assert forward != other


def test_buckets_smaller_than_a_batch_are_trained_too(curated: Path) -> None:
    order = _order(curated, size=32)
    found = [order.batch(step) for step in range(1, 9)]
    assert len({batch.bucket for batch in found}) == 2
    assert found[0].epoch == 2  # the first epoch that fills one: 3 x 14 images


def test_a_micro_batch_is_the_same_whoever_computes_it(curated: Path) -> None:
    rows = batches.read_rows(curated)
    order = Order(rows, effective_batch=4, seed=3)
    one, two = (Loader(rows, latents=curated / "latents", part=PART, captions=CaptionsPart()) for _ in range(2))
    two.micro(order.batch(7), 0)  # what was read before makes no difference
    first, second = one.micro(order.batch(5), 1), two.micro(order.batch(5), 1)
    assert torch.equal(first.noise_BCHW, second.noise_BCHW)
    assert torch.equal(first.latents_BCHW, second.latents_BCHW)
    assert torch.equal(first.time_B, second.time_B)
    assert (first.captions, first.seed) == (second.captions, second.seed)


def test_images_of_a_batch_have_their_own_noise_and_time(curated: Path) -> None:
    rows = batches.read_rows(curated)
    loader, order = Loader(rows, latents=curated / "latents", part=PART, captions=CaptionsPart()), Order(rows, effective_batch=4, seed=3)
    micros = [loader.micro(order.batch(step), index) for step in (1, 2) for index in (0, 1)]
    noise = torch.cat([micro.noise_BCHW.flatten(1)[:, :64] for micro in micros])
    assert len(torch.unique(noise, dim=0)) == 8
    assert len(torch.unique(torch.cat([micro.time_B for micro in micros]))) == 8
    assert len({micro.seed for micro in micros}) == 4


def test_noise_is_normal_and_times_are_uniform() -> None:
    noise = np.concatenate([batches.generator(0, batches.NOISE, 1, at).standard_normal(500) for at in range(40)])
    times = np.array([batches.generator(0, batches.TIME, 1, at).random() for at in range(2000)])
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert abs(times.mean() - 0.5) < 0.03


def test_latents_are_those_that_the_catalogue_names(curated: Path) -> None:
    rows = batches.read_rows(curated)
    loader, batch = (
        Loader(rows, latents=curated / "latents", part=PART, captions=CaptionsPart()),
        Order(rows, effective_batch=4, seed=3).batch(1),
    )
    micro = loader.micro(batch, 1)
    row = int(batch.rows[2])
    whole = load_file(curated / "latents" / rows.shard[row].as_py())["latents"]
    assert torch.equal(micro.latents_BCHW[0], whole[int(rows.offset[row])].float())


def test_tags_are_shuffled_as_a_list_and_never_split_from_text(curated: Path) -> None:
    loader = Loader(batches.read_rows(curated), latents=curated / "latents", part=PART, captions=CaptionsPart())
    tags = {"best quality", "0 shapes", 'The text says "a, b"', "red circle"}
    captions = {loader.caption(0, step=step, place=0) for step in range(1, 30)} - {""}
    assert len(captions) > 5
    for caption in captions:
        rest = caption
        for tag in tags:
            assert tag in rest
            rest = rest.replace(tag, "")
        assert rest == ", , , "


def test_captions_are_dropped_at_the_recipes_rate(curated: Path) -> None:
    rows = batches.read_rows(curated)
    part = CaptionsPart(dropout=0.25, shuffle=False)
    loader = Loader(rows, latents=curated / "latents", part=BatchPart(), captions=part)
    captions = [loader.caption(1, step=step, place=0) for step in range(1000)]
    assert set(captions) == {"", rows.caption[1].as_py()}
    assert 200 < captions.count("") < 300


def test_a_run_ends_at_whichever_end_comes_first(curated: Path) -> None:
    order = _order(curated)
    assert batches.last_step(LengthPart(max_steps=3), order) == 3
    assert batches.last_step(LengthPart(epochs=1), order) == 7  # ceil(14 / 4) + ceil(10 / 4)
    assert batches.last_step(LengthPart(epochs=1, max_steps=3), order) == 3


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("pick", False, "not one row is picked"),
        ("caption", None, "column caption: missing in 1 of"),
        ("repeat", 0, "repeat"),
    ],
)
def test_a_catalogue_that_cannot_be_trained_on_is_refused(
    curated: Path, tmp_path: Path, column: str, value: object, says: str
) -> None:
    rows = pq.read_table(curated / "catalogue.parquet").to_pylist()
    for row in rows if column == "pick" else rows[:1]:
        row[column] = value
    storage.write_table(
        tmp_path / "catalogue.parquet",
        pq.read_table(curated / "catalogue.parquet").from_pylist(
            rows, schema=pq.read_schema(curated / "catalogue.parquet")
        ),
    )
    with pytest.raises(SourceError, match=says):
        batches.read_rows(tmp_path)


def test_a_folder_without_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no catalogue\.parquet; run `sote curate`"):
        batches.read_rows(tmp_path)


def _with_sets(curated: Path, folder: Path) -> Path:
    """A copy of the catalogue in which rows 0 and 3, and one that is not picked, are of the set `final`."""
    table = pq.read_table(curated / "catalogue.parquet")
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        row["sets"] = ["final"] if number in (0, 3) or not row["pick"] else ["decoder", "other"] if number == 5 else []
    storage.write_table(folder / "catalogue.parquet", table.from_pylist(rows, schema=table.schema))
    return folder


def test_of_a_set_only_its_picked_rows_are_seen_and_each_once(curated: Path, tmp_path: Path) -> None:
    folder = _with_sets(curated, tmp_path)
    rows = batches.read_rows(folder, chosen="final")
    assert rows.id.to_pylist() == [f"{number:064x}" for number in (0, 3)]
    assert rows.repeat.tolist() == [1, 1]  # row 0 is repeated three times in the base run
    assert rows.buckets == ("320x192",)
    assert len(batches.read_rows(folder, chosen="other")) == 1
    assert batches.read_rows(folder).repeat.tolist() == batches.read_rows(curated).repeat.tolist()


def test_a_set_without_rows_is_refused_with_the_sets_that_have_some(curated: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"data\.set: .* 'fnal'; sets with rows: decoder, final, other"):
        batches.read_rows(_with_sets(curated, tmp_path), chosen="fnal")
    with pytest.raises(SourceError, match="sets with rows: none"):
        batches.read_rows(curated, chosen="final")
    table = pq.read_table(curated / "catalogue.parquet")
    storage.write_table(tmp_path / "old" / "catalogue.parquet", table.drop_columns(["sets"]))
    with pytest.raises(SourceError, match=r"has no column 'sets'; curate again"):
        batches.read_rows(tmp_path / "old", chosen="final")
