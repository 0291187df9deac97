"""Commands as jobs of a Ray cluster: sent, followed, listed and stopped through Ray's job API.

The API is HTTP, served by the dashboard of the head node; Ray's own client does the talking. What Ray's `ray job` says
wrongly is set right here: a job's exit code is its own, and one that was stopped did not succeed.

Kind: wiring.
"""

import asyncio
import contextlib
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import ray
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from sote.cluster import shipping, tokens
from sote.cluster.errors import RunFailed, Stopped, UserError
from sote.cluster.submission import Submission

REQUEST_SECONDS: Final = 20.0
SECONDS_BETWEEN_LOOKS: Final = 0.5
LOST_AFTER_SECONDS: Final = 120.0  # without an answer: a head that is being replaced is back within that time
CHATTY: Final = (  # of Ray's client: modules that speak to the terminal
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
SIGNALS: Final = 128  # what a shell adds to the number of the signal that ended a process


@dataclass(frozen=True)
class Job:
    """One job. Times in seconds since 1970, None before it began or ended; `exit_code` None while it runs."""

    id: str
    submission: Submission | None
    entrypoint: str
    state: str  # PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def has_ended(self) -> bool:
        return JobStatus(self.state).is_terminal()


class Jobs:
    """The jobs of the cluster whose job API is at a URL.

    Every method raises UserError (nobody there, something else there, a token that is missing or wrong, an unknown job)
    and RunFailed (the cluster answers no longer), each in one line.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.headers = tokens.headers(url)
        _greet(url, self.headers)
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._said():
            self.client = JobSubmissionClient(url, headers=dict(self.headers))
        self.client._address = url  # RAY_ADDRESS and RAY_API_SERVER_ADDRESS would win over what was said

    def submit(
        self,
        words: str,
        submission: Submission,
        *,
        recipe: str | None,
        code: Path | None,
        environment: dict[str, str],
    ) -> str:
        """Send a job that runs the shell's `words`, with the recipe's text and the code of a checkout; returns its id.

        `environment`: variables that the driver and every process of the job find in theirs; shown in the dashboard.
        """
        name = f"sote-{submission.verb}-{secrets.token_hex(4)}"
        with tempfile.TemporaryDirectory(prefix="sote-job-") as folder, self._said():
            shipping.pack(Path(folder), recipe=recipe, code=code)
            self.client.submit_job(
                entrypoint=words,
                submission_id=name,
                metadata=submission.metadata(),
                runtime_env={"working_dir": folder, "env_vars": environment},
            )
        return name

    def all(self) -> list[Job]:
        """The submitted jobs that the cluster knows, the newest last."""
        with self._said():
            found = self.client.list_jobs()
        return sorted((_job(each) for each in found if each.submission_id), key=lambda job: job.started or 0.0)

    def get(self, name: str) -> Job:
        """The job of this id."""
        with self._said(name):
            return _job(self.client.get_job_info(name))

    def log(self, name: str) -> str:
        """What the job's driver has written."""
        self.get(name)
        with self._said(name):
            return str(self.client.get_job_logs(name))

    def follow(self, name: str, write: Callable[[str], object]) -> Job:
        """Hand on what the driver writes until the job has ended; returns how it did."""
        job = self.get(name)
        done = 0
        while True:
            with contextlib.suppress(RuntimeError, aiohttp.ClientError, OSError):  # the line broke; the job may go on
                done = asyncio.run(self._tail(name, write, skip=done))
            job = self._patiently(name)
            if job.has_ended:
                return job
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def stop(self, name: str) -> Job:
        """Tell the job to end (SIGTERM) and wait until it has. Raises UserError if it has ended already."""
        job = self.get(name)
        if job.has_ended:
            raise UserError(f"{name}: has ended already ({job.state.lower()})")
        with self._said(name):
            self.client.stop_job(name)
        while not (job := self._patiently(name)).has_ended:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return job

    def resources(self) -> dict[str, float] | None:
        """What all nodes together have now; None where nodes can come by themselves, or the cluster does not say."""
        with self._said():
            answer = requests.get(f"{self.url}/api/cluster_status", headers=self.headers, timeout=REQUEST_SECONDS)
            status = (answer.json().get("data") or {}).get("clusterStatus") or {}
        usage = (status.get("loadMetricsReport") or {}).get("usage")
        kinds: dict[str, str] = (status.get("autoscalerReport") or {}).get("nodeTypeMapping") or {}
        # Ray's autoscaler knows the kind of a node that it started; any other is a kind of its own, called by its id
        if usage is None or not kinds or any(kind != f"node_{node}" for node, kind in kinds.items()):
            return None
        return {name: float(total) for name, (_, total) in usage.items()}

    def _patiently(self, name: str) -> Job:
        """The job; a cluster that does not answer for a while is asked again."""
        deadline = time.monotonic() + LOST_AFTER_SECONDS
        while True:
            try:
                return self.get(name)
            except _Unreachable as error:
                if time.monotonic() > deadline:
                    raise RunFailed(
                        f"{self.url}: does not answer any more, so how {name} ended is not known ({error}); where the "
                        "cluster is gone the job is too: the same submission continues the run on another"
                    ) from None
            time.sleep(SECONDS_BETWEEN_LOOKS)

    async def _tail(self, name: str, write: Callable[[str], object], *, skip: int) -> int:
        """Write what lies behind the first `skip` characters of the log; returns how many there are now."""
        seen = 0
        async for text in self.client.tail_job_logs(name):
            seen += len(text)
            if seen > skip:
                write(text[-(seen - skip) :] if seen - skip < len(text) else text)
                skip = seen
        return skip

    @contextlib.contextmanager
    def _said(self, name: str | None = None) -> Iterator[None]:
        """What Ray's client raises, as errors of ours."""
        try:
            yield
        except AuthenticationError as error:
            raise UserError(_locked(self.url, 403 if "failed" in str(error) else 401)) from None
        except (requests.ConnectionError, requests.Timeout, ConnectionError) as error:
            raise _Unreachable(_nobody(self.url, error)) from None
        except RuntimeError as error:
            if name is not None and "status code 404" in str(error):
                raise UserError(f"{name}: no such job at {self.url}; `sote jobs` lists those that there are") from None
            raise RunFailed(f"{self.url}: {_first_line(error)}") from None


class _Unreachable(UserError):
    """Nobody answers at the address."""


def exit_code(job: Job) -> int:
    """What a command that waited for the job ends with: the job's own exit code; 143 if it was stopped."""
    if job.state == JobStatus.STOPPED:
        return Stopped.exit_code
    if job.state == JobStatus.SUCCEEDED:
        return 0
    code = job.exit_code
    if code is None or code == 0:
        return RunFailed.exit_code
    return code if code > 0 else SIGNALS - code


def _job(details: JobDetails) -> Job:
    return Job(
        id=str(details.submission_id),
        submission=Submission.of(details.metadata),
        entrypoint=details.entrypoint,
        state=str(details.status.value),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


def _greet(url: str, headers: dict[str, str]) -> None:
    """Raises UserError unless the job API of a Ray of our version answers at `url`, and lets us in."""
    try:
        answer = requests.get(f"{url}/api/version", headers=headers, timeout=REQUEST_SECONDS, allow_redirects=False)
    except (requests.ConnectTimeout, requests.ConnectionError) as error:
        if _answers_strangely(error):
            raise UserError(_stranger(url)) from None
        raise _Unreachable(_nobody(url, error)) from None
    except requests.RequestException:
        raise UserError(_stranger(url)) from None
    if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        raise UserError(_locked(url, answer.status_code))
    try:
        there: Any = answer.json()["ray_version"]
    except (requests.JSONDecodeError, KeyError, TypeError):
        raise UserError(_stranger(url)) from None
    if there != ray.__version__:
        raise UserError(
            f"{url}: Ray {there} is there, here is Ray {ray.__version__}: use the image of the same version of sote "
            "on both sides"
        )


def _answers_strangely(error: requests.ConnectionError) -> bool:
    """Whether the other side took the connection and then did not speak HTTP."""
    return any(word in str(error) for word in ("RemoteDisconnected", "BadStatusLine", "Connection reset", "SSLError"))


def _nobody(url: str, error: Exception) -> str:
    why = "no answer in time" if isinstance(error, requests.Timeout) else "connection refused or not found"
    return (
        f"{url}: no job API answers there ({why}); the head node's dashboard serves it: start the head with it, "
        "forward its port 8265, or name another --address"
    )


def _stranger(url: str) -> str:
    return (
        f"{url}: something else than Ray's job API answers there; give the address of the dashboard "
        "(http://HOST:8265), not that of the control store (6379) or of the endpoint"
    )


def _locked(url: str, status: int) -> str:
    if status == requests.codes.unauthorized:
        return (
            f"{url}: the cluster asks for a token and there is none here; put the cluster's into ~/.ray/auth_token, or "
            "name its file in RAY_AUTH_TOKEN_PATH"
        )
    return f"{url}: the cluster does not take the token that is here; use the cluster's own (RAY_AUTH_TOKEN_PATH)"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
