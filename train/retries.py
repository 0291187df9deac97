"""Reading that bears with a network: tried again a few times, then one clear error.

Kind: pure, but for waiting.
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from sote.cluster.errors import RunFailed
from sote.data import files

WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)  # before each further try: a server's hiccup, not a night
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # no try will mend these

Found = TypeVar("Found")


def each(
    read: Callable[[Sequence[int]], Sequence[Found | OSError]],
    uris: Sequence[str],
    *,
    waits: Sequence[float] = WAITS_SECONDS,
) -> list[Found]:
    """What `read` gives for each number of `uris`; those that fail are read again, a few times.

    Raises the OSError itself, its `filename` the uri, where it says that nothing is there, or of a file of this
    machine; else RunFailed.
    """
    found: dict[int, Found] = {}
    left = list(range(len(uris)))
    for wait in (*waits, None):
        failed: dict[int, OSError] = {}
        for at, one in zip(left, read(left), strict=True):
            if not isinstance(one, OSError):
                found[at] = one
            elif isinstance(one, FINAL) or files.is_local(uris[at]):
                one.filename = uris[at]
                raise one
            else:
                failed[at] = one
        if not failed:
            break
        if wait is None:
            at, error = next(iter(failed.items()))
            raise RunFailed(
                f"{uris[at]}: cannot be read, tried {len(waits) + 1} times ({' '.join(str(error).split())}); see to "
                f"the network and run the same command again"
            )
        time.sleep(wait)
        left = list(failed)
    return [found[at] for at in range(len(uris))]


def or_error(read: Callable[[str], Found], uri: str) -> Found | OSError:
    """What `read` gives, or the OSError that it raises."""
    try:
        return read(uri)
    except OSError as error:
        return error
