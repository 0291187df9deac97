"""The verbs of jobs: `sote submit`, `sote jobs`, `sote logs`, `sote stop`.

A submitted command is the command that would run here, word for word but for the recipe, which travels by value.

Kind: wiring.
"""

import os
import sys
import time
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer import exceptions

from sote.cluster import submission
from sote.cluster.errors import Interrupted, UserError

if TYPE_CHECKING:
    from sote.cluster.jobs import Job
    from sote.cluster.recipe import Recipe

VERBS: Final = ("curate", "train", "export", "serve", "check", "generate", "status", "report", "card")
# Ray kills a job 3 s after its SIGTERM unless this variable of Ray's says otherwise (dashboard/modules/job)
GRACE: Final = "RAY_JOB_STOP_WAIT_TIME_S"
# A training finishes its step and writes a checkpoint, perhaps of tens of gigabytes to an object store; a server drains
# for as long as its recipe says, and has this time on top; others write a record
GRACE_SECONDS: Final = {"train": 1800, "serve": 60}
OTHERS_GRACE_SECONDS: Final = 60
# With these a driver sees no NVIDIA, AMD or Intel device; what Ray starts for it asks for none and is lent none
HIDDEN: Final = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "ONEAPI_DEVICE_SELECTOR": "*:cpu"}

Address = Annotated[
    str | None, typer.Option("--address", metavar="URL", help="the cluster's job API; default http://127.0.0.1:8265")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="the id that `sote submit` printed")]


class Device(StrEnum):
    """What a job computes on."""

    gpu = "gpu"
    openvino = "openvino"
    cpu = "cpu"


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(epilog="Example: sote submit --wait -- curate curate.toml", context_settings=passed_on)(submit)
    app.command(epilog="Example: sote jobs")(jobs)
    app.command(epilog="Example: sote logs sote-curate-1f0c5a3e --follow")(logs)
    app.command(epilog="Example: sote stop sote-curate-1f0c5a3e")(stop)


def submit(
    context: typer.Context,
    address: Address = None,
    device: Annotated[
        Device | None,
        typer.Option(
            "--env",
            help="gpu: refused where the cluster has no accelerator and none can come; openvino: nodes whose image has "
            "it not install the plug-in; cpu: accelerators are left alone. Without it: as recipe and cluster say",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="follow the job and end with its exit code")] = False,
) -> None:
    """Run a command of sote as a job of a Ray cluster: -- VERB RECIPE [options]. Ctrl-C does not end the job."""
    from sote.cluster import addresses, shipping, storage
    from sote.cluster import recipe as recipes
    from sote.cluster.jobs import Jobs

    words = _inner(context)
    url = addresses.api(_address(context, address))
    is_near = _is_near(url)
    recipe = _recipe(words)
    _refuse_relative(words, recipe, is_near=is_near)
    if device is Device.cpu:
        _refuse_accelerators(recipe)
    code = shipping.checkout()
    job = submission.Submission(
        verb=words.verb,
        run=recipe.run if recipe is not None else "",
        version=submission.version(),
        commit=(storage.code_commit() if code is not None else None) or "",
        is_shipped="yes" if code is not None else "",
        folder=os.getcwd() if is_near else "",  # noqa: PTH109  the text that the job goes to
        device=device.value if device is not None else "",
        packages=submission.needs_of("openvino") if device is Device.openvino else "",
    )
    cluster = Jobs(url)
    if device is Device.gpu:
        _refuse_no_accelerator(cluster)
    name = cluster.submit(
        submission.command(words.shipped),
        job,
        recipe=recipes.dumps(recipe) if recipe is not None else None,
        code=code,
        environment=environment(words.verb, recipe, is_near=is_near, device=device),
    )
    option = "" if url == addresses.API else f" --address {url}"
    print(f"{name}\nfollow: sote logs {name} --follow{option}\nstop:   sote stop {name}{option}", flush=True)
    if wait:
        raise typer.Exit(_follow(cluster, name, option))


def jobs(context: typer.Context, address: Address = None) -> None:
    """The jobs of a cluster: what they run, their state, since when, how they ended."""
    from rich.console import Console

    from sote.cluster import addresses
    from sote.cluster.jobs import Jobs

    Console().print(_table(Jobs(addresses.api(_address(context, address))).all(), now=time.time()))


def logs(
    context: typer.Context,
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="go on until the job ends; Ctrl-C does not end it")] = False,
    address: Address = None,
) -> None:
    """What a job has written."""
    from sote.cluster import addresses
    from sote.cluster.jobs import Jobs

    url = addresses.api(_address(context, address))
    cluster = Jobs(url)
    if not follow:
        print(cluster.log(job), end="")
        return
    _follow(cluster, job, "" if url == addresses.API else f" --address {url}")


def stop(context: typer.Context, job: JobId, address: Address = None) -> None:
    """Tell a job to end, and wait until it has: a training saves first, a server finishes what it works on."""
    from sote.cluster import addresses
    from sote.cluster.jobs import Jobs

    ended = Jobs(addresses.api(_address(context, address))).stop(job)
    print(f"{ended.id}: {ended.state.lower()}")


class _Inner:
    """The command behind `--`: its words, its verb and, once it is parsed, what its arguments are."""

    def __init__(self, words: list[str], parsed: typer.Context) -> None:
        self.verb, self.words = words[0], words
        self.paths = {name: value for name, value in parsed.params.items() if isinstance(value, Path)}
        self.recipe: Path | None = self.paths.pop("recipe", None)

    @property
    def shipped(self) -> list[str]:
        """The words with the recipe's path replaced by that of the text that travels."""
        shown, is_done = [], False
        for word in self.words:
            is_recipe = not is_done and self.recipe is not None and Path(word) == self.recipe and word != self.verb
            shown.append(submission.SHIPPED if is_recipe else word)
            is_done = is_done or is_recipe
        return shown


