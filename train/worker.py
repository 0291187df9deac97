"""One worker of a training run: from the recipe to the last step.

Kind: actor.
"""

from collections.abc import Callable
from pathlib import Path

from sote.cluster.storage import RunFolder
from sote.train import batches, checkpoint, loop, optimizer, prior
from sote.train.batches import Loader, Order
from sote.train.checkpoint import Checkpoint, Origin
from sote.train.engine import Engine
from sote.train.loop import Training
from sote.train.recipe import TrainRecipe


def train(
    recipe: TrainRecipe,
    *,
    folder: RunFolder,
    origin: Origin,
    found: Checkpoint | None,
    make_engine: Callable[..., Engine],
) -> None:
    """Load everything, continue after the checkpoint `found` (None: start), and train to the end.

    `make_engine` is called like engine.Plain. Raises CheckpointError if `found` is of another model, and RunFailed.
    """
    run = prepare(recipe, folder=folder, origin=origin)
    if found is not None:
        checkpoint.load_weights(found, run.model)
    engine = make_engine(run.model, run.adafactor, part=recipe.optimizer, batch=recipe.batch, work=recipe.workers)
    if found is not None:
        checkpoint.load_optimizer(found, run.model, run.adafactor)
    loop.train(run, engine, after=found.state.step if found is not None else 0)


def prepare(recipe: TrainRecipe, *, folder: RunFolder, origin: Origin) -> Training:
    """Load model, tokenizer and rows as the recipe has them."""
    curated = Path(recipe.data.curated)
    rows = batches.read_rows(curated, chosen=recipe.data.set)
    trains_text = recipe.optimizer.text_encoder_learning_rate is not None
    model = prior.load(recipe.model, train_text_encoder=trains_text)
    return Training(
        model=model,
        adafactor=optimizer.make(model, recipe.optimizer),
        tokenizer=prior.load_tokenizer(recipe.model),
        order=Order(rows, effective_batch=recipe.batch.effective_batch, seed=recipe.batch.seed),
        loader=Loader(rows, latents=curated / "latents", part=recipe.batch, captions=recipe.captions),
        folder=folder,
        origin=origin,
        batch=recipe.batch,
        optimizer=recipe.optimizer,
        length=recipe.length,
        checkpoint=recipe.checkpoint,
    )
