"""A log event as one line of JSON: when, how bad, what happened with its values, and in which run, job and node.

An event is written as `log.info("shard done stage=%s rows=%d", ...)`: what stands as `name=value` becomes a field, and
the rest is the event's name. Prompts and captions are never in an event.

Kind: pure, but for the environment that Ray gives a job.
"""

import contextlib
import json
import logging
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sote.cluster import submission

NUMBER_OF_JOB: Final = "RAY_JOB_ID"  # what Ray sets for the workers of a job
# A value of an event, and the conversions of `logging`'s format
FIELD: Final = re.compile(r"(?P<name>[a-z_]\w*)=$")
CONVERSION: Final = re.compile(r"%[#0\- +]*\d*(?:\.\d+)?(?P<as>[diouxXeEfFgGcrsa%])")
OURS: Final = ("time", "level", "logger", "event", "error", "trace", "run", "digest", "verb", "job", "node")


@dataclass(frozen=True)
class Who:
    """Whose events they are: `run` is its folder's name, `digest` the recipe's, `job` None outside of Ray's jobs."""

    run: str
    verb: str
    digest: str
    job: str | None
    node: str
    pid: int

    @staticmethod
    def here(*, run: str, verb: str, digest: str) -> "Who":
        """This process."""
        return Who(run, verb, digest, job_id(), platform.node(), os.getpid())


class _At:
    """What this process runs at the moment."""

    who: Who | None = None


def current() -> Who | None:
    """Whose events this process's are, inside `being`."""
    return _At.who


@contextlib.contextmanager
def being(who: Who) -> Iterator[None]:
    """Say `who` in every event inside the block."""
    before, _At.who = _At.who, who
    try:
        yield
    finally:
        _At.who = before


def job_id() -> str | None:
    """The submission id of the job whose driver this process is, or Ray's number of a worker's; None outside of a
    job."""
    return submission.job_id() or os.environ.get(NUMBER_OF_JOB) or None


class Lines(logging.Formatter):
    """Formats an event as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": when} | fields(record), ensure_ascii=False, default=str)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of an event but for its time: its own values, and those that stand in every one of them."""
    event, values = parts(record)
    mine: dict[str, Any] = {"level": record.levelname.lower(), "logger": record.name, "event": event}
    mine |= {f"{name}_" if name in OURS and name != "error" else name: value for name, value in values.items()}
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        mine |= {"error": f"{type(error).__name__}: {error}"}
        mine |= {"trace": logging.Formatter().formatException(record.exc_info)}
    if (who := current()) is not None:
        mine |= {name: value for name, value in asdict(who).items() if value is not None and name != "pid"}
        return mine
    job = job_id()
    return mine | {"node": platform.node()} | ({"job": job} if job else {})


def parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """What happened, and its values by name. A value that JSON has no word for becomes text."""
    text, given = str(record.msg), record.args
    if not isinstance(given, tuple) or not given:
        return record.getMessage(), {}
    rest, values, place, used = "", dict[str, Any](), 0, 0
    for found in CONVERSION.finditer(text):
        before = text[place : found.start()]
        place = found.end()
        if found["as"] == "%":
            rest += f"{before}%"
            continue
        name = FIELD.search(before)
        if name is None:
            rest += before + found[0] % (given[used],)
        else:
            rest += before[: name.start()]
            values[name["name"]] = _plain(given[used], found[0])
        used += 1
    return re.sub(r"\s+(?=[;,])|\s+$|^\s+", "", re.sub(r"\s+", " ", rest + text[place:])), values


def _plain(value: object, conversion: str) -> Any:
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(conversion % value) if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each, "%s") for name, each in value.items()}
    return conversion % (value,)
