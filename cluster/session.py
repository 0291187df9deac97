"""The connection to Ray: an own local one, shut down at the end, or a cluster at an address.

Ray's own log lines stay in Ray's session folder; people see our progress.

Kind: wiring.
"""

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

from sote.cluster.errors import UserError

# Local object store: curation keeps slices of tens of megabytes in flight; what does not fit is spilled to disk by Ray.
LOCAL_OBJECT_STORE_BYTES = 1 << 30
# Ray Train's default of 60 s was seen to be too short on a busy machine (worker start imports torch and deepspeed).
TRAIN_START_TIMEOUT_SECONDS = 240

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_USAGE_DISABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(TRAIN_START_TIMEOUT_SECONDS),
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "1",
    "GLOG_minloglevel": "3",
    "TQDM_DISABLE": "0",
}


@contextlib.contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block. If this process already is, that connection is used and left as it is.

    `address` is a running cluster; None starts a local one with all cores, which ends with the block.
    Raises UserError if there is no cluster at `address`.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.update(QUIET)
    try:
        if address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise UserError(f"--address {address}: no Ray cluster answers there ({error})") from None
    _hush()
    try:
        yield
    finally:
        ray.shutdown()


def _hush() -> None:
    """Keep Ray's libraries from writing progress and warnings to the user's terminal."""
    for name in ("ray", "ray.data", "ray.train", "ray.serve", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def model_pool(*, cpus: float, gpus: float) -> tuple[float | None, float | None, int]:
    """Shares of CPU and GPU for one model actor, and how many such actors: one for each GPU, or one without any.

    `cpus` is the share where the cluster has no GPU, `gpus` the share of one where it has.
    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    devices = int(resources.get("GPU", 0))
    return (None, gpus, devices) if devices else (cpus, None, 1)
