"""One worker of a training run: from the recipe to the last step.

Kind: actor.
"""

from collections.abc import Callable

import torch

from sote.cluster.errors import CheckpointError
from sote.cluster.storage import RunFolder
from sote.train import batches, checkpoint, loop, lora, task
from sote.train.batches import Order
from sote.train.checkpoint import Checkpoint, Origin, Reader
from sote.train.engine import Engine
from sote.train.loop import Training, Wish
from sote.train.recipe import TrainRecipe
from sote.train.shapes import Shapes
from sote.train.task import Task


def train(
    recipe: TrainRecipe,
    *,
    folder: RunFolder,
    origin: Origin,
    found: Checkpoint | None,
    make_engine: Callable[..., Engine],
    wish: Wish = loop.no_wish,
) -> bool:
    """Load everything, continue after the checkpoint `found` (None: start), and train to the end, or to a stop.

    `make_engine` is called like engine.Plain; for `wish` and the result see loop.train. On GPUs this worker's must be
    torch's current one. Raises CheckpointError if `found` is of another model, and RunFailed.
    """
    run = prepare(recipe, folder=folder, origin=origin, wish=wish)
    if found is not None:
        checkpoint.check(found, shapes(run.task, has_lora=recipe.lora is not None))
    engine = make_engine(run.task.model, part=recipe.optimizer, batch=recipe.batch, work=recipe.workers)
    if found is not None and engine.rank == 0 and recipe.lora is None:
        check_frozen(found, run.task)
    load(engine, run, found)
    return loop.train(run, engine, found=found)


def prepare(recipe: TrainRecipe, *, folder: RunFolder, origin: Origin, wish: Wish = loop.no_wish) -> Training:
    """Load model and rows as the recipe has them."""
    # rows first: what is wrong with them is found before gigabytes are read
    loader = batches.make_loader(recipe)
    order = Order(loader.rows, effective_batch=recipe.batch.effective_batch, seed=recipe.batch.seed)
    device = torch.device("cuda", torch.cuda.current_device()) if recipe.workers.use_gpu else torch.device("cpu")
    made = task.make(recipe, device=device)
    return Training(recipe=recipe, task=made, order=order, loader=loader, folder=folder, origin=origin, wish=wish)


def load(engine: Engine, run: Training, found: Checkpoint | None) -> None:
    """Give the engine its weights: those of the checkpoint with the optimizer's state, else the sources' own.

    An engine may hold the model in bfloat16; the float32 bits that it updates come from here.
    """
    has_lora = run.recipe.lora is not None
    if found is not None:
        reader = Reader(found, has_lora=has_lora)
        engine.load(reader.weight, reader.moment, updates=found.state.updates)
    elif not has_lora:  # adapters start as they were drawn
        engine.load(lambda name: _from_source(run.task, name), None, updates=0)


def shapes(task: Task, *, has_lora: bool) -> dict[str, Shapes]:
    """The tensors that each weight file of a checkpoint of this task must have."""
    if not has_lora:
        return {checkpoint.weight_file(module): task.sources[module].shapes for module in task.modules}
    trained = {name: tensor for name, tensor in task.model.named_parameters() if tensor.requires_grad}
    plain = {lora.plain(name.partition(".")[2]): tuple(tensor.shape) for name, tensor in trained.items()}
    return {checkpoint.LORA: plain}


def check_frozen(found: Checkpoint, task: Task) -> None:
    """What a checkpoint holds of frozen tensors must be what the run would go on with, to the bit.

    Raises CheckpointError: the file that the run started from was changed, or was a run that went on.
    """
    reader = Reader(found, has_lora=False)
    trained = {name for name, tensor in task.model.named_parameters() if tensor.requires_grad}
    for module in task.modules:
        source = task.sources[module]
        for name in source.shapes:
            full = f"{module}.{name}"
            if full not in trained and not torch.equal(reader.weight(full), source.read(name)):
                raise CheckpointError(
                    f"{source.path}: tensor {name} is not the one that this run started with "
                    f"({found.weights(module)}); put the file back, or start a new run"
                )


def _from_source(task: Task, name: str) -> torch.Tensor:
    module, _, inner = name.partition(".")
    return task.sources[module].read(inner).float()
