import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sote.cluster import logs
from sote.cluster.errors import CheckpointError, RunFailed
from sote.cluster.storage import RunFolder
from sote.train import checkpoint, loop, prior, worker
from sote.train.checkpoint import Origin
from sote.train.engine import Plain
from sote.train.recipe import TrainRecipe

ORIGIN = Origin(recipe="cd" * 32, compression=32.0, encoder_sha256="ab" * 32)
Make = Callable[..., TrainRecipe]


def _train(recipe: TrainRecipe, folder: Path) -> list[dict[str, float]]:
    """Train on from the newest checkpoint in one process; returns all lines of the metrics."""
    run = RunFolder(folder)
    found = checkpoint.newest(run.checkpoints)
    worker.train(recipe, folder=run, origin=ORIGIN, found=found, make_engine=Plain)
    return logs.read_metrics(run.metrics)


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(recipe: Make, tmp_path: Path) -> None:
    whole = _train(recipe(), tmp_path / "whole")
    _train(recipe(length={"max_steps": 2}), tmp_path / "cut")
    resumed = _train(recipe(), tmp_path / "cut")
    assert [line["step"] for line in resumed] == [1, 2, 3, 4]
    for name in ("loss", "plain_loss", "grad_norm", "lr", "epoch", "bucket", "images_seen"):
        assert [line[name] for line in resumed] == [line[name] for line in whole]
    for name in ("prior", "text_encoder", "optimizer"):
        one, two = (load_file(tmp_path / at / "checkpoints/step-4" / f"{name}.safetensors") for at in ("whole", "cut"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_training_lowers_the_loss_of_the_same_images_noise_and_times(recipe: Make, tmp_path: Path) -> None:
    made = recipe(optimizer={"prior_learning_rate": 1e-3, "warmup_steps": 0}, length={"max_steps": 8})
    run = worker.prepare(made, folder=RunFolder(tmp_path), origin=ORIGIN)
    engine = Plain(run.model, run.adafactor, part=run.optimizer, batch=run.batch, work=made.workers)

    def loss() -> float:
        run.model.eval()
        with torch.no_grad():
            micros = [micro for step in (1, 2, 3) for micro in loop.load(run, step, engine=engine)[1]]
            found = [prior.losses(run.model, one, tokenizer=run.tokenizer, device=engine.device) for one in micros]
        return float(torch.stack([one.loss for one in found]).mean())

    before = loss()
    loop.train(run, engine, after=0)
    assert loss() < 0.9 * before


def test_a_step_is_the_same_in_micro_batches_of_any_size(recipe: Make, tmp_path: Path) -> None:
    float32 = {"workers": {"precision": "float32"}, "length": {"max_steps": 1}}
    found = []
    for size in (1, 4):
        run = worker.prepare(recipe(batch={"micro_batch": size}, **float32), folder=RunFolder(tmp_path), origin=ORIGIN)
        run.model.eval()  # dropout goes by micro-batch
        engine = Plain(run.model, run.adafactor, part=run.optimizer, batch=run.batch, work=recipe(**float32).workers)
        batch, micros = loop.load(run, 1, engine=engine)
        found.append(loop.update(run, engine, batch=batch, micros=micros))
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-5)
    assert found[0].gradient_norm == pytest.approx(found[1].gradient_norm, rel=1e-4)


def test_bfloat16_arithmetic_leaves_the_weights_in_float32(recipe: Make, tmp_path: Path) -> None:
    _train(recipe(length={"max_steps": 1}), tmp_path)
    saved = load_file(tmp_path / "checkpoints/step-1/prior.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    weight = saved["clf.1.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())


def test_a_frozen_text_encoder_stays_as_it_was(recipe: Make, tiny: Path, tmp_path: Path) -> None:
    _train(recipe(optimizer={"text_encoder_learning_rate": None}, length={"max_steps": 1}), tmp_path)
    after = load_file(tmp_path / "checkpoints/step-1/text_encoder.safetensors")
    before = load_file(tiny / "prior/text_encoder/model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_a_loss_that_is_not_a_number_names_its_rows_and_leaves_the_checkpoint(
    recipe: Make, curated: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "curated"
    (broken / "latents/256x256").mkdir(parents=True)
    (broken / "catalogue.parquet").write_bytes((curated / "catalogue.parquet").read_bytes())
    (broken / "latents/320x192").symlink_to(curated / "latents/320x192")
    path = "latents/256x256/00000.safetensors"
    latents = load_file(curated / path)["latents"]
    latents[:] = float("nan")
    save_file({"latents": latents}, broken / path)
    with pytest.raises(RunFailed, match=r"step \d: loss is not finite for 4 of 4 images of bucket 256x256: 0{60}"):
        _train(recipe(data={"curated": str(broken)}, length={"max_steps": 6}), tmp_path / "run")
    found = checkpoint.newest(tmp_path / "run/checkpoints")
    assert found is None or all(bool(x.isfinite().all()) for x in load_file(found.path / "prior.safetensors").values())


def test_metrics_say_what_the_report_needs(recipe: Make, tmp_path: Path) -> None:
    (line,) = _train(recipe(length={"max_steps": 1}), tmp_path)
    names = {"time", "kind", "step", "loss", "grad_norm", "lr", "images_seen", "images_per_second", "epoch"}
    assert names | {"data_wait_share"} <= line.keys()
    assert (line["kind"], line["step"], line["images_seen"], line["lr"]) == ("step", 1, 4, 5e-6)


def test_a_checkpoint_of_another_model_is_refused_in_one_line(recipe: Make, tmp_path: Path) -> None:
    _train(recipe(length={"max_steps": 1}), tmp_path)
    folder = tmp_path / "checkpoints/step-1"
    tensors = load_file(folder / "prior.safetensors")
    tensors["clf.1.bias"] = torch.zeros(3)
    save_file(tensors, folder / "prior.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state["sha256"]["prior.safetensors"] = checkpoint._sha256(folder / "prior.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"tensor clf\.1\.bias has shape \(3,\), should have \(16,\)"):
        _train(recipe(length={"max_steps": 2}), tmp_path)
