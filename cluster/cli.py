"""The `sote` command: the door. One short function for each verb; what a verb needs is imported inside it.

Exit codes: 0 done, 1 the run failed, 2 the user's input is wrong (one line on standard error, no traceback).

Kind: wiring.
"""

import errno
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sote.cluster import cli_demo, cli_deploy, cli_jobs, submission
from sote.cluster.errors import SoteError, UserError

if TYPE_CHECKING:
    from sote.cluster.cluster_profile import ClusterProfile
    from sote.cluster.recipe import Recipe

INTERRUPTED = 130  # what a shell reports for Ctrl-C

app = typer.Typer(
    name="sote",
    help="Pictures -> captions -> latents -> checkpoint -> images, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="the TOML recipe")]


def _place(text: str) -> Path:
    from sote.cluster import remote

    return remote.place(text)


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="the run folder: a path or a URI", parser=_place)]


class Format(StrEnum):
    """The layouts that a checkpoint can be exported in, and those of a dataset."""

    diffusers = "diffusers"
    comfyui = "comfyui"
    unet = "unet"
    lora = "lora"
    kohya = "kohya"
    kohya_json = "kohya-json"
    kohya_jsonl = "kohya-jsonl"
    webdataset = "webdataset"
    imagefolder = "imagefolder"
    parquet = "parquet"


