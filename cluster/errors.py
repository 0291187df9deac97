"""Every error that Sote raises by itself, as one tree.

    SoteError                 exit code 1
    ├── UserError             exit code 2: the input is wrong; one line names it and the mend
    │   ├── RecipeError       a recipe: unknown key, wrong type, bad value, missing file
    │   ├── SourceError       pictures: no such folder, empty, not one readable picture
    │   ├── WeightsError      a pretrained file is missing or is not what the recipe takes it for
    │   ├── RunFolderError    the run folder belongs to another recipe, or is in use
    │   ├── CheckpointError   a checkpoint of another shape, stage or variant, or a broken one
    │   ├── RequestError      a generation request that cannot be met
    │   └── AccessError       a request without a key that is known, or beyond what its key may ask for
    ├── RunFailed             exit code 1: the run itself failed (too many failed rows, NaN loss)
    │   ├── NoMemory          the device cannot hold what one picture needs
    │   ├── DiskFull          the disk has no room for what the server is to keep
    │   └── Unreachable       a URI cannot be read or written, after several attempts
    │       └── Denied        nor will it be: no credentials, no permission, no such bucket
    ├── Busy                  the server has no place for another request now
    └── Stopped               exit code 143: SIGTERM came; what is done is saved and the same command continues
        └── Interrupted       exit code 130: Ctrl-C came; the same

Failures of machines (lost node, out of memory) are not here: they raise as they are, and Ray retries.

Kind: pure.
"""

from typing import Any, ClassVar


class SoteError(Exception):
    """Root of the tree. `exit_code` is what the `sote` command ends with."""

    exit_code: ClassVar[int] = 1


class UserError(SoteError):
    """The user's input is wrong. The message is one line: what is wrong, and what would be right."""

    exit_code: ClassVar[int] = 2


class RecipeError(UserError):
    """A recipe cannot be used. One line for each problem: `file: field: what is wrong, what would be right`."""


class SourceError(UserError):
    """Pictures cannot be had from where the recipe says they are."""


class WeightsError(UserError):
    """A pretrained file is missing, or its content is not what it is taken for."""


class RunFolderError(UserError):
    """The run folder cannot be used: another recipe's, another process's, or not a run folder."""


class CheckpointError(UserError):
    """A checkpoint or export is broken, or has another shape, stage or variant than asked for."""


class RequestError(UserError):
    """A request to the model names something it cannot do."""


class AccessError(UserError):
    """Who asks is not known, or may not ask for this. `status`: 401 no key that is known, 403 not allowed with it."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class RunFailed(SoteError):
    """The run could not be finished; what was committed stays and the same command continues it."""


class NoMemory(RunFailed):
    """The device has too little memory for one picture of the size that was asked for."""


class DiskFull(RunFailed):
    """The disk has no room for what the server is to keep; what needs no disk still works."""


class Unreachable(RunFailed):
    """What lies at a URI cannot be read or written now, after several attempts. The message is one line that names it.

    No OSError: what cannot be read for now is no fault of a row.
    """


class Denied(Unreachable):
    """The store says no: the credentials, what they allow, or the bucket."""


class Busy(SoteError):
    """No place in the line, or a key's limit is reached. `retry_after_seconds`: when to come again, 1 or more."""

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[Any, ...]:  # an error crosses from a replica with its fields
        return _busy, (str(self), self.retry_after_seconds)


class Stopped(SoteError):
    """The run was told to end, saved what it had, and ended before its end."""

    exit_code: ClassVar[int] = 128 + 15  # what a shell reports for SIGTERM


class Interrupted(Stopped):
    """The user pressed Ctrl-C, and the run saved what it had."""

    exit_code: ClassVar[int] = 128 + 2  # what a shell reports for Ctrl-C


def _busy(message: str, retry_after_seconds: int) -> Busy:
    return Busy(message, retry_after_seconds=retry_after_seconds)
