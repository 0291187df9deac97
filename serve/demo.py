"""`sote demo`: the whole river in one run folder, small and offline.

Draws pictures (or takes the user's own), makes the stand-in models, writes the three recipes into RUN/recipes, then
curates, trains, exports, serves, asks the server for a picture over HTTP and writes the report. The same command again
continues: what is there is not made again.

Kind: wiring.
"""

import multiprocessing
import shlex
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import httpx

from sote.cluster import logs, session, storage
from sote.cluster import recipe as recipes
from sote.cluster.errors import SourceError
from sote.cluster.recipe import Recipe
from sote.cluster.storage import RunFolder
from sote.data import index, pipeline, scenes
from sote.data import plan as data_plan
from sote.data import recipe as curating
from sote.data import standins as data_standins
from sote.serve import app, samples
from sote.serve import plan as serve_plan
from sote.serve import recipe as serving
from sote.serve.report import write_report
from sote.train import export, launch
from sote.train import plan as train_plan
from sote.train import recipe as training
from sote.train import standins as train_standins

PORT = 8642
PROMPT = "newest, extremely aesthetic, best quality, general, red circle, blue background"
NEGATIVE_PROMPT = "very displeasing, worst quality, oldest"
NOTE = "The miniature decoder was never trained, so it paints noise: the way is real, the skill is not."
SEED = 7
SIDE = 512  # pixels of buckets and of the painted picture: sixteen latent cells at compression 32
COMPRESSION = 32.0
TIMEOUT_SECONDS = 300.0


def run(out: Path, *, images: Path | None, address: str | None) -> Path:
    """Run the whole river in the run folder `out`; returns the report.

    Raises SourceError if `images` has no files, RunFolderError if `out` holds something else.
    """
    root = out.resolve()
    folder = RunFolder(root)
    storage.refuse_foreign(folder)
    curate = _curate_recipe(root, images)
    if images is not None:
        index.check(curate.sources[0])
    _say(1, "pictures and stand-in models")
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as beside:
        drawing = beside.submit(storage.once, root / "pictures", scenes.draw) if images is None else None
        storage.once(root / "weights", _stand_ins)
        if drawing is not None:
            _note("drawing 64 scenes")
            drawing.result()
    train, serve = _train_recipe(root), _serve_recipe(root)
    for name, recipe in (("curate", curate), ("train", train), ("serve", serve)):
        _write(root / "recipes" / f"{name}.toml", recipe, verb=name)
    with session.connect(address):
        _say(2, "curate: index, decode, score, tag, duplicates, text, captions, selection, latents")
        _curate(curate, address)
        _say(3, "train: Stage C and its text encoder")
        _train(train, address)
        _say(4, "export")
        for form in ("diffusers", "comfyui", "unet"):
            _note(f"{form} -> {folder.export(form)}")
            export.export(root, folder.export(form), form)
        _say(5, "serve: one picture over HTTP")
        _serve(serve, folder)
    _say(6, "report")
    report = write_report(root)
    print(f"report:  {report}\nimage:   {folder.images / 'demo.png'}\nrecipes: {root / 'recipes'}")
    return report


