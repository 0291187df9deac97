import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sote.cluster.errors import SourceError
from sote.train import diffusion
from sote.train.batches import TIME, Inputs, Loader, Micro, Order, Prefetch, Store, generator, make_loader, read_rows
from sote.train.recipe import BatchPart, CaptionsPart, DataPart, DiffusionPart, TrainRecipe

Make = Callable[..., TrainRecipe]
PART = BatchPart(effective_batch=4, micro_batch=2, seed=3)


def _loader(curated: Path, **changes: Any) -> Loader:
    given: dict[str, Any] = {"batch": PART, "captions": CaptionsPart(), "diffusion": DiffusionPart()}
    return Loader(read_rows(curated), inputs=Inputs(Store(curated)), **given | changes)


def _order(loader: Loader) -> Order:
    return Order(loader.rows, effective_batch=4, seed=3)


def _decoder(recipe: Make, curated: Path, tiny: Path, **tables: Any) -> Loader:
    tables = {"data": {}, "diffusion": {}} | tables
    model = {"stage": "decoder", "decoder": str(tiny / "decoder")}
    return make_loader(recipe(model=model, **tables | {"data": {"curated": str(curated)} | tables["data"]}))


def _equal(one: Micro, other: Micro) -> bool:
    def same(first: Any, second: Any) -> bool:
        return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second

    return all(same(value, getattr(other, name)) for name, value in vars(one).items())


def test_a_micro_batch_is_the_same_whoever_computes_it(curated: Path) -> None:
    one, two = _loader(curated), _loader(curated)
    order = _order(one)
    two.micro(order.batch(7), 0)  # what was read before makes no difference
    assert _equal(one.micro(order.batch(5), 1), two.micro(order.batch(5), 1))


def test_images_of_a_batch_have_their_own_noise_and_time(curated: Path) -> None:
    loader = _loader(curated)
    order = _order(loader)
    micros = [loader.micro(order.batch(step), index) for step in (1, 2) for index in (0, 1)]
    noise = torch.cat([micro.noise_BCHW.flatten(1)[:, :64] for micro in micros])
    assert len(torch.unique(noise, dim=0)) == 8
    assert len(torch.unique(torch.cat([micro.time_B for micro in micros]))) == 8
    assert len({micro.seed for micro in micros}) == 4
    assert [micro.index for micro in micros] == [0, 1, 0, 1]


def test_an_image_is_the_same_however_a_batch_is_cut(curated: Path) -> None:
    two, four = _loader(curated), _loader(curated, batch=PART.model_copy(update={"micro_batch": 4}))
    batch = _order(two).batch(3)
    whole, halves = four.micro(batch, 0), [two.micro(batch, index) for index in (0, 1)]
    assert [one for half in halves for one in half.captions] == whole.captions
    assert torch.equal(torch.cat([half.noise_BCHW for half in halves]), whole.noise_BCHW)
    assert torch.equal(torch.cat([half.time_B for half in halves]), whole.time_B)


def test_times_and_noise_are_the_recipes(curated: Path) -> None:
    part = DiffusionPart(min_time=0.4, max_time=0.5, offset_noise=0.3)
    loader, plain = _loader(curated, diffusion=part), _loader(curated)
    batch = _order(loader).batch(1)
    micro, other = loader.micro(batch, 1), plain.micro(batch, 1)
    uniform = torch.tensor([generator(3, TIME, 1, place).random() for place in (2, 3)])
    assert torch.equal(micro.time_B, diffusion.times(uniform.float(), part))
    assert ((micro.time_B >= 0.4) & (micro.time_B <= 0.5)).all()
    shift_BC = (micro.noise_BCHW - other.noise_BCHW).flatten(2)
    assert (shift_BC.std(dim=2) < 1e-5).all()
    assert (shift_BC.mean(dim=2).abs() > 0).any()


