from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sote.cluster import logs
from sote.cluster.storage import RunFolder
from sote.train import checkpoint, worker
from sote.train.checkpoint import Origin
from sote.train.engine import Plain
from sote.train.loop import Wish, no_wish
from sote.train.recipe import TrainRecipe

ORIGIN = Origin(recipe="cd" * 32, compression=32.0, encoder_sha256="ab" * 32)
Make = Callable[..., TrainRecipe]
Line = dict[str, Any]

FLOAT32 = {"workers": {"precision": "float32"}}
WHOLE = {"ema": {"decay": 0.9}, "diffusion": {"loss_weight": "adaptive"}}
LORA = {"lora": {"rank": 2}, "optimizer": {"text_encoder_learning_rate": None, "name": "adamw"}, "ema": {"decay": 0.9}}
STAGE_B = {"model": {"stage": "decoder"}, "diffusion": {"least_encoder_scale": 1.0, "pyramid_noise": 0.75}}
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


@pytest.mark.parametrize("tables", [WHOLE, LORA, STAGE_B], ids=["whole", "lora", "stage b"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    recipe: Make, tiny: Path, tmp_path: Path, tables: Line
) -> None:
    tables = tables | {"batch": PAIR, "checkpoint": {"every_steps": 6}}
    steps = 6
    if "model" in tables:
        tables["model"] = tables["model"] | {"decoder": str(tiny / "decoder")}
        steps = 2
    train(recipe(**tables, length={"max_steps": steps}), tmp_path / "whole")
    train(recipe(**tables, length={"max_steps": steps // 2}), tmp_path / "cut")
    train(recipe(**tables, length={"max_steps": steps}), tmp_path / "cut")
    whole, cut = lines(tmp_path / "whole"), lines(tmp_path / "cut")
    assert [line["step"] for line in cut] == list(range(1, steps + 1))
    for name in ("loss", "plain_loss", "grad_norm", "lr", "epoch", "bucket", "images_seen", "loss_time_0"):
        assert [line[name] for line in cut] == [line[name] for line in whole], name
    assert [path.name for path in files(tmp_path / "cut", steps)] == [
        path.name for path in files(tmp_path / "whole", steps)
    ]
    for one, two in zip(files(tmp_path / "whole", steps), files(tmp_path / "cut", steps), strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    states = [(tmp_path / at / f"checkpoints/step-{steps}/state.json").read_text() for at in ("whole", "cut")]
    assert states[0] == states[1]


def test_a_stop_in_the_middle_of_the_second_epoch_loses_nothing(recipe: Make, tmp_path: Path) -> None:
    tables = {"length": {"max_steps": 4}, "batch": {"effective_batch": 12, "micro_batch": 12}}
    made = recipe(**FLOAT32, **tables, checkpoint={"every_steps": 100})
    assert train(made, tmp_path / "whole")
    assert not train(made, tmp_path / "cut", wish=lambda step: "stop" if step == 3 else None)
    found = checkpoint.newest(tmp_path / "cut/checkpoints")
    assert found is not None
    assert (found.state.step, found.state.epoch) == (3, 1)
    assert train(made, tmp_path / "cut")
    whole, cut = lines(tmp_path / "whole"), lines(tmp_path / "cut")
    assert [line["loss"] for line in cut] == [line["loss"] for line in whole]
    assert [line["epoch"] for line in whole] == [0, 1, 1, 2]
    assert [line["resumed_from"] for line in lines(tmp_path / "cut", "start")] == [None, 3]
    assert files(tmp_path / "cut", 4)[0].read_bytes() == files(tmp_path / "whole", 4)[0].read_bytes()
