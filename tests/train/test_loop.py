import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sote.cluster import logs
from sote.cluster.errors import RunFailed
from sote.cluster.storage import RunFolder
from sote.train import checkpoint, modelfile, worker
from sote.train.batches import Prefetch
from sote.train.checkpoint import Origin
from sote.train.engine import Plain
from sote.train.loop import Loop, Training, Wish, no_wish
from sote.train.recipe import TrainRecipe

ORIGIN = Origin(recipe="cd" * 32, compression=32.0, encoder_sha256="ab" * 32)
Make = Callable[..., TrainRecipe]
Line = dict[str, Any]

FLOAT32 = {"workers": {"precision": "float32"}}
WHOLE = {"ema": {"decay": 0.9}, "diffusion": {"loss_weight": "adaptive"}}
LORA = {"lora": {"rank": 2}, "optimizer": {"text_encoder_learning_rate": None, "name": "adamw"}, "ema": {"decay": 0.9}}
PAIR = {"effective_batch": 2, "micro_batch": 1}


def train(recipe: TrainRecipe, folder: Path, wish: Wish = no_wish) -> bool:
    """Train on from the newest checkpoint in one process."""
    run = RunFolder(folder)
    found = checkpoint.newest(run.checkpoints)
    return worker.train(recipe, folder=run, origin=ORIGIN, found=found, make_engine=Plain, wish=wish)


def lines(folder: Path, kind: str = "step") -> list[Line]:
    return [line for line in logs.read_metrics(folder / "metrics.jsonl") if line["kind"] == kind]


def files(folder: Path, step: int) -> list[Path]:
    return sorted((folder / f"checkpoints/step-{step}").glob("*.safetensors"))


def prepared(recipe: TrainRecipe, folder: Path) -> tuple[Training, Plain]:
    run = worker.prepare(recipe, folder=RunFolder(folder), origin=ORIGIN)
    return run, Plain(run.task.model, part=recipe.optimizer, batch=recipe.batch, work=recipe.workers)


def test_a_wish_saves_and_training_goes_on(recipe: Make, tmp_path: Path) -> None:
    made = recipe(checkpoint={"every_steps": 100}, length={"max_steps": 3}, batch=PAIR, **FLOAT32)
    assert train(made, tmp_path, wish=lambda step: "save" if step == 1 else None)
    assert [line["step"] for line in lines(tmp_path, "checkpoint")] == [1, 3]
    assert all(line["bytes"] > 0 for line in lines(tmp_path, "checkpoint"))


def test_training_lowers_the_loss_of_the_same_images_noise_and_times(recipe: Make, tmp_path: Path) -> None:
    tables = {"optimizer": {"prior_learning_rate": 1e-3, "warmup_steps": 0}, "batch": {"micro_batch": 4}}
    run, engine = prepared(recipe(**tables, **FLOAT32), tmp_path)
    run.task.model.eval()
    loop = Loop(run, engine, found=None)

    def losses() -> list[float]:
        coming = Prefetch(
            run.loader, run.order, steps=range(1, 3), epochs=None, indices=loop.indices, part=run.recipe.data
        )
        return [loop.step(batch, micros).loss for batch, micros in coming]

    before = losses()
    losses()
    assert sum(losses()) < 0.9 * sum(before)


def test_a_step_is_the_same_in_micro_batches_of_any_size(recipe: Make, tmp_path: Path) -> None:
    found = []
    for size in (1, 4):
        run, engine = prepared(recipe(batch={"micro_batch": size}, length={"max_steps": 1}, **FLOAT32), tmp_path)
        run.task.model.eval()  # dropout goes by micro-batch
        loop = Loop(run, engine, found=None)
        batch = run.order.batch(1)
        found.append(loop.step(batch, [run.loader.micro(batch, index) for index in loop.indices]))
    assert torch.equal(found[0].time_N, found[1].time_N)
    torch.testing.assert_close(found[0].plain_N, found[1].plain_N, rtol=1e-5, atol=0)
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-5)
    assert found[0].norm == pytest.approx(found[1].norm, rel=1e-4)