class Number(StrEnum):
    """The types that exported weights can have."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


class Door:
    """What the global options said."""

    address: str | None = None


@app.callback()
def options(
    address: Annotated[
        str | None, typer.Option(help="a running Ray cluster; without it, an own local one that ends with the command")
    ] = None,
) -> None:
    Door.address = address
    submission.begin()


cli_demo.register(app, lambda: Door.address)


@app.command(epilog="Example: sote check runs/demo/recipes/curate.toml")
def check(
    recipe: RecipePath,
    cluster: Annotated[
        Path | None, typer.Option(metavar="PROFILE", help="a cluster's TOML profile: what the run costs there")
    ] = None,
) -> None:
    """Validate a recipe; print it resolved, and the plan: workers, memory, hours; and its cost on a cluster."""
    from rich.console import Console

    from sote.cluster import recipe as recipes
    from sote.cluster.cluster_profile import ClusterProfile

    loaded = _load_any(recipe)
    profile = None if cluster is None else recipes.load(cluster, ClusterProfile)
    print(recipes.dumps(loaded))
    Console().print(*_plan(loaded, beside=recipe.parent, profile=profile))


@app.command(epilog="Example: sote curate runs/demo/recipes/curate.toml")
def curate(
    recipe: RecipePath,
    stage: Annotated[str | None, typer.Option(help="do this stage again, and what follows from it")] = None,
) -> None:
    """Pictures -> captions and latents. The same command again continues where it stopped."""
    from sote.cluster import recipe as recipes
    from sote.cluster import remote, storage
    from sote.data import pipeline, plan
    from sote.data.recipe import CurateRecipe
    from sote.serve.report import write_report

    loaded = recipes.load(recipe, CurateRecipe)
    plan.check(loaded, stage=stage)
    with storage.open_run(loaded, verb="curate", command=_command(), may_differ=pipeline.may_differ(stage)) as folder:
        count = pipeline.run(loaded, folder, address=Door.address, redo_from=stage)
    report = remote.named(write_report(folder.root))
    print(f"{count}\ncatalogue: {remote.named(folder.catalogue)}\nreport:    {report}")


@app.command(epilog="Example: sote train runs/demo/recipes/train.toml")
def train(recipe: RecipePath) -> None:
    """Latents -> checkpoint. The same command again continues from the last checkpoint."""
    from sote.cluster import recipe as recipes
    from sote.cluster import remote, storage
    from sote.serve import samples
    from sote.serve.report import write_report
    from sote.train import launch, plan
    from sote.train.recipe import TrainRecipe

    loaded = recipes.load(recipe, TrainRecipe)
    plan.check(loaded)
    with storage.open_run(loaded, verb="train", command=_command(), may_differ=plan.MAY_DIFFER) as folder:
        launch.run(loaded, folder=folder, address=Door.address, paint=samples.painter(loaded))
    report = remote.named(write_report(folder.root))
    print(f"checkpoints: {remote.named(folder.checkpoints)}\nreport:      {report}")


@app.command(epilog="Example: sote export runs/demo exported --format comfyui")
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the folder to write to", parser=_place)],
    form: Annotated[Format, typer.Option("--format", help="the layout to write")] = Format.diffusers,
    chosen: Annotated[
        str | None, typer.Option("--set", metavar="NAME", help="of a dataset: only the rows of this set")
    ] = None,
    dtype: Annotated[Number | None, typer.Option(help="of weights: their type, instead of the recipe's")] = None,
) -> None:
    """Newest checkpoint -> published weights, safetensors; or picked rows -> a dataset for other trainers."""
    from sote.cluster import remote
    from sote.data import exports as datasets

    if form.value in datasets.FORMATS:
        if dtype is not None:
            raise UserError(
                f"--dtype {dtype.value}: a dataset has no type; name a --format of weights, or leave it out"
            )
        written = datasets.export(run, out, form.value, chosen=chosen)
    else:
        from sote.train import export as exports

        if chosen is not None:
            raise UserError(f"--set {chosen}: weights have no sets; name a dataset's --format, or leave it out")
        written = exports.export(run, out, form.value, dtype=dtype and dtype.value)  # type: ignore[arg-type]
    for path in written:
        print(remote.named(path))


@app.command(epilog="Example: sote serve runs/demo/recipes/serve.toml")
def serve(recipe: RecipePath) -> None:
    """Checkpoint -> HTTP endpoint, until Ctrl-C. SIGHUP reads the recipe again and brings the server to it."""
    from sote.cluster import recipe as recipes
    from sote.cluster import storage
    from sote.serve import app as serving
    from sote.serve import plan
    from sote.serve.recipe import ServeRecipe

    def read() -> ServeRecipe:
        return recipes.load(recipe, ServeRecipe)

    loaded = read()
    planned = plan.plan(loaded, address=Door.address)
    if Door.address is None:
        serving.check_port(loaded.host, loaded.port)
    with storage.open_run(
        loaded, verb="serve", command=_command(), may_differ=ServeRecipe.model_fields.keys()
    ) as folder:
        print(plan.summary(planned), file=sys.stderr)
        serving.run(loaded, folder=folder, address=Door.address, ready=print, reread=read)


@app.command(epilog='Example: sote generate runs/demo/recipes/serve.toml "1girl, solo, cat ears" --out cat.png')
def generate(
    recipe: RecipePath,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="tags, separated by commas")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="a .png, .jpg or .webp that is not there yet")],
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="of the first picture; without it, a random one")
    ] = None,
) -> None:
    """Paint a prompt into a file: what the server of the recipe would, in one process."""
    from sote.cluster import recipe as recipes
    from sote.serve import generate as generating
    from sote.serve.recipe import ServeRecipe

    generating.run(recipes.load(recipe, ServeRecipe), prompt, out=out, seed=seed)


@app.command(epilog="Example: sote key keys.toml ada --requests-per-minute 30")
def key(  # noqa: PLR0913  its options
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the file of keys that access.keys of a recipe names")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="whose key it is; stands in the access log")],
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="in the long run")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="requests that are worked on or wait")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="of one picture")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="of both stages together")] = None,
    max_images: Annotated[int | None, typer.Option(min=1, help="in one request")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="remove the key instead")] = False,
) -> None:
    """Make a key for the endpoint and print it, once: the file holds only its hash. A running server sees it."""
    from sote.serve import keys

    limits = keys.Limits(
        requests_per_minute=requests_per_minute,
        concurrency=concurrency,
        max_pixels=max_pixels,
        max_steps=max_steps,
        max_images=max_images,
    )
    if not revoke:
        print(keys.add(file, name, limits))
        return
    if limits != keys.Limits():
        raise UserError("--revoke: removes the key with its limits; leave the other options out")
    keys.revoke(file, name)


@app.command(epilog="Example: sote status runs/demo")
def status(run: RunPath) -> None:
    """Rows for each stage and reason; step, images seen, rate, time left."""
    from rich.console import Console

    from sote.cluster import status as states
    from sote.data.plan import STAGES

    Console().print(states.render(states.status(run, stages=STAGES)))


@app.command(epilog="Example: sote report runs/demo")
def report(run: RunPath) -> None:
    """Write RUN/report.html again."""
    from sote.cluster import remote
    from sote.serve.report import write_report

    print(remote.named(write_report(run)))


@app.command(epilog="Example: sote card runs/demo")
def card(run: RunPath) -> None:
    """Write RUN/card.md: the model card of a training, from its records."""
    from sote.cluster import remote
    from sote.train import card as cards

    print(remote.named(cards.write(run)))


@app.command(epilog="Example: sote doctor")
def doctor(
    address: Annotated[str | None, typer.Option(help="a running Ray cluster: what its nodes have and can run")] = None,
) -> None:
    """Devices, engines, weights present or missing, what would run where: of this machine, or of a cluster."""
    from rich.console import Console

    if place := address or Door.address:
        from sote.cluster import fleet, nodes, session
        from sote.serve import demands

        with session.connect(place):
            Console().print(fleet.render(nodes.ask(), demands.demands()))
        return
    from sote.cluster import doctor as examination

    Console().print(examination.render(examination.examine()))


cli_jobs.register(app)
app.add_typer(cli_deploy.cluster)


def main() -> None:
    """Run the command; turn an error of ours into its exit code and line."""
    from sote.cluster import logs

    logs.setup()
    try:
        app()
    except SoteError as error:
        print(f"sote: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename2 or error.filename or "the run folder"
        print(f"sote: no space left for {where}: what is committed stays; free some and run again", file=sys.stderr)
        sys.exit(SoteError.exit_code)
    except KeyboardInterrupt:
        print("sote: interrupted; the same command continues", file=sys.stderr)
        sys.exit(INTERRUPTED)


def load_for(verb: str, path: Path) -> "Recipe":
    """Load a recipe as the kind that `verb` runs. Raises RecipeError."""
    from sote.cluster import recipe as recipes
    from sote.data.recipe import CurateRecipe
    from sote.serve.recipe import ServeRecipe
    from sote.train.recipe import TrainRecipe

    kinds: dict[str, type[Recipe]] = {"curate": CurateRecipe, "train": TrainRecipe}
    kinds |= {"serve": ServeRecipe, "generate": ServeRecipe}
    return recipes.load(path, kinds[verb]) if verb in kinds else _load_any(path)


def _load_any(path: Path) -> "Recipe":
    """Load a recipe as the kind that it has the most fields of, less those that the kind must have and it has not."""
    import tomllib

    from sote.cluster import recipe as recipes
    from sote.data.recipe import CurateRecipe
    from sote.serve.recipe import ServeRecipe
    from sote.train.recipe import TrainRecipe

    kinds: tuple[type[Recipe], ...] = (CurateRecipe, TrainRecipe, ServeRecipe)
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8")).keys()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        keys = {}.keys()  # `load` says what is wrong with the file

    def likeness(kind: "type[Recipe]") -> int:
        needed = {name for name, field in kind.model_fields.items() if field.is_required()}
        return len(keys & kind.model_fields.keys()) - len(needed - keys)

    return recipes.load(path, max(kinds, key=likeness))


def _plan(loaded: "Recipe", *, beside: Path, profile: "ClusterProfile | None") -> list[Any]:
    """The plan of any recipe, after its check, and its cost. `beside` is the folder of the recipe, and of those it goes
    on from."""
    from sote.cluster import prices
    from sote.data import plan as data_plan
    from sote.data.recipe import CurateRecipe
    from sote.serve import plan as serve_plan
    from sote.serve import pricing
    from sote.serve.recipe import ServeRecipe
    from sote.train import plan as train_plan
    from sote.train import plan_tables
    from sote.train.recipe import TrainRecipe

    if isinstance(loaded, CurateRecipe):
        files = data_plan.plan(loaded)
        shown = data_plan.render(files)
        priced = profile and prices.render(pricing.curating(loaded, profile, rows=files.rows))
    elif isinstance(loaded, TrainRecipe):
        training = train_plan.outline(loaded, beside=beside)
        shown = plan_tables.render(training)
        priced = profile and prices.render(pricing.training(training, profile))
    elif isinstance(loaded, ServeRecipe):
        server = serve_plan.plan(loaded, address=profile.name if profile else Door.address)
        shown = serve_plan.render(server)
        priced = profile and prices.render(pricing.serving(loaded, profile, tflop=server.tflop))
    else:
        raise TypeError(type(loaded))
    return [shown] if priced is None else [shown, priced]


def _command() -> str:
    return shlex.join(["sote", *sys.argv[1:]])


if __name__ == "__main__":
    main()
