"""Training on Ray: one TorchTrainer, a DeepSpeed engine in each worker, progress for people on the driver.

Workers find the newest checkpoint by themselves, so a run continues whether Ray restarts them or the user does, with as
many workers as there are.

Kind: wiring.
"""

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

# the classes that ray.train gives as FailureConfig, ...: from here a type checker sees the same ones
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

from sote.cluster import arrival, capacity, devices, errors, logs, remote, session, storage, weights
from sote.cluster import recipe as recipes
from sote.cluster.capacity import Bundle
from sote.cluster.errors import Denied, RecipeError, RunFailed, RunFolderError, SoteError, Unreachable
from sote.cluster.page import counted, number
from sote.cluster.storage import RunFolder
from sote.data import encode
from sote.train import batches, checkpoint, plan, stopping
from sote.train.absolute import absolute
from sote.train.batches import Order, last_step
from sote.train.checkpoint import Checkpoint, Origin, State
from sote.train.following import Follower, say
from sote.train.painting import Paint, Painting, left_over
from sote.train.recipe import TrainRecipe
from sote.train.signs import Sign
from sote.train.stopping import Listening, Stopping, Wishes

SECONDS_BETWEEN_LOOKS = 0.5  # at metrics.jsonl, for the progress bar
SECONDS_TO_END = 5.0  # for the workers, after one of them has written down an error of ours
log = logging.getLogger(__name__)

CONTROLLER_FAILURES = 2  # Ray's default is to try for ever when workers cannot be had
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # "0": Ray Train does not look for nodes that will be taken away


def run(recipe: TrainRecipe, *, folder: RunFolder, address: str | None, paint: Paint | None = None) -> None:
    """Train to the end of the recipe, from the newest checkpoint if there is one; `paint` makes the sample pictures.

    Raises the SoteError that a worker raised, and Stopped where the user or the machine wanted the run to end. What
    else stops a worker is tried again from the last checkpoint, and raises after `workers.max_failures` times.
    """
    steps, origin = course(recipe)
    done = checkpoint.reached(folder.checkpoints)
    paints = paint if recipe.samples is not None else None
    if done >= steps:
        say(f"complete already, at step {number(done)} of {number(steps)}")
        if paints is None or not left_over(folder, done=done):
            return
    with Stopping(folder) as stop, session.connect(address):
        stop.listen()
        spare = _spare_cores(recipe, address)
        painting = _painting(recipe, folder, paints, done=done, has_spare_core=spare >= 1)
        if done < steps:
            say(_first_words(recipe, steps=steps, done=done))
            trainer = _trainer(recipe, folder, origin=origin, address=address)
            _train_through(trainer, folder, stop, painting=painting, steps=(done, steps))
        if painting is not None and not painting.finish(is_stopped=lambda: stop.asked):
            raise stop.ended(step=steps, saved=steps)
    if painting is not None and (summary := painting.summary()):
        say(summary)
    if remote.uri(folder.root) is not None:
        remote.remove(folder.root / ".ray")
    shutil.rmtree(folder.root / ".ray", ignore_errors=True)


def course(recipe: TrainRecipe) -> tuple[int, Origin]:
    """The last step of a run, and what its checkpoints say of where they come from."""
    loader = batches.make_loader(recipe)
    order = Order(loader.rows, effective_batch=recipe.batch.effective_batch, seed=recipe.batch.seed)
    places = loader.rows.latents
    if places is not None:
        says = loader.inputs.store.facts(places.shards[0]).says
        compression, encoder = float(says["compression"]), says["encoder_sha256"]
    else:
        path = weights.locate(recipe.data.encoder, field="data.encoder")
        compression = loader.inputs.compression
        encoder = encode.sha256_of(path if path.is_file() else path / encode.FILE)
    return last_step(recipe.length, order), Origin(recipes.digest(recipe), compression, encoder)


def _train_through(
    trainer: TorchTrainer, folder: RunFolder, stop: Stopping, *, painting: Painting | None, steps: tuple[int, int]
) -> None:
    """Train from the first of `steps` to the second, and show how it goes. Raises as `run` does."""
    done, last = steps
    remote.remove(_failure_file(folder))
    follower = Follower(folder.metrics, done=done)
    with Sign(_failure_file(folder)) as failure, logs.progress("train", last - done, unit="steps") as advance:
        fit = _Fit(trainer)
        fit.start()
        # before a start nothing is to be saved; after an error of ours Ray would only start the workers once more
        is_over = False
        while not is_over:
            fit.join(SECONDS_BETWEEN_LOOKS)
            _try(stop.pass_on)
            is_over = not fit.is_alive() or (stop.asked and not follower.starts) or failure.is_there()
            snapshots = follower.look(advance, is_last=is_over)
            if painting is not None:
                for line in snapshots:
                    painting.add(int(line["step"]), remote.place(line["folder"]))
                if not stop.asked:
                    painting.look()
    if failure.is_there_now():
        fit.join(SECONDS_TO_END)
        raise _read_failure(failure.path)
    if stop.asked and follower.saved < last:
        raise stop.ended(step=follower.last, saved=follower.saved)
    if not fit.finished:
        raise RunFailed(_lines(fit.error)) from fit.error


