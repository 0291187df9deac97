"""`sote demo`: the whole river in one run folder, small and offline.

Unpacks the small world's trained models, draws fresh pictures with a concept that these have not seen, curates them,
finetunes Stage C and its text encoder, trains a control on shuffled captions, exports, paints fixed prompts with all
three and reads the paintings, serves, and writes the report. `quick` and `images` go the same way with stand-ins and
without the measure. The same command again continues: what is there is not made again.

Kind: wiring.
"""

import filecmp
import multiprocessing
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from sote.cluster import devices, logs, session, storage
from sote.cluster import recipe as recipes
from sote.cluster.errors import RunFolderError, WeightsError
from sote.cluster.recipe import Recipe
from sote.cluster.storage import RunFolder
from sote.data import index, pipeline, scenes, world_prompts
from sote.data import plan as data_plan
from sote.data import standins as data_standins
from sote.data.recipe import CurateRecipe
from sote.serve import adherence, adherence_file, app, demo_quick, demo_world, retrying, samples, strip
from sote.serve import plan as serve_plan
from sote.serve.recipe import ServeRecipe
from sote.serve.report import write_report
from sote.train import card, export, launch, shuffled, world_files
from sote.train import plan as train_plan
from sote.train import recipe as training
from sote.train import standins as train_standins
from sote.train.recipe import TrainRecipe

PORT = 8642
TIMEOUT_SECONDS = 300.0
IMAGE, STRIP = "demo.png", "strip.png"


@dataclass(frozen=True)
class Plan:
    """What one kind of demo does: its recipes, and what it asks the endpoint for."""

    curate: CurateRecipe
    train: TrainRecipe
    serve: ServeRecipe
    asked: Mapping[str, str | int]
    headings: Mapping[str, str]
    note: str = ""
    is_measured: bool = False


def run(
    out: Path, *, images: Path | None, quick: bool = False, weights: Path | None = None, address: str | None = None
) -> Path:
    """Run the whole river in the run folder `out`; returns the report. `images`: the user's own pictures. `weights`:
    the small world's models in place of the committed ones, in the folders that `world_files.unpack` makes.

    Raises SourceError if `images` has no files, WeightsError if `weights` lacks one, RunFolderError if `out` holds
    something else or was begun with other weights.
    """
    root = out.resolve()
    folder = RunFolder(root)
    storage.refuse_foreign(folder)
    if weights is not None:
        _check(weights, root)
    on_gpu = weights is not None and bool(devices.found())  # the committed models are too small for one
    plan = _quick(root, images) if quick or images is not None else _world(root, on_gpu=on_gpu)
    if images is not None:
        index.check(plan.curate.sources[0])
    steps = _Steps(7 if plan.is_measured else 6)
    steps.say("pictures and models")
    _prepare(root, plan, draws=images is None, weights=weights)
    for name, recipe in (("curate", plan.curate), ("train", plan.train), ("serve", plan.serve)):
        _write(root / "recipes" / f"{name}.toml", recipe, verb=name, heading=plan.headings[name])
    with session.connect(address, environment=retrying.ENVIRONMENT):
        steps.say("curate: index, decode, score, tag, duplicates, text, captions, selection, latents")
        _curate(plan.curate, address)
        steps.say("train: Stage C and its text encoder" + (", then the control" if plan.is_measured else ""))
        _train(plan.train, address)
        if plan.is_measured:
            _control(plan.train, address)
        steps.say("export")
        for form in ("diffusers", "comfyui", "unet"):
            _note(f"{form} -> {folder.export(form)}")
            export.export(root, folder.export(form), form)
        if plan.is_measured:
            steps.say("paint: fixed prompts by base, finetuned and control, read by the world's rules")
            _measure(root, plan.curate)
        steps.say("serve: one picture over HTTP")
        _serve(plan, folder)
    steps.say("report and model card")
    if plan.is_measured:
        strip.make(root, folder.images / STRIP)
    card.write(root)
    report = write_report(root)
    print(f"report:  {report}\nimage:   {folder.images / IMAGE}\nrecipes: {root / 'recipes'}")
    return report