def _inner(context: typer.Context) -> _Inner:
    """The command to submit, parsed by its own verb, so that a wrong option is found here. Raises UserError."""
    words = list(context.args)
    known = f"known here: {', '.join(VERBS)}"
    if not words:
        raise UserError(f"submit: nothing to submit; put the command behind `--`: sote submit -- VERB RECIPE ({known})")
    if words[0] not in VERBS:
        raise UserError(f"submit: {words[0]!r} is no command to submit; {known}")
    verbs: Any = context.find_root().command
    try:
        return _Inner(words, verbs.commands[words[0]].make_context(words[0], words[1:], resilient_parsing=False))
    except exceptions.TyperException as error:
        raise UserError(f"submit: {words[0]}: {error.format_message()}; see `sote {words[0]} --help`") from None


def _recipe(words: _Inner) -> "Recipe | None":
    """The recipe of the command, read as its verb would. Raises RecipeError with all that is wrong with it."""
    if words.recipe is None:
        return None
    from sote.cluster import cli

    return cli.load_for(words.verb, words.recipe)


def _address(context: typer.Context, own: str | None) -> str | None:
    """The verb's own option, or the global one."""
    parent = context.parent
    return own if own is not None or parent is None else parent.params.get("address")


def _is_near(url: str) -> bool:
    """Whether the cluster may be on this machine."""
    from urllib.parse import urlsplit

    from sote.cluster import tokens

    return tokens.is_loopback(urlsplit(url).hostname or "")


def _refuse_relative(words: _Inner, recipe: "Recipe | None", *, is_near: bool) -> None:
    """On another machine a relative path would mean another place. Raises UserError."""
    named = {name.upper(): str(path) for name, path in words.paths.items()} | ({"run": recipe.run} if recipe else {})
    for name, path in named.items():
        if not is_near and not submission.is_whole(path) and ":/" not in path:  # Path takes a slash from a URI
            raise UserError(
                f"{name}: {path}: is relative, and the job runs on another machine: name an absolute path that all "
                "nodes share, or a URI (s3://...)"
            )


def _refuse_accelerators(recipe: "Recipe | None") -> None:
    """Raises UserError for a recipe that asks for accelerators, in a job that is to leave them alone."""
    asks = recipe.model_dump() if recipe is not None else {}
    fields = {
        "workers.use_gpu": asks.get("workers", {}).get("use_gpu") if isinstance(asks.get("workers"), dict) else None,
        "prior_replicas.gpus": asks.get("prior_replicas", {}).get("gpus"),
        "decoder_replicas.gpus": asks.get("decoder_replicas", {}).get("gpus"),
    }
    for field, value in fields.items():
        if value:
            raise UserError(f"--env cpu: {field} = {value}: the recipe asks for accelerators; take it out, or --env")


def _refuse_no_accelerator(cluster: Any) -> None:
    """Raises UserError where the cluster has no accelerator, and no node with one can come by itself."""
    there: dict[str, float] | None = cluster.resources()
    if there is not None and not there.get("GPU"):
        has = ", ".join(f"{count:g} {name}" for name, count in sorted(there.items()) if name in ("CPU", "GPU"))
        raise UserError(
            f"--env gpu: asks for 1 GPU at least; the cluster at {cluster.url} has {has or 'no node'} and does not "
            "grow by itself: start a node with an accelerator, or leave --env out"
        )


def environment(verb: str, recipe: "Recipe | None", *, is_near: bool, device: Device | None = None) -> dict[str, str]:
    """Variables of the job's processes. They stand in the dashboard: nothing secret."""
    grace = GRACE_SECONDS.get(verb, OTHERS_GRACE_SECONDS) + round(getattr(recipe, "drain_seconds", 0))
    own = {GRACE: str(grace)} | (HIDDEN if device is Device.cpu else {})
    # On this machine the job finds the Python that this is, also where the cluster was started without its bin on PATH
    return own | ({"PATH": f"{Path(sys.executable).parent}:${{PATH}}"} if is_near else {})


def _follow(cluster: Any, name: str, option: str) -> int:
    """Show the job's log until it has ended; returns the exit code. Ctrl-C leaves the job alone."""
    from sote.cluster import jobs as talking

    try:
        job = cluster.follow(name, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        raise Interrupted(
            f"detached, {name} goes on; follow it with `sote logs {name} --follow{option}`, end it with `sote stop "
            f"{name}{option}`"
        ) from None
    code = talking.exit_code(job)
    note = f": {job.message.splitlines()[0]}" if job.message and job.exit_code is None else ""
    print(f"sote: {name}: {job.state.lower()}, exit code {code}{note}", file=sys.stderr)
    return code


def _table(found: "list[Job]", *, now: float) -> Any:
    from rich.table import Table

    from sote.cluster.page import duration

    table = Table("job", "verb", "run", "state", "started", "took", "exit code", box=None)
    for column in table.columns:
        column.no_wrap = column.header != "run"
        column.overflow = "fold"
    for job in found:
        said = job.submission
        took = (job.ended or now) - job.started if job.started is not None else None
        table.add_row(
            job.id,
            said.verb if said is not None else "-",
            (said.run if said is not None else "") or "-",
            job.state.lower(),
            datetime.fromtimestamp(job.started).strftime("%m-%d %H:%M") if job.started is not None else "-",
            duration(took) if took is not None else "-",
            "-" if job.exit_code is None else str(job.exit_code),
        )
    return table
