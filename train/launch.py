"""Training on Ray: one TorchTrainer, a DeepSpeed engine in each worker, progress for people on the driver.

Workers find the newest checkpoint by themselves, so a run continues whether Ray restarts them or the user does.

Kind: wiring.
"""

import json
import os
import shutil
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.exceptions
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
        print(f"  train: complete already, at step {done} of {steps}", file=sys.stderr)
        return
    failure = _failure_file(folder)
    failure.unlink(missing_ok=True)
    latents = planned.latents
    origin = Origin(recipes.digest(recipe), latents.compression, latents.encoder_sha256)
    with session.connect(address), logs.progress("train", steps - done, unit="steps") as advance:
        fit = _Fit(_trainer(recipe, folder, origin=origin))
        follower = _Follower(folder.metrics, advance, done)
        fit.start()
        while fit.is_alive():
            fit.join(SECONDS_BETWEEN_LOOKS)
            follower.look()
    if failure.exists():
        raise _read_failure(failure)
    if not fit.finished:
        raise RunFailed(_lines(fit.error)) from fit.error
    shutil.rmtree(failure.parent, ignore_errors=True)


class _Fit(threading.Thread):
    """`fit` in a thread of its own: in the main thread Ray would take Ctrl-C over, for good, and end with code 0."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self.trainer = trainer
        self.finished = False
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
            self.finished = True
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            self.error = error


class _Follower:
    """Advances a progress bar by the steps that appear in metrics.jsonl from now on."""

    def __init__(self, path: Path, advance: logs.Advance, done: int) -> None:
        self.path, self.advance, self.highest = path, advance, done
        self.place = path.stat().st_size if path.exists() else 0
        self.rest = ""

    def look(self) -> None:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            file.seek(self.place)
            lines = (self.rest + file.read()).split("\n")
            self.place = file.tell()
        self.rest = lines.pop()
        found = [json.loads(line) for line in lines if line]
        newest = max((line["step"] for line in found if line["kind"] == "step"), default=self.highest)
        if newest > self.highest:
            self.advance(newest - self.highest)
            self.highest = newest


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


def _lines(error: Exception | None) -> str:
    """The last line of what Ray says, which names the worker's own error."""
    said = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return f"training stopped: {said[-1] if said else type(error).__name__}; the same command continues"


def _failure_file(folder: RunFolder) -> Path:
    return folder.root / ".ray" / "failure.json"


def _read_failure(path: Path) -> SoteError:
    """The SoteError that a worker wrote down, as the class that it was."""
    said = json.loads(path.read_text(encoding="utf-8"))
    kind = getattr(errors, said["class"], RunFailed)
    return kind(said["message"]) if issubclass(kind, SoteError) else RunFailed(said["message"])