def _world(root: Path, *, on_gpu: bool) -> Plan:
    concept = next(each for each in world_prompts.prompts() if each.is_concept)
    negative = world_prompts.NEGATIVE_PROMPT
    return Plan(
        curate=demo_world.curate_recipe(root),
        train=demo_world.train_recipe(root, on_gpu=on_gpu),
        serve=demo_world.serve_recipe(root, port=_free_port(PORT)),
        asked={"prompt": concept.prompt, "negative_prompt": negative, "seed": concept.seed},
        headings={
            "curate": f"about a minute on two cores: {demo_world.PICTURES} pictures -> captions and latents",
            "train": f"{demo_world.STEPS} steps on what the base has not seen: two to three minutes on two cores",
            "serve": "starts in half a minute on two cores; ends with Ctrl-C",
        },
        is_measured=True,
    )


def _quick(root: Path, images: Path | None) -> Plan:
    return Plan(
        curate=demo_quick.curate_recipe(root, images),
        train=demo_quick.train_recipe(root),
        serve=demo_quick.serve_recipe(root, port=_free_port(PORT)),
        asked={
            "prompt": demo_quick.PROMPT,
            "negative_prompt": demo_quick.NEGATIVE_PROMPT,
            "seed": demo_quick.SEED,
        },
        headings={
            "curate": "about a minute on two cores: 64 drawn pictures (or your own) -> captions and latents",
            "train": "about a minute on two cores: 20 steps of the miniature Stage C and text encoder",
            "serve": "starts in half a minute on two cores; ends with Ctrl-C",
        },
        note=demo_quick.NOTE,
    )


def _check(weights: Path, root: Path) -> None:
    """Raise WeightsError if a model is missing, RunFolderError if the run in `root` was begun with others."""
    for place in world_files.places():
        if not (weights / place).is_file():
            raise WeightsError(f"--weights {weights}: has no {place}; name what `make base SIZE=large` made")
        there = root / "weights" / place
        if there.exists() and not filecmp.cmp(weights / place, there, shallow=False):
            raise RunFolderError(
                f"{root}: was begun with another {place} than that of --weights {weights}; name a new run"
            )


def _prepare(root: Path, plan: Plan, *, draws: bool, weights: Path | None) -> None:
    """Models into RUN/weights and, beside it in a process of their own, pictures into RUN/pictures."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as beside:
        drawing = None
        if draws:
            _note("drawing pictures")
            drawn = demo_world.draw if plan.is_measured else scenes.draw
            drawing = beside.submit(storage.once, root / "pictures", drawn)
        if weights is not None:
            storage.once(root / "weights", lambda folder: _copy(weights, folder))
        else:
            storage.once(root / "weights", _unpack if plan.is_measured else _stand_ins)
        if drawing is not None:
            drawing.result()


def _write(path: Path, recipe: Recipe, *, verb: str, heading: str) -> None:
    command = shlex.join(["sote", verb, str(path)])
    storage.write_text(
        path, f"# {command}\n# {heading}\n# The numbers fit small pictures and models.\n\n" + recipes.dumps(recipe)
    )


def _curate(recipe: CurateRecipe, address: str | None) -> None:
    data_plan.check(recipe)
    command = shlex.join(["sote", "curate", str(Path(recipe.run) / "recipes" / "curate.toml")])
    with storage.open_run(recipe, verb="curate", command=command, may_differ=pipeline.may_differ(None)) as folder:
        count = pipeline.run(recipe, folder, address=address)
    print(
        f"  {count.rows} files: {count.picked} picked, {count.skipped} skipped, {count.failed} failed", file=sys.stderr
    )


def _train(recipe: TrainRecipe, address: str | None) -> None:
    train_plan.check(recipe)
    command = shlex.join(["sote", "train", str(Path(recipe.run) / "recipes" / "train.toml")])
    with storage.open_run(recipe, verb="train", command=command, may_differ=training.MAY_DIFFER) as folder:
        launch.run(recipe, folder=folder, address=address, paint=samples.painter(recipe))


def _control(taught: TrainRecipe, address: str | None) -> None:
    """Train on the same pictures with each other's captions, and export that prior."""
    recipe = demo_world.control_recipe(taught)
    root, control = Path(taught.run), Path(recipe.run)
    _note("the control: every picture with another's caption")
    dealt = root / demo_world.SHUFFLED
    storage.once(dealt, lambda folder: shuffled.make(root, folder, seed=demo_world.PICTURES_SEED))
    _write(control / "recipes" / "train.toml", recipe, verb="train", heading="the demo's training on shuffled captions")
    _train(recipe, address)
    export.export(control, RunFolder(control).export("diffusers"), "diffusers")


