"""What goes over the border about jobs: the request for one, how it stands, and fal's words for cancelling.

Kind: pure.
"""

import base64
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from sote.serve.jobfiles import State
from sote.serve.jobline import Sight
from sote.serve.schema import EXAMPLES, GenerateRequest, GenerateResponse
from sote.serve.settings import StageName

JOB_EXAMPLE: Final[dict[str, Any]] = EXAMPLES[0] | {"webhook_url": "https://example.com/done"}


class JobRequest(GenerateRequest):
    """A request for pictures that are fetched later."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLES[0], JOB_EXAMPLE]})

    webhook_url: str | None = Field(
        default=None,
        description="http or https address that gets a POST with the answer when the job is over: request_id, status "
        "OK or ERROR, payload, error; signed with `webhook_secret` in X-Sote-Signature; tried five times in a minute",
    )


class JobAccepted(BaseModel):
    """A job that was made. `request_id` is `id` by fal's name."""

    id: str
    request_id: str
    status: State
    queue_position: int | None = Field(default=None, description="How many are before it")
    status_url: str
    response_url: str
    cancel_url: str
    events_url: str
    webhook_secret: str | None = Field(
        default=None,
        description="X-Sote-Signature of the webhook is `sha256=` and the HMAC-SHA256 of its body with this, in hex",
    )


class JobError(BaseModel):
    """Why it failed: the HTTP status that /v1/generate would have answered, and its words."""

    status: int
    message: str


class JobStatus(BaseModel):
    """How a job stands. Times are seconds since 1970; what has no meaning in its state is left out."""

    id: str
    request_id: str
    status: State
    queue_position: int | None = Field(default=None, description="How many are before it; 0 is the next")
    progress: float = Field(description="How much is done, 0 to 1", ge=0, le=1)
    stage: StageName | None = None
    step: int | None = Field(default=None, description="Steps that are done in this stage")
    steps: int | None = Field(default=None, description="Of this stage")
    preview: str | None = Field(default=None, description="Data URI of a small JPEG; in `progress` events alone")
    seconds_left: float | None = Field(default=None, description="A guess")
    created: float
    started: float | None = None
    finished: float | None = None
    expires: float | None = Field(default=None, description="When the job and its pictures are removed")
    attempts: int = Field(description="How often painting was begun; more than 1: a server or model was lost")
    webhook: Literal["waiting", "delivered", "failed"] | None = None
    webhook_error: str | None = None
    error: JobError | None = None
    result: GenerateResponse | None = None


class JobList(BaseModel):
    """The newest jobs, and how many there are in all."""

    jobs: list[JobStatus]
    total: int


class CancelAnswer(BaseModel):
    """fal's words."""

    status: Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED"]


def status_of(seen: Sight, *, has_preview: bool = False) -> JobStatus:
    """How a job stands, without its answer."""
    record, progress, hook = seen.record, seen.progress, seen.record.webhook
    preview = base64.b64encode(progress.preview).decode() if has_preview and progress and progress.preview else None
    return JobStatus(
        id=record.id,
        request_id=record.id,
        status=record.state,
        queue_position=seen.position,
        progress=round(seen.share, 4),
        stage=progress.stage if progress else None,
        step=progress.step if progress else None,
        steps=progress.steps if progress else None,
        preview=f"data:image/jpeg;base64,{preview}" if preview else None,
        seconds_left=None if seen.seconds_left is None else round(seen.seconds_left, 1),
        created=record.created,
        started=record.started,
        finished=record.finished,
        expires=record.expires,
        attempts=record.attempts,
        webhook=hook.state if hook else None,
        webhook_error=hook.error if hook else None,
        error=JobError(status=record.failure.status, message=record.failure.message) if record.failure else None,
    )
