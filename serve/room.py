"""What to do where the device has no memory left: free what torch holds for later, try once more, then say so.

Kind: actor.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

from sote.cluster.errors import NoMemory
from sote.serve.settings import StageName

T = TypeVar("T")


def with_room(work: Callable[[], T], *, stage: StageName, device: torch.device) -> T:
    """What `work()` gives; tried twice. Raises NoMemory where it does not fit the second time either."""
    for _ in range(2):
        try:
            return work()
        except torch.OutOfMemoryError:
            pass  # while it is handled, the error still holds what the work had taken
        free(device)
    raise no_memory(stage)


def free(device: torch.device) -> None:
    """Give back what torch's allocator holds for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def no_memory(stage: StageName) -> NoMemory:
    """Says what can be done about it."""
    return NoMemory(
        f"{stage}: the device has no memory left for this picture; ask for a smaller one, or let the server hold fewer "
        f"at a time ({stage}_replicas.slots)"
    )
