"""Errors keep what they say when they cross from one process to another."""

import pickle

from sote.cluster.errors import AccessError, Busy, NoMemory, RunFailed, UserError


def test_a_full_line_says_when_to_come_again_on_the_other_side_too() -> None:
    error = pickle.loads(pickle.dumps(Busy("the line is full", retry_after_seconds=3)))
    assert (str(error), error.retry_after_seconds) == ("the line is full", 3)


def test_who_may_not_ask_is_the_users_error_with_its_status() -> None:
    error = AccessError("no key", status=401)
    assert isinstance(error, UserError)
    assert (str(error), error.status, error.exit_code) == ("no key", 401, 2)


def test_too_little_memory_is_a_failed_run() -> None:
    assert issubclass(NoMemory, RunFailed)
