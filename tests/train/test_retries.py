from collections.abc import Sequence

import pytest

from sote.cluster.errors import RunFailed
from sote.train import retries

URIS = ("s3://a/1", "s3://a/2", "s3://a/3")


class Server:
    """Answers each number after so many failures."""

    def __init__(self, failures: dict[int, int], error: OSError) -> None:
        self.failures, self.error = dict(failures), error
        self.asked: list[list[int]] = []

    def read(self, numbers: Sequence[int]) -> list[int | OSError]:
        self.asked.append(list(numbers))
        return [self._one(number) for number in numbers]

    def _one(self, number: int) -> int | OSError:
        if self.failures.get(number, 0):
            self.failures[number] -= 1
            return self.error
        return 10 * number


def test_only_what_failed_is_read_again() -> None:
    server = Server({0: 1, 2: 2}, TimeoutError("slow"))
    assert retries.each(server.read, URIS, waits=(0.0, 0.0)) == [0, 10, 20]
    assert server.asked == [[0, 1, 2], [0, 2], [2]]


def test_the_tries_are_counted_and_the_last_error_said() -> None:
    server = Server({1: 9}, TimeoutError("too\nslow"))
    with pytest.raises(RunFailed, match=r"s3://a/2: cannot be read, tried 3 times \(too slow\)"):
        retries.each(server.read, URIS, waits=(0.0, 0.0))
    assert len(server.asked) == 3


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), PermissionError(13, "no")])
def test_what_no_try_will_mend_is_raised_at_once(error: OSError) -> None:
    server = Server({1: 1}, error)
    with pytest.raises(type(error)):
        retries.each(server.read, URIS, waits=(0.0,))
    assert len(server.asked) == 1


def test_a_file_of_this_machine_is_not_read_again() -> None:
    server = Server({0: 1}, OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        retries.each(server.read, ["/a/1"], waits=(0.0,))
    assert len(server.asked) == 1