def _try(act: Callable[[], None]) -> None:
    """Do what can be done again half a second later, if the network lets it be done now."""
    try:
        act()
    except Unreachable as error:
        log.warning("not done yet reason=%s", error)


class _Fit(threading.Thread):
    """`fit` in a thread of its own: in the main thread Ray would take Ctrl-C over, for good, and end with code 0."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self.trainer = trainer
        self.finished = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
            self.finished = True
        except (ray.train.TrainingFailedError, ray.exceptions.RayError, SystemExit) as error:
            self.error = error  # SystemExit is what Ray raises in a thread that waits while it is shut down


def _first_words(recipe: TrainRecipe, *, steps: int, done: int) -> str:
    work = recipe.workers
    fewest = f"{work.min_count} to " if _is_elastic(recipe) else ""
    where = f"from step {number(done)}" if done else "from the start"
    return (
        f"{fewest}{counted(work.count, 'worker')} on {'GPUs' if work.use_gpu else 'CPU'}, ZeRO stage "
        f"{work.zero_stage}, {work.precision}; {counted(steps - done, 'step')} to do, {where}"
    )


def _is_elastic(recipe: TrainRecipe) -> bool:
    return recipe.workers.min_count is not None and recipe.workers.min_count < recipe.workers.count


def _spare_cores(recipe: TrainRecipe, address: str | None) -> float:
    """Cores of the cluster that no worker takes.

    Raises RecipeError where an own Ray has too little for the run, UserError where a cluster at an address has too
    little, and is not going to have more.
    """
    work = recipe.workers
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fewest = work.min_count if work.min_count is not None else work.count
    if address is not None:
        arrival.check("train")
        asked = Bundle(cpus=work.cpus_per_worker, gpus=float(work.use_gpu), device_bytes=_bytes(recipe), count=fewest)
        capacity.require([asked], what="workers: training", mend="set workers.count lower, or start such nodes")
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    needs = (("CPU", work.cpus_per_worker * fewest), ("GPU", fewest if work.use_gpu else 0))
    for name, need in needs:
        if address is None and need > has.get(name, 0):
            raise RecipeError(
                f"workers: {counted(fewest, 'worker')} need {need} {name}s, here are {has.get(name, 0):g}; set "
                f"workers.{'use_gpu = false' if name == 'GPU' else 'count'}{'' if name == 'GPU' else ' lower'}"
            )
    if address is None and recipe.samples is not None and recipe.samples.use_gpu and not has.get("GPU"):
        raise RecipeError("samples.use_gpu: there is no GPU here; leave it out, and the CPU paints")
    return has.get("CPU", 0) - work.cpus_per_worker * work.count


def _bytes(recipe: TrainRecipe) -> int:
    """What a worker takes of its GPU."""
    return int(plan.plan(recipe).memory.total) if recipe.workers.use_gpu else 0


def _selector(recipe: TrainRecipe) -> dict[str, str] | None:
    """The nodes of a mixed cluster that workers go to: those of CUDA and ROCm, and such that do not say what they are,
    with a device that is large enough."""
    if not recipe.workers.use_gpu:
        return None
    return {devices.LABEL: "!in(xpu,cpu)"} | devices.selector(_bytes(recipe))


def _painting(
    recipe: TrainRecipe, folder: RunFolder, paint: Paint | None, *, done: int, has_spare_core: bool
) -> Painting | None:
    if paint is None or recipe.samples is None:
        return None
    return Painting(folder, recipe.samples, paint, done=done, has_spare_core=has_spare_core)


def _trainer(recipe: TrainRecipe, folder: RunFolder, *, origin: Origin, address: str | None) -> TorchTrainer:
    work = recipe.workers
    environment = {"OMP_NUM_THREADS": str(work.cpus_per_worker), "TOKENIZERS_PARALLELISM": "false"}
    if not work.use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    resources: dict[str, float] = {"CPU": float(work.cpus_per_worker)} | ({"GPU": 1.0} if work.use_gpu else {})
    count = (work.min_count, work.count) if work.min_count is not None and _is_elastic(recipe) else work.count
    # Only what workers report as Ray's checkpoints must be seen from all nodes, and ours are no such: for a run folder
    # at a URI, each node's own mirror is enough
    selector = _selector(recipe) if address is not None else None
    root = folder.root if remote.uri(folder.root) is not None else folder.root.resolve()
    return TorchTrainer(
        _work,
        train_loop_config={
            "recipe": absolute(recipe).model_dump(mode="json"),
            "folder": remote.named(root),
            "origin": asdict(origin),
            "has_notices": os.environ.get(WATCHER, "1") != "0",
        },
        torch_config=Listening(backend="nccl" if work.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=count, use_gpu=work.use_gpu, resources_per_worker=resources, label_selector=selector
        ),
        run_config=RunConfig(  # type: ignore[arg-type]
            name=f"train-{os.getpid()}",
            storage_path=str(root / ".ray"),
            failure_config=FailureConfig(max_failures=work.max_failures, controller_failure_limit=CONTROLLER_FAILURES),
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _work(config: dict[str, Any]) -> None:
    """One worker, from start to end. A SoteError is written down for the driver: trying again would not mend it."""
    recipe, folder = TrainRecipe.model_validate(config["recipe"]), RunFolder(remote.place(config["folder"]))
    failure, stop = _failure_file(folder), stopping.file(folder)
    try:
        _check_folder(folder)
        if _first_says(lambda: remote.exists(failure) or remote.exists(stop)):
            return
        is_complete = _train(recipe, folder, origin=Origin(**config["origin"]), has_notices=config["has_notices"])
    except SoteError as error:
        # a network may be well for the next try, and a folder that is not seen cannot be written to
        if remote.exists(folder.record) and (isinstance(error, Denied) or not isinstance(error, Unreachable)):
            storage.write_text(failure, json.dumps({"class": type(error).__name__, "message": str(error)}))
        raise
    if not is_complete and not _first_says(lambda: remote.exists(stop)):
        raise ToldToEnd("a worker was told to end; all is saved and the workers start again")


class ToldToEnd(Exception):
    """Somebody sent SIGTERM to a worker's process. For Ray Train a failure like others: it starts the workers again."""