def test_latents_are_those_that_the_catalogue_names(curated: Path) -> None:
    loader = _loader(curated)
    batch = _order(loader).batch(1)
    micro, places = loader.micro(batch, 1), loader.rows.latents
    assert places is not None
    assert micro.latents_BCHW is not None
    row = int(batch.rows[2])
    whole = load_file(curated / "latents" / places.shards[places.which[row]])["latents"]
    assert torch.equal(micro.latents_BCHW[0], whole[int(places.offset[row])].float())
    assert (micro.pixels_BHWC, micro.encoder_latents_BCHW, micro.encoder_scale) == (None, None, 1.0)
    assert micro.keep_B.all()


def test_captions_have_their_tags_whole_in_a_random_order(curated: Path) -> None:
    loader = _loader(curated)
    captions = {loader.caption(0, step=step, place=0) for step in range(1, 30)} - {""}
    assert len(captions) > 5
    for caption in captions:
        for tag in ("best quality", "0 shapes", 'The text says "a, b"', "red circle"):
            caption = caption.replace(tag, "", 1)
        assert caption == ", , , "


def test_pictures_stand_in_for_latents_where_the_recipe_says_so(recipe: Make, pictured: Path) -> None:
    loader = make_loader(recipe(data={"curated": str(pictured), "encode": True}))
    order = _order(loader)
    for step in (1, 2, 3):
        batch = order.batch(step)
        micro = loader.micro(batch, 0)
        width, height = (int(side) for side in batch.bucket.split("x"))
        assert micro.latents_BCHW is None
        assert micro.pixels_BHWC is not None
        assert (micro.pixels_BHWC.shape, micro.pixels_BHWC.dtype) == ((2, height, width, 3), torch.uint8)
        assert micro.noise_BCHW.shape == (2, 16, height // 32, width // 32)


def test_pictures_have_the_encoders_size_at_any_compression(recipe: Make, pictured: Path) -> None:
    loader = make_loader(recipe(data={"curated": str(pictured), "encode": True, "compression": 42.67}))
    order = _order(loader)
    batch = next(batch for batch in map(order.batch, range(1, 20)) if batch.bucket == "256x256")
    micro = loader.micro(batch, 1)
    assert micro.pixels_BHWC is not None
    assert micro.pixels_BHWC.shape == (2, 192, 192, 3)
    assert micro.noise_BCHW.shape == (2, 16, 6, 6)


def test_stage_b_has_vq_latents_and_pixels_at_a_scale_of_the_step(recipe: Make, pictured: Path, tiny: Path) -> None:
    loader = _decoder(recipe, pictured, tiny, diffusion={"encoder_dropout": 0.5})
    order = _order(loader)
    scales, kept = [], []
    for step in range(1, 13):
        batch = order.batch(step)
        one, two = (loader.micro(batch, index) for index in (0, 1))
        width, height = (int(side) for side in batch.bucket.split("x"))
        assert one.latents_BCHW is not None
        assert one.pixels_BHWC is not None
        assert one.latents_BCHW.shape == one.noise_BCHW.shape == (2, 4, height // 4, width // 4)
        assert one.pixels_BHWC.shape == (2, height, width, 3)
        assert one.encoder_latents_BCHW is None
        assert one.encoder_scale == two.encoder_scale
        scales.append(one.encoder_scale)
        kept += torch.cat([one.keep_B, two.keep_B]).tolist()
    assert len(set(scales)) == 12
    assert 0.5 <= min(scales) < 0.65
    assert 0.85 < max(scales) <= 1
    assert 10 < sum(kept) < 38


def test_stage_b_reads_the_encoders_latents_where_the_scale_is_always_one(
    recipe: Make, curated: Path, tiny: Path
) -> None:
    loader = _decoder(recipe, curated, tiny, diffusion={"least_encoder_scale": 1.0})  # its pictures are not there
    micro = loader.micro(_order(loader).batch(1), 0)
    assert micro.pixels_BHWC is None
    assert micro.encoder_latents_BCHW is not None
    assert micro.encoder_latents_BCHW.shape[1] == 16
    assert micro.encoder_scale == 1.0


def test_stage_b_can_be_trained_from_pictures_alone(recipe: Make, pictured: Path, tiny: Path) -> None:
    loader = _decoder(recipe, pictured, tiny, data={"encode": True})
    batch = _order(loader).batch(1)
    micro = loader.micro(batch, 0)
    width, height = (int(side) for side in batch.bucket.split("x"))
    assert micro.latents_BCHW is None
    assert micro.noise_BCHW.shape == (2, 4, height // 4, width // 4)


def _prefetch(loader: Loader, steps: range, **changes: Any) -> Prefetch:
    given: dict[str, Any] = {"epochs": None, "indices": (0, 1), "part": DataPart(curated="x", readers=2)}
    return Prefetch(loader, _order(loader), steps=steps, **given | changes)


def _threads() -> int:
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


def test_what_is_read_ahead_is_what_would_be_read_without(curated: Path) -> None:
    loader = _loader(curated)
    order, steps = _order(loader), range(3, 10)
    with _prefetch(loader, steps) as coming:
        for step, (batch, micros) in zip(steps, coming, strict=True):
            expected = order.batch(step)
            assert (batch.step, batch.rows.tolist()) == (step, expected.rows.tolist())
            assert [_equal(micro, loader.micro(expected, at)) for at, micro in enumerate(micros)] == [True, True]
            assert coming.waited >= 0
    assert _threads() == 0


def test_a_run_of_whole_epochs_is_read_to_its_end(curated: Path) -> None:
    loader = _loader(curated)
    last = _order(loader).steps(1)
    found = list(_prefetch(loader, range(1, last + 1), epochs=1, indices=(1,)))
    assert {int(row) for batch, _ in found for row in batch.rows} == set(range(22))
    assert [micro.index for _, micros in found for micro in micros] == [1] * last
    assert _threads() == 0


def test_no_more_is_read_ahead_than_the_recipe_says(curated: Path) -> None:
    loader = _loader(curated)
    asked: set[int] = set()
    micro = loader.micro

    def counted(batch: Any, index: int) -> Micro:
        asked.add(batch.step)
        return micro(batch, index)

    loader.micro = counted  # type: ignore[method-assign]
    with _prefetch(loader, range(1, 100), part=DataPart(curated="x", prefetch_steps=3)) as coming:
        next(coming)
        next(coming)
        coming.close()
        assert max(asked) <= 2 + 3 + 1
    assert _threads() == 0
    with pytest.raises(StopIteration):
        next(coming)


def test_an_error_in_reading_is_raised_at_its_step_and_ends_all_threads(curated: Path, tmp_path: Path) -> None:
    loader = _loader(curated)
    order = _order(loader)
    first = next(step for step in range(2, 50) if order.batch(step).bucket != order.batch(1).bucket)
    bucket = order.batch(first).bucket
    good = (curated / "latents" / order.batch(1).bucket / "00000.safetensors").read_bytes()
    there = tmp_path / "latents" / order.batch(1).bucket
    there.mkdir(parents=True)
    (there / "00000.safetensors").write_bytes(good)  # the other bucket's is missing
    loader.inputs = replace(loader.inputs, store=Store(tmp_path))
    coming = _prefetch(loader, range(1, 50))
    assert [next(coming)[0].step for _ in range(1, first)] == list(range(1, first))
    with pytest.raises(SourceError, match=rf"{bucket}/00000\.safetensors: data\.curated: no such latent file"):
        next(coming)
    assert _threads() == 0


def test_a_recipe_that_no_row_fits_is_refused_before_anything_is_read(recipe: Make, curated: Path) -> None:
    with pytest.raises(SourceError, match=r"data\.set: no picked row is of the set 'final'"):
        make_loader(recipe(data={"set": "final"}))
    with pytest.raises(SourceError, match=r"has no catalogue\.parquet"):
        make_loader(recipe(data={"curated": str(curated / "nowhere")}))


def test_a_long_run_has_as_many_random_numbers_as_it_needs() -> None:
    drawn = [generator(3, TIME, step, place).random() for step in range(50) for place in range(40)]
    assert len(np.unique(drawn)) == 2000
