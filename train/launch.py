"""Training on Ray: one TorchTrainer, a DeepSpeed engine in each worker, progress for people on the driver.

Workers find the newest checkpoint by themselves, so a run continues whether Ray restarts them or the user does.

Kind: wiring.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

# the classes that ray.train gives as FailureConfig, ...: from here a type checker sees the same ones
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

from sote.cluster import errors, logs, session, storage
from sote.cluster import recipe as recipes
from sote.cluster.errors import RunFailed, SoteError
from sote.cluster.storage import RunFolder
from sote.train import checkpoint, plan
from sote.train.checkpoint import Origin
from sote.train.recipe import TrainRecipe

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5  # at metrics.jsonl, for the progress bar
CONTROLLER_FAILURES = 2  # Ray's default is to try for ever when workers cannot be had


def run(recipe: TrainRecipe, *, folder: RunFolder, address: str | None) -> None:
    """Train to the end of the recipe, from the newest checkpoint if there is one.

    Raises the SoteError that a worker raised; what else stops a worker is tried again from the last checkpoint, and
    raises after `workers.max_failures` times.
    """
    planned = plan.plan(recipe)
    steps = planned.steps
    there = checkpoint.newest(folder.checkpoints)
    done = there.state.step if there is not None else 0
    if done >= steps:
        log.info("training is complete already step=%d folder=%s", done, folder.root)
        return
    failure = _failure_file(folder)
    failure.unlink(missing_ok=True)
    with session.connect(address), _progress(folder, done=done, steps=steps):
        latents = planned.latents
        origin = Origin(recipes.digest(recipe), latents.compression, latents.encoder_sha256)
        trainer = _trainer(recipe, folder, origin=origin)
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            if not failure.exists():
                raise RunFailed(_lines(error)) from error
    if failure.exists():
        raise _read_failure(failure)


def _trainer(recipe: TrainRecipe, folder: RunFolder, *, origin: Origin) -> TorchTrainer:
    work = recipe.workers
    environment = {"OMP_NUM_THREADS": str(work.cpus_per_worker), "TOKENIZERS_PARALLELISM": "false"}
    if not work.use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    resources: dict[str, float] = {"CPU": float(work.cpus_per_worker)} | ({"GPU": 1.0} if work.use_gpu else {})
    root = folder.root.resolve()
    return TorchTrainer(
        _work,
        train_loop_config={
            "recipe": _absolute(recipe).model_dump(mode="json"),
            "folder": str(root),
            "origin": asdict(origin),
        },
        torch_config=TorchConfig(backend="nccl" if work.use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=work.count, use_gpu=work.use_gpu, resources_per_worker=resources),
        run_config=RunConfig(  # type: ignore[arg-type]
            name=f"train-{os.getpid()}",
            storage_path=str(root / ".ray"),
            failure_config=FailureConfig(max_failures=work.max_failures, controller_failure_limit=CONTROLLER_FAILURES),
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _work(config: dict[str, Any]) -> None:
    """One worker, from start to end. A SoteError is written down for the driver: trying again would not mend it."""
    recipe, folder = TrainRecipe.model_validate(config["recipe"]), RunFolder(Path(config["folder"]))
    failure = _failure_file(folder)
    if failure.exists():
        return
    try:
        _train(recipe, folder, origin=Origin(**config["origin"]))
    except SoteError as error:
        storage.write_text(failure, json.dumps({"class": type(error).__name__, "message": str(error)}))
        raise


def _train(recipe: TrainRecipe, folder: RunFolder, *, origin: Origin) -> None:
    import torch.distributed as dist

    from sote.train import worker
    from sote.train.engine_deepspeed import DeepSpeed

    # one worker looks through the checkpoints, all take what it found
    found = [checkpoint.newest(folder.checkpoints) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    worker.train(recipe, folder=folder, origin=origin, found=found[0], make_engine=DeepSpeed)


def _absolute(recipe: TrainRecipe) -> TrainRecipe:
    """The recipe with absolute paths: workers have another working directory."""
    curated = str(Path(recipe.data.curated).resolve())
    prior = Path(recipe.model.prior).expanduser()
    model = recipe.model.model_copy(update={"prior": str(prior.resolve())}) if prior.exists() else recipe.model
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"curated": curated}), "model": model})


@contextmanager
def _progress(folder: RunFolder, *, done: int, steps: int) -> Iterator[None]:
    """Show the steps that appear in metrics.jsonl while the block runs."""
    ended = threading.Event()
    with logs.progress("train", steps - done, unit="steps") as advance:
        follower = threading.Thread(target=_follow, args=(folder.metrics, advance, ended, done), daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


def _follow(path: Path, advance: logs.Advance, ended: threading.Event, done: int) -> None:
    """Advance to the highest step written since now, until told to end."""
    place, highest, rest = path.stat().st_size if path.exists() else 0, done, ""
    last_look = False
    while not last_look:
        last_look = ended.wait(SECONDS_BETWEEN_LOOKS)
        if not path.exists():
            continue
        with path.open(encoding="utf-8") as file:
            file.seek(place)
            lines = (rest + file.read()).split("\n")
            place = file.tell()
        rest = lines.pop()
        found = [json.loads(line) for line in lines if line]
        newest = max((line["step"] for line in found if line["kind"] == "step"), default=highest)
        if newest > highest:
            advance(newest - highest)
            highest = newest


def _lines(error: Exception) -> str:
    """The last line of what Ray says, which names the worker's own error."""
    said = [line for line in str(error).splitlines() if line.strip()]
    return f"training stopped: {said[-1].strip() if said else type(error).__name__}; the same command continues"


def _failure_file(folder: RunFolder) -> Path:
    return folder.root / ".ray" / "failure.json"


def _read_failure(path: Path) -> SoteError:
    """The SoteError that a worker wrote down, as the class that it was."""
    said = json.loads(path.read_text(encoding="utf-8"))
    kind = getattr(errors, said["class"], RunFailed)
    return kind(said["message"]) if issubclass(kind, SoteError) else RunFailed(said["message"])