def _measure(root: Path, curate: CurateRecipe) -> None:
    """Paint the fixed prompts, count what was asked for, and say it."""
    exported = {name: RunFolder(at).export("diffusers") / "prior" for name, at in _trained(root).items()}
    trained: tuple[tuple[adherence_file.Name, str, Path], ...] = (
        ("base", "base model", root / "weights" / "prior"),
        ("finetuned", "finetuned", exported["finetuned"]),
        ("control", "control, shuffled captions", exported["control"]),
    )
    judged: dict[adherence_file.Name, adherence.Judged] = {
        name: adherence.Judged(label, demo_world.model(root, prior)) for name, label, prior in trained
    }
    chance = adherence.share_of_concept(Path(curate.run))
    found = adherence.measure(root, judged, defaults=demo_world.defaults(), chance=chance)
    for goal in found.goals:
        bound = f"at least {goal.least:.0%}" if goal.least is not None else f"at most {goal.most:.0%}"
        _note(f"{goal.what}: {goal.value:.0%} ({bound}{'' if goal.met else ', NOT MET'})")


def _trained(root: Path) -> dict[str, Path]:
    return {"finetuned": root, "control": root / demo_world.CONTROL}


def _serve(plan: Plan, folder: RunFolder) -> None:
    """Start the endpoint, make one POST, keep the picture and its line in the metrics, stop."""
    recipe = plan.serve
    serve_plan.check(recipe)
    command = shlex.join(["sote", "serve", str(folder.root / "recipes" / "serve.toml")])
    free = ServeRecipe.model_fields.keys()
    with storage.open_run(recipe, verb="serve", command=command, may_differ=free):
        _note("starting prior, decoder and ingress")
        url = app.start(recipe)
        _note(f"{url} is ready: asking for {plan.asked['prompt']!r}")
        try:
            answer = httpx.post(
                f"{url}/v1/generate", json=plan.asked, headers={"Accept": "image/png"}, timeout=TIMEOUT_SECONDS
            )
            answer.raise_for_status()
        finally:
            app.stop()
    storage.write_bytes(folder.images / IMAGE, answer.content)
    usual = recipe.defaults
    logs.Metrics(folder.metrics).write(
        kind="image",
        file=f"images/{IMAGE}",
        seconds=round(answer.elapsed.total_seconds(), 3),
        **plan.asked,
        parameters={"width": usual.width, "height": usual.height, "steps": usual.prior_steps},
        note=plan.note,
    )


def _unpack(folder: Path) -> None:
    _note("unpacking the small world's models")
    world_files.unpack(folder)


def _copy(weights: Path, folder: Path) -> None:
    _note(f"copying the models of {weights}")
    shutil.copytree(weights, folder, dirs_exist_ok=True)


def _stand_ins(folder: Path) -> None:
    _note("making tagger, scorers, reader and encoder in miniature")
    data_standins.make(folder)
    _note("making prior, text encoder, decoder and vqgan in miniature")
    train_standins.make(folder)


def _free_port(wanted: int) -> int:
    """`wanted`, or if something listens there, a port that is free now."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


class _Steps:
    """Says which part of the demo has begun."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0

    def say(self, what: str) -> None:
        self.done += 1
        print(f"{self.done}/{self.count} {what}", file=sys.stderr, flush=True)


def _note(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)