def _train(recipe: TrainRecipe, folder: RunFolder, *, origin: Origin, has_notices: bool) -> bool:
    import torch.distributed as dist

    from sote.train import worker
    from sote.train.engine_deepspeed import DeepSpeed

    found = _found(folder)
    wish = Wishes(folder, rank=dist.get_rank(), has_notices=has_notices)
    try:
        return worker.train(recipe, folder=folder, origin=origin, found=found, make_engine=DeepSpeed, wish=wish)
    finally:
        wish.close()


def _found(folder: RunFolder) -> Checkpoint | None:
    """The newest checkpoint: one worker looks through them, all take what it found, each node brings it here."""

    def look() -> tuple[str, State] | None:
        found = checkpoint.newest(folder.checkpoints)
        return (remote.named(found.path), found.state) if found is not None else None

    said = _first_says(look)
    if said is None:
        return None
    found = Checkpoint(remote.place(said[0]), said[1])
    context = ray.train.get_context()  # of each other node, one worker looks at what came there
    return checkpoint.bring(found, is_checked=context.get_local_rank() == 0 and context.get_world_rank() > 0)


def _check_folder(folder: RunFolder) -> None:
    """Raises RunFolderError where this node does not see the run folder that the command has made."""
    if not remote.exists(folder.record):
        node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        raise RunFolderError(
            f"{remote.named(folder.root)}: run: is not seen from the node {node}, where a worker is; name a folder "
            "on a file system that all nodes share, or a URI (s3://bucket/folder)"
        )


def _first_says(look: Callable[[], Any]) -> Any:
    """What the first worker finds, on all: files may come into sight on other machines later."""
    import torch.distributed as dist

    said = [look() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(said)
    return said[0]


def _lines(error: BaseException | None) -> str:
    """The last line of what Ray says, which names the worker's own error."""
    said = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return f"training stopped: {said[-1] if said else type(error).__name__}; the same command continues"


def _failure_file(folder: RunFolder) -> Path:
    return folder.root / ".ray" / "failure.json"


def _read_failure(path: Path) -> SoteError:
    """The SoteError that a worker wrote down, as the class that it was."""
    said = json.loads(remote.fetch(path).read_text(encoding="utf-8"))
    kind = getattr(errors, said["class"], RunFailed)
    return kind(said["message"]) if issubclass(kind, SoteError) else RunFailed(said["message"])