def _curate_recipe(root: Path, images: Path | None) -> curating.CurateRecipe:
    """The recipe of the demo's curation. Own pictures of any size are welcome; drawn ones keep the seed's smallest."""
    if images is None:
        board = curating.Source(name="board", kind="image board", path=str(root / "pictures" / "board"))
        pixiv = curating.Source(name="pixiv", kind="pixiv", path=str(root / "pictures" / "pixiv"))
        sources: tuple[curating.Source, ...] = (board, pixiv)
        decode = curating.DecodePart()
    else:
        if not images.is_dir():
            raise SourceError(f"--images: no such folder: {images}")
        sources = (curating.Source(name="pictures", kind="plain", path=str(images.resolve())),)
        decode = curating.DecodePart(min_pixels=SIDE * SIDE // 4)
    models = root / "weights"
    return curating.CurateRecipe(
        run=str(root),
        sources=sources,
        shard_rows=16,
        slice_rows=8,
        decode=decode,
        score=curating.ScorePart(
            aesthetic=str(models / "aesthetic"),
            quality_clip=str(models / "quality_clip"),
            quality_head=str(models / "quality_head"),
        ),
        tag=curating.TagPart(tagger=str(models / "tagger")),
        text=curating.TextPart(reader=str(models / "reader")),
        latents=curating.LatentsPart(encoder=str(models / "encoder"), resolution=SIDE, compression=COMPRESSION),
        work=curating.WorkPart(max_failed_share=0.5),
    )


def _train_recipe(root: Path) -> training.TrainRecipe:
    """Twenty steps on two CPU workers; the learning rates are the miniature's, not the seed's."""
    return training.TrainRecipe(
        run=str(root),
        data=training.DataPart(curated=str(root)),
        model=training.ModelPart(prior=str(root / "weights" / "prior")),
        optimizer=training.OptimizerPart(
            prior_learning_rate=3e-4, text_encoder_learning_rate=1e-4, warmup_steps=5, gradient_clipping=1.0
        ),
        batch=training.BatchPart(effective_batch=8, micro_batch=2),
        length=training.LengthPart(max_steps=20),
        workers=training.WorkersPart(count=2),
        checkpoint=training.CheckpointPart(every_steps=10),
        samples=training.SamplesPart(
            every_steps=5,
            prompts=(PROMPT,),
            negative_prompt=NEGATIVE_PROMPT,
            seed=SEED,
            width=SIDE // 2,
            height=SIDE // 2,
            steps=8,
        ),
        export=training.ExportPart(
            name="sote-demo",
            decoder=str(root / "weights" / "decoder"),
            encoder=str(root / "weights" / "encoder" / "effnet_encoder.safetensors"),
        ),
    )


def _serve_recipe(root: Path) -> serving.ServeRecipe:
    exported = RunFolder(root).export("diffusers")
    return serving.ServeRecipe(
        run=str(root),
        port=_free_port(PORT),
        model=serving.ModelPart(
            prior=str(exported / "prior"),
            decoder=str(exported / "decoder"),
            encoder=str(root / "weights" / "encoder" / "effnet_encoder.safetensors"),
            image_encoder=str(root / "weights" / "prior" / "image_encoder"),
            name="sote-demo",
        ),
        defaults=serving.DefaultsPart(
            width=SIDE, height=SIDE, compression=COMPRESSION, prior_steps=10, decoder_steps=5, prior_guidance=4.0
        ),
    )


HEADINGS = {
    "curate": "about a minute on two cores: 64 drawn pictures (or your own) -> captions and latents",
    "train": "about a minute on two cores: 20 steps of the miniature Stage C and text encoder",
    "serve": "starts in half a minute on two cores; ends with Ctrl-C",
}


def _write(path: Path, recipe: Recipe, *, verb: str) -> None:
    command = shlex.join(["sote", verb, str(path)])
    storage.write_text(
        path,
        f"# {command}\n# {HEADINGS[verb]}\n# For real models only the weights' names change.\n\n"
        + recipes.dumps(recipe),
    )


def _curate(recipe: curating.CurateRecipe, address: str | None) -> None:
    data_plan.check(recipe)
    command = shlex.join(["sote", "curate", str(Path(recipe.run) / "recipes" / "curate.toml")])
    with storage.open_run(recipe, verb="curate", command=command, may_differ=pipeline.may_differ(None)) as folder:
        count = pipeline.run(recipe, folder, address=address)
    print(
        f"  {count.rows} files: {count.picked} picked, {count.skipped} skipped, {count.failed} failed", file=sys.stderr
    )


def _train(recipe: training.TrainRecipe, address: str | None) -> None:
    train_plan.check(recipe)
    command = shlex.join(["sote", "train", str(Path(recipe.run) / "recipes" / "train.toml")])
    with storage.open_run(recipe, verb="train", command=command, may_differ=training.MAY_DIFFER) as folder:
        launch.run(recipe, folder=folder, address=address, paint=samples.painter(recipe))


def _serve(recipe: serving.ServeRecipe, folder: RunFolder) -> None:
    """Start the endpoint, make one POST, keep the picture and its line in the metrics, stop."""
    serve_plan.check(recipe)
    command = shlex.join(["sote", "serve", str(folder.root / "recipes" / "serve.toml")])
    free = serving.ServeRecipe.model_fields.keys()
    with storage.open_run(recipe, verb="serve", command=command, may_differ=free):
        _note("starting prior, decoder and ingress")
        url = app.start(recipe)
        _note(f"{url} is ready: asking for {PROMPT!r}")
        try:
            asked = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "seed": SEED}
            answer = httpx.post(
                f"{url}/v1/generate", json=asked, headers={"Accept": "image/png"}, timeout=TIMEOUT_SECONDS
            )
            answer.raise_for_status()
        finally:
            app.stop()
    storage.write_bytes(folder.images / "demo.png", answer.content)
    logs.Metrics(folder.metrics).write(
        kind="image",
        file="images/demo.png",
        seconds=round(answer.elapsed.total_seconds(), 3),
        **asked,
        parameters={"width": SIDE, "height": SIDE, "steps": recipe.defaults.prior_steps},
        note=NOTE,
    )


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


def _say(number: int, what: str) -> None:
    print(f"{number}/6 {what}", file=sys.stderr, flush=True)


def _note(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)
