import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sote.cluster.errors import CheckpointError
from sote.cluster.storage import RunFolder
from sote.train import checkpoint, worker
from sote.train.checkpoint import Checkpoint, Origin
from sote.train.engine import Plain
from sote.train.recipe import TrainRecipe

ORIGIN = Origin(recipe="cd" * 32, compression=32.0, encoder_sha256="ab" * 32)
Make = Callable[[str], TrainRecipe]


@pytest.fixture(scope="module")
def small(tiny: Path, curated: Path) -> Make:
    """Makes a recipe of two steps of two images in float32, text encoder frozen, that starts from a folder."""

    def make(prior: str = str(tiny / "prior")) -> TrainRecipe:
        tables = {
            "run": "unused",
            "data": {"curated": str(curated)},
            "model": {"prior": prior},
            "batch": {"effective_batch": 2, "micro_batch": 2},
            "length": {"max_steps": 2},
            "workers": {"precision": "float32"},
        }
        return TrainRecipe.model_validate(tables)

    return make


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior's folder that a test may change, and change back."""
    folder = tmp_path_factory.mktemp("base") / "prior"
    shutil.copytree(tiny / "prior", folder)
    return folder


@pytest.fixture(scope="module")
def trained(small: Make, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the first of two steps from `base`; not to be changed."""
    folder = RunFolder(tmp_path_factory.mktemp("trained"))
    made = small(str(base)).model_copy(update={"length": small(str(base)).length.model_copy(update={"max_steps": 1})})
    assert worker.train(made, folder=folder, origin=ORIGIN, found=None, make_engine=Plain)
    return folder.checkpoints / "step-1"


@pytest.fixture
def mine(trained: Path, tmp_path: Path) -> Checkpoint:
    """A copy of the checkpoint that a test may change."""
    return Checkpoint(Path(shutil.copytree(trained, tmp_path / "checkpoints/step-1")), checkpoint.verify(trained))


def go_on(recipe: TrainRecipe, found: Checkpoint) -> bool:
    folder = RunFolder(found.path.parent.parent)
    return worker.train(recipe, folder=folder, origin=ORIGIN, found=found, make_engine=Plain)


def test_a_run_starts_with_the_bits_of_its_files_and_goes_on_with_those_of_its_checkpoint(
    small: Make, base: Path, mine: Checkpoint
) -> None:
    run = worker.prepare(small(str(base)), folder=RunFolder(mine.path.parent.parent), origin=ORIGIN)
    engine = Plain(run.task.model, part=run.recipe.optimizer, batch=run.recipe.batch, work=run.recipe.workers)
    for found, path in ((None, next((base / "prior").glob("*.safetensors"))), (mine, mine.weights("prior"))):
        for piece in engine.pieces():
            piece.zero_()
        worker.load(engine, run, found)
        weights = engine.assemble(engine.pieces())
        assert {f"prior.{name}" for name in load_file(path)} == weights.keys()
        assert all(torch.equal(weights[f"prior.{name}"], tensor.float()) for name, tensor in load_file(path).items())
    state = load_file(mine.path / "optimizer.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in engine.state().items())


def test_a_checkpoint_of_another_size_of_model_is_refused_by_tensor(small: Make, mine: Checkpoint) -> None:
    tensors = load_file(mine.weights("prior"))
    save_file(tensors | {"clf.1.bias": torch.zeros(3)}, mine.weights("prior"))
    with pytest.raises(CheckpointError, match=r"tensor clf\.1\.bias has shape \(3,\), should have \(16,\)"):
        go_on(small(), mine)


def test_a_checkpoint_with_missing_or_extra_tensors_is_refused_by_tensor(small: Make, mine: Checkpoint) -> None:
    tensors = load_file(mine.weights("text_encoder"))
    save_file(tensors | {"more": torch.zeros(1)}, mine.weights("text_encoder"))
    with pytest.raises(CheckpointError, match=r"text_encoder\.safetensors: tensor more is not of this model"):
        go_on(small(), mine)
    del tensors["text_projection.weight"]
    save_file(tensors, mine.weights("text_encoder"))
    with pytest.raises(CheckpointError, match=r"tensor text_projection\.weight is missing"):
        go_on(small(), mine)


def test_a_checkpoint_of_another_stage_is_refused(small: Make, mine: Checkpoint) -> None:
    mine.weights("prior").rename(mine.weights("decoder"))
    with pytest.raises(CheckpointError, match=r"has no prior\.safetensors but decoder\.safetensors, text_encoder"):
        go_on(small(), mine)


def test_a_checkpoint_of_whole_weights_is_refused_by_a_run_of_adapters(small: Make, mine: Checkpoint) -> None:
    made = TrainRecipe.model_validate(small().model_dump() | {"lora": {"rank": 2}})
    with pytest.raises(CheckpointError, match=r"has no lora\.safetensors but prior\.safetensors, text_encoder"):
        go_on(made, mine)


def test_state_of_the_optimizer_that_is_missing_is_named(small: Make, base: Path, mine: Checkpoint) -> None:
    path = mine.path / "optimizer.safetensors"
    state = load_file(path)
    gone = sorted(state)[0]
    save_file({name: tensor for name, tensor in state.items() if name != gone}, path)
    with pytest.raises(CheckpointError, match=f"optimizer.safetensors: {gone}: missing"):
        go_on(small(str(base)), mine)


def test_a_run_whose_frozen_weights_were_changed_under_it_says_so(small: Make, base: Path, mine: Checkpoint) -> None:
    path = base / "text_encoder/model.safetensors"
    before = path.read_bytes()
    tensors = load_file(path)
    tensors["text_projection.weight"][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    try:
        with pytest.raises(CheckpointError, match=r"tensor text_projection\.weight is not the one that this run start"):
            go_on(small(str(base)), mine)
    finally:
        path.write_bytes(before)