def test_every_micro_batch_has_a_worker_and_what_is_over_is_padding(recipe: Make, tmp_path: Path) -> None:
    run, engine = prepared(recipe(batch={"micro_batch": 1}, **FLOAT32), tmp_path)

    def of(rank: int, workers: int) -> list[int]:
        engine.rank, engine.workers = rank, workers
        return Loop(run, engine, found=None).indices

    assert [of(rank, 2) for rank in range(2)] == [[0, 1], [2, 3]]
    assert [of(rank, 3) for rank in range(3)] == [[0, 1], [2, 3], [3, 3]]
    assert [of(rank, 5) for rank in range(5)] == [[0], [1], [2], [3], [3]]


def test_a_micro_batch_of_padding_changes_nothing(recipe: Make, tmp_path: Path) -> None:
    found = []
    for padding in (0, 1):
        run, engine = prepared(recipe(batch=PAIR, **FLOAT32), tmp_path)
        loop = Loop(run, engine, found=None)
        batch = run.order.batch(1)
        micros = [run.loader.micro(batch, index) for index in loop.indices]
        found.append(loop.step(batch, micros + micros[-1:] * padding))
    assert found[0].norm == found[1].norm
    assert found[0].loss == found[1].loss


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny: Path, curated: Path) -> Path:
    """The run folder of two steps in bfloat16, from first to last; not to be changed."""
    folder = tmp_path_factory.mktemp("done")
    tables = {
        "run": str(folder),
        "data": {"curated": str(curated)},
        "model": {"prior": str(tiny / "prior")},
        "text": {"mask_padding": False, "tokens": 152},
        "optimizer": {"text_encoder_learning_rate": 4e-6, "warmup_steps": 2},
        "batch": PAIR,
        "length": {"max_steps": 2},
        "samples": {"every_steps": 2, "prompts": ["a"]},
        "export": {"decoder": str(tiny / "decoder"), "licence": "none"},
    }
    assert train(TrainRecipe.model_validate(tables), folder)
    return folder


def test_bfloat16_arithmetic_leaves_the_weights_in_float32(done: Path) -> None:
    saved = load_file(done / "checkpoints/step-2/prior.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    weight = saved["clf.1.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())


def test_a_frozen_text_encoder_stays_as_it_was(recipe: Make, tiny: Path, tmp_path: Path) -> None:
    train(recipe(optimizer={"text_encoder_learning_rate": None}, length={"max_steps": 1}, batch=PAIR), tmp_path)
    after = load_file(tmp_path / "checkpoints/step-1/text_encoder.safetensors")
    before = load_file(tiny / "prior/text_encoder/model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert lines(tmp_path)[0]["lr_text_encoder"] is None


def test_adapters_alone_are_saved(recipe: Make, tmp_path: Path) -> None:
    train(recipe(**LORA, length={"max_steps": 1}, batch=PAIR), tmp_path)
    assert [path.name for path in files(tmp_path, 1)] == [
        "ema_lora.safetensors",
        "lora.safetensors",
        "optimizer.safetensors",
    ]
    with safe_open(tmp_path / "checkpoints/step-1/lora.safetensors", framework="pt") as file:
        assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in file.keys())  # noqa: SIM118
        assert (file.metadata()["lora_rank"], file.metadata()["lora_alpha"]) == ("2", "16.0")


def test_a_checkpoint_says_what_it_is_and_loads_as_a_model(done: Path, tiny: Path) -> None:
    found = modelfile.prior(str(done), field="model.prior")
    said = found.unet.metadata
    assert (said["text_mask"], said["text_tokens"], said["compression"]) == ("unmasked", "152", "32")
    assert (said["recipe"], said["base"]) == ("cd" * 32, "prior")
    assert (said["step"], said["images_seen"], said["licence"]) == ("2", "4", "none")
    assert json.loads(said["config"]) == json.loads(json.dumps(found.unet.config))


