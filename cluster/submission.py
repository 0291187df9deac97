"""What a submitted job knows of its submission: its id, verb and run, whose code it is, and what it may compute on.

It travels as the job's metadata, which Ray hands to the driver in an environment variable of its own and shows in its
dashboard: so nothing secret stands there.

Kind: pure, but for the environment.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal, Self

from sote.cluster.errors import UserError

Device = Literal["gpu", "openvino", "cpu"]

CONFIG: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # ray/_private/runtime_env/constants.py: set for the driver of a job
ID: Final = "job_submission_id"  # ray/dashboard/modules/job/common.py
PREFIX: Final = "sote_"
RECIPE: Final = "recipe.toml"  # in the folder that travels, which is the working directory of the driver's shell
SHIPPED: Final = f"$PWD/{RECIPE}"


@dataclass(frozen=True)
class Submission:
    """How a job was submitted. Every field is text, "" where it does not apply: Ray's metadata has nothing else.

    `version` and `commit` are of the submitter's code; `is_shipped` is "yes" where that code travels with the job.
    `folder` is the submitter's working directory, where the cluster may be on the same machine. `run` is a run folder.
    `packages` are requirements, apart by spaces, that Ray installs for the job where nodes lack them.
    """

    verb: str
    run: str = ""
    version: str = ""
    commit: str = ""
    is_shipped: str = ""
    folder: str = ""
    device: str = ""
    packages: str = ""

    def metadata(self) -> dict[str, str]:
        """As the metadata of a job."""
        return {PREFIX + name: value for name, value in asdict(self).items() if value}

    @classmethod
    def of(cls, says: Mapping[str, str] | None) -> Self | None:
        """What the metadata of a job says; None for a job of another program."""
        mine = {name.removeprefix(PREFIX): text for name, text in (says or {}).items() if name.startswith(PREFIX)}
        return cls(**{name: mine[name] for name in cls.__annotations__ if name in mine}) if "verb" in mine else None


def here() -> Submission | None:
    """The submission of the job whose driver this process is; None outside of a job."""
    return Submission.of(_says())


def job_id() -> str | None:
    """The id under which this process was submitted as a job; None outside of a job."""
    return _says().get(ID)


def may_accelerate() -> bool:
    """Whether accelerators may be asked for: a job with `--env cpu` leaves them alone."""
    job = here()
    return job is None or job.device != "cpu"


def version() -> str:
    """The version of this code; "unknown" where it is neither installed nor in a checkout that is."""
    try:
        return metadata.version("sote")
    except metadata.PackageNotFoundError:
        return "unknown"


def needs_of(name: str) -> str:
    """The requirements of an extra of this package, apart by spaces; "" where the package is not installed."""
    try:
        listed = metadata.requires("sote") or []
    except metadata.PackageNotFoundError:
        return ""
    parts = (text.partition(";") for text in listed)
    return " ".join(
        need.replace(" ", "") for need, _, when in parts if re.search(rf"extra == .{re.escape(name)}.", when)
    )


def begin() -> None:
    """What the driver of a job does first: refuse code of another version than the submitter's, and go to the folder
    that relative paths count from. Does nothing outside of a job. Raises UserError."""
    job = here()
    if job is None:
        return
    if not job.is_shipped and job.version != version():
        raise UserError(
            f"the cluster has sote {version()}, this was submitted by {job.version}: use the image of {job.version} or "
            "submit from a checkout"
        )
    if job.folder and Path(job.folder).is_dir():
        os.chdir(job.folder)
    elif job.run and not is_whole(job.run):
        raise UserError(
            f"run: {job.run}: counts from {job.folder or 'a folder'} of the submitter, which is not on the cluster's "
            "machine: name an absolute path that all nodes share, or a URI"
        )


def is_whole(path: str) -> bool:
    """Whether a path means the same in every working directory: an absolute one, or a URI."""
    return "://" in path or Path(path).expanduser().is_absolute()


def command(words: list[str]) -> str:
    """The words as the driver's shell runs them; SHIPPED among them stands for the recipe that travelled."""
    shown = [f'"{word}"' if word == SHIPPED else shlex.quote(word) for word in words]
    return " ".join(["python -m sote.cluster.cli --address auto", *shown])


def _says() -> dict[str, str]:
    says: dict[str, str] = json.loads(os.environ.get(CONFIG, "{}")).get("metadata", {})
    return says
