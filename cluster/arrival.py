"""What a command looks at on a cluster before it begins: does every node have what its verb needs?

Kind: wiring.
"""

import importlib.util
import logging
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sote.cluster import devices, submission
from sote.cluster.errors import UserError

SECONDS_TO_ANSWER: Final = 60.0  # a node may have to start a process for the question
# What the work of a verb imports on a node, by the name that `import` knows
NEEDS: Final = {
    "curate": ("sote.data", "onnx", "onnxruntime", "PIL", "pyarrow", "scipy", "torch"),
    "train": ("sote.train", "deepspeed", "diffusers", "safetensors", "torch", "transformers"),
    "serve": ("sote.serve", "diffusers", "fastapi", "safetensors", "torch", "transformers"),
}

log = logging.getLogger(__name__)


def missing_anywhere() -> list[str]:
    """What a job with `--env openvino` brings for its processes where a node lacks the plug-in of ONNX Runtime; Ray
    installs it on every node then, once, from the package index that pip is set up for there."""
    job = submission.here()
    if job is None or job.device != "openvino" or not any(_ask((devices.PLUGIN,)).values()):
        return []
    return job.packages.split()


def check(verb: str | None = None) -> None:
    """Raises UserError that names the node and the package, if one lacks what this job's verb imports there.

    Outside of a job nothing is asked, for then the command knows no verb. A node that does not answer in a minute is
    left to Ray: it may be coming or going.
    """
    job = submission.here()
    verb = verb or (job.verb if job is not None else None)
    for node, lacks in _ask(NEEDS.get(verb or "", ())).items():
        if lacks:
            more = f" (and {len(lacks) - 1} more)" if lacks[1:] else ""
            raise UserError(
                f"node {node}: has no package {lacks[0]!r}{more}, which `sote {verb}` needs on every node: use the "
                f"image of sote {submission.version()} there"
            )


def lacking(names: tuple[str, ...]) -> list[str]:
    """Those of `names` that cannot be imported here. Looks for them without importing what is named."""
    return [name for name in names if not _is_there(name)]


def _ask(names: tuple[str, ...]) -> dict[str, list[str]]:
    """What each node lacks of `names`, by the node's address."""
    if not names:
        return {}
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(lacking)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    asked = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(names): (
            node["NodeManagerAddress"]
        )
        for node in nodes
        if node["Alive"]
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS_TO_ANSWER)
    for each in late:
        log.warning("a node does not say what it has node=%s", asked[each])
    return {asked[each]: ray.get(each) for each in done}


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it lies in
        return False
