"""Training with everything at a URI: an S3 server in a process of its own."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sote.cluster import logs, parts, remote, storage
from sote.cluster.errors import UserError
from sote.cluster.storage import RunFolder
from sote.serve import weightfiles
from sote.serve.recipe import ModelPart
from sote.train import checkpoint, export, modelfile, plan, worker, writer
from sote.train.checkpoint import Origin
from sote.train.engine import Plain
from sote.train.loop import Wish, no_wish
from sote.train.recipe import TrainRecipe
from sote.train.signs import Sign
from tests.stores import Store

Make = Callable[..., TrainRecipe]
ORIGIN = Origin(recipe="cd" * 32, compression=32.0, encoder_sha256="ab" * 32)
TABLES = {"batch": {"effective_batch": 2, "micro_batch": 1}, "workers": {"precision": "float32"}}


def bring(folder: Path, uri: str) -> str:
    """Copy a folder to a URI."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            there = remote.place(f"{uri}/{path.relative_to(folder)}")
            remote.put(there, path.read_bytes())
    return uri


def train(recipe: TrainRecipe, folder: Path, wish: Wish = no_wish) -> bool:
    run = RunFolder(folder)
    found = checkpoint.newest(run.checkpoints)
    done = worker.train(recipe, folder=run, origin=ORIGIN, found=found, make_engine=Plain, wish=wish)
    parts.bring(run.metrics)
    return done


def forget() -> None:
    """Be another node: nothing is here of what lies there."""
    mirror = remote.place("s3://any/thing").parents[1]
    shutil.rmtree(mirror, ignore_errors=True)


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = logs.read_metrics(folder / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "step"]


def test_a_run_that_is_continued_on_another_node_saves_what_a_local_one_saves_to_the_byte(
    recipe: Make, tiny: Path, curated: Path, s3: Store, tmp_path: Path
) -> None:
    here = recipe(**TABLES, length={"max_steps": 4}, ema={"decay": 0.9})
    train(here, tmp_path / "here")
    there = recipe(
        **TABLES,
        length={"max_steps": 4},
        ema={"decay": 0.9},
        data={"curated": bring(curated, f"{s3.uri}/curated")},
        model={"prior": bring(tiny / "prior", f"{s3.uri}/models/prior")},
        export={"decoder": bring(tiny / "decoder", f"{s3.uri}/models/decoder")},
    )
    plan.check(there)
    run = remote.place(f"{s3.uri}/runs/t")
    s3.fail_every(20)
    assert not train(there, run, wish=lambda step: "stop" if step == 3 else None)
    forget()
    assert train(there, run)
    s3.fail_every(0)
    assert losses(run) == losses(tmp_path / "here")
    files = s3.files()
    for step in (2, 3, 4):
        names = [name for name in files if name.startswith(f"runs/t/checkpoints/step-{step}/")]
        assert names if step > 2 else not names  # two are kept
    for path in (tmp_path / "here/checkpoints/step-4").iterdir():
        assert files[f"runs/t/checkpoints/step-4/{path.name}"] == path.read_bytes(), path.name
    assert [name for name in files if "tensorboard" in name]
    assert not [name for name in files if ".tmp" in name or ".lock" in name]


def test_of_checkpoints_at_a_uri_the_damaged_are_passed_over_and_the_unfinished_do_not_count(
    recipe: Make, s3: Store, caplog: pytest.LogCaptureFixture
) -> None:
    run = remote.place(f"{s3.uri}/runs/t")
    made = recipe(**TABLES, length={"max_steps": 3}, checkpoint={"every_steps": 1, "keep": 3})
    train(made, run)
    remote.put(run / "checkpoints/step-3/optimizer.safetensors", b"damaged")
    remote.put(run / "checkpoints/step-4/prior.safetensors", b"unfinished")
    forget()
    assert [path.name for path in checkpoint.listed(run / "checkpoints")] == ["step-3", "step-2", "step-1"]
    assert checkpoint.reached(run / "checkpoints") == 3
    assert not (run / "checkpoints/step-3/optimizer.safetensors").exists()  # nothing large was brought for that
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(run / "checkpoints")
    assert found is not None
    assert found.state.step == 2
    assert f"{s3.uri}/runs/t/checkpoints/step-3/optimizer.safetensors: damaged" in caplog.text
    weights = checkpoint.newest(run / "checkpoints", has_optimizer=False)
    assert weights is not None
    assert weights.state.step == 3
    # the copy here was changed: it is brought again
    for path in found.path.glob("prior.safetensors"):
        stamp = path.stat()
        path.write_bytes(b"x" * stamp.st_size)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert checkpoint.bring(found, is_checked=True).state.step == 2
    writer.sweep(run / "checkpoints")
    assert not [name for name in s3.files() if "step-4" in name]


def test_weights_of_a_run_at_a_uri_are_brought_without_the_optimizer_and_exported_to_another(
    recipe: Make, s3: Store
) -> None:
    made = recipe(**TABLES, length={"max_steps": 1}).model_copy(update={"run": f"{s3.uri}/runs/t"})
    with storage.open_run(made, verb="train", command="sote train") as folder:
        train(made, folder.root)
    forget()
    found = modelfile.prior(made.run, field="model.prior")
    assert found.unet.path.parent == folder.checkpoints / "step-1"
    assert not (folder.checkpoints / "step-1/optimizer.safetensors").exists()
    served = ModelPart(prior=made.run, decoder=str(made.export.decoder))
    assert weightfiles.named(served)[0].name == "t"
    out = remote.place(f"{s3.uri}/published")
    written = export.export(folder.root, out, "unet")
    again = {name: data for name, data in s3.files().items() if name.startswith("published/")}
    assert {f"published/{path.name}" for path in written} | {"published/export.json"} <= set(again)
    export.export(folder.root, out, "unet")
    assert {name: data for name, data in s3.files().items() if name.startswith("published/")} == again
    with pytest.raises(UserError, match=f"{s3.uri}/runs/t: holds something"):
        export.export(folder.root, folder.root, "unet")


def test_a_file_at_a_uri_is_seen_by_a_thread_some_time_later(s3: Store) -> None:
    path = remote.place(f"{s3.uri}/runs/t/.ray/stop")
    with Sign(path, seconds=0.05) as sign:
        assert not sign.is_there()
        remote.put(path, b"stop")
        assert sign.is_there_now()
        deadline = time.monotonic() + 20
        while not sign.is_there():
            assert time.monotonic() < deadline
            time.sleep(0.02)