@pytest.fixture
def broken(curated: Path, tmp_path: Path) -> Path:
    """The curate run with latents of one bucket that are not finite."""
    folder = tmp_path / "curated"
    (folder / "latents/256x256").mkdir(parents=True)
    for path in curated.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "latents/320x192").symlink_to(curated / "latents/320x192")
    path = Path("latents/256x256/00000.safetensors")
    latents = load_file(curated / path)["latents"]
    latents[:] = float("nan")
    with safe_open(curated / path, framework="pt") as file:
        save_file({"latents": latents}, folder / path, metadata=file.metadata())
    return folder


def test_bad_steps_are_skipped_and_counted_and_harm_nothing(recipe: Make, broken: Path, tmp_path: Path) -> None:
    tables = {"data": {"curated": str(broken)}, "guard": {"max_bad_steps": 100}, "length": {"max_steps": 6}}
    train(recipe(**tables, **WHOLE, batch=PAIR), tmp_path / "run")
    told = lines(tmp_path / "run")
    assert [line["skipped"] for line in told] == [
        "loss: not finite" if line["bucket"] == "256x256" else None for line in told
    ]
    skipped = [line for line in told if line["skipped"]]
    assert skipped
    assert all(len(line["skipped_ids"]) == 2 and line["loss"] is None for line in skipped)
    assert "skipped_ids" not in next(line for line in told if line["skipped"] is None)
    found = checkpoint.newest(tmp_path / "run/checkpoints")
    assert found is not None
    assert (found.state.step, found.state.updates) == (6, 6 - len(skipped))
    assert len(found.state.recent_losses) == found.state.updates
    assert all(math.isfinite(loss) for loss in found.state.loss_buckets or [])
    for path in files(tmp_path / "run", 6):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values()), path.name


def test_too_many_bad_steps_end_the_run_with_the_rows_named(recipe: Make, broken: Path, tmp_path: Path) -> None:
    tables = {"data": {"curated": str(broken)}, "guard": {"max_bad_steps": 2}, "length": {"max_steps": 12}}
    tables |= {"batch": PAIR}
    with pytest.raises(RunFailed, match=r"step \d+: loss: not finite; 2 bad steps in a row .* rows 0{60}.*is good"):
        train(recipe(**tables), tmp_path / "run")
    told = lines(tmp_path / "run")
    assert [line["skipped"] for line in told[-2:]] == ["loss: not finite"] * 2


def test_weights_for_painting_are_those_of_the_step_in_bfloat16(done: Path) -> None:
    (line,) = lines(done, "snapshot")
    assert (line["step"], line["folder"]) == (2, str(done / ".snapshots/step-2"))
    for name in ("prior", "text_encoder"):
        kept = load_file(done / f"checkpoints/step-2/{name}.safetensors")
        shown = load_file(Path(line["folder"]) / f"{name}.safetensors")
        assert shown.keys() == kept.keys()
        assert all(torch.equal(shown[key], kept[key].bfloat16()) for key in kept)


def test_metrics_say_what_the_report_needs(done: Path) -> None:
    (start,) = lines(done, "start")
    assert start["tflops_ceiling"] > 0
    assert (start["workers"], start["zero_stage"], start["device"], start["resumed_from"]) == (1, 0, "cpu", None)
    line = lines(done)[0]
    assert line.keys() == {
        *("time", "kind", "step", "loss", "plain_loss", "loss_time_0", "loss_time_1", "loss_time_2", "loss_time_3"),
        *("grad_norm", "lr", "lr_text_encoder", "images_seen", "images_per_second", "data_wait_share", "mfu"),
        *("memory_gb", "epoch", "bucket", "workers", "skipped"),
    }
    assert (line["step"], line["images_seen"], line["lr"], line["lr_text_encoder"]) == (1, 2, 5e-6, 2e-6)
    assert 0 < line["mfu"] < 1
    assert 0 <= line["data_wait_share"] <= 1
    assert line["memory_gb"] > 0
