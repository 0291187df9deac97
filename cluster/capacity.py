"""Whether a cluster has what some work asks for, or could have it, before the work starts: else it would wait for ever.

What is asked is a list of bundles; each must fit one node, as Ray places them. A cluster with an autoscaler is told
of the wish, by a placement group that waits, and is given the time that machines take to come; the autoscaler may
answer that no kind of node of its could ever do. Without one, somebody may still start a node by hand: that has a
shorter patience. What other work takes at the moment does not count: it ends.

Kind: wiring.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from sote.cluster import devices
from sote.cluster.devices import GB, MEMORY_LABEL
from sote.cluster.errors import UserError
from sote.cluster.page import counted

# For a node that somebody starts by hand; for a machine of a cloud with its image: minutes to boot, minutes to pull
PATIENCE_SECONDS, BOOT_SECONDS = 60.0, 1200.0
SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_LOOKS = 10.0, 1.0
MIRRORED = "node_"  # what Ray's monitor calls the "type" of a node that no autoscaler has started

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """What each of `count` actors, workers or replicas asks of one node.

    `device_bytes` is the memory that the accelerator must have; nodes that do not say theirs are taken for enough.
    """

    cpus: float = 0.0
    gpus: float = 0.0
    device_bytes: int = 0
    count: int = 1

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU"] * bool(self.cpus) + [f"{self.gpus:g} GPU"] * bool(self.gpus)
        memory = f" with {self.device_bytes / GB:.1f} GB of its own memory" if self.device_bytes and self.gpus else ""
        return f"{f'{self.count} x ' if self.count > 1 else ''}{' and '.join(parts) or 'nothing'}{memory}"

    @property
    def resources(self) -> dict[str, float]:
        """As Ray names them."""
        return {name: need for name, need in (("CPU", self.cpus), ("GPU", self.gpus)) if need}

    @property
    def selector(self) -> dict[str, str]:
        """The label selector that goes with them."""
        return devices.selector(self.device_bytes) if self.gpus else {}


@dataclass(frozen=True)
class Place:
    """What one node has in all: its resources as Ray names them, and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]


def places() -> list[Place]:
    """The nodes of the cluster that are alive."""
    listed: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [Place(node["Resources"], node["Labels"] or {}) for node in listed if node["Alive"]]


def lacking(wanted: Sequence[Bundle], nodes: Sequence[Place]) -> tuple[Bundle, int] | None:
    """The first bundle that the nodes cannot hold beside those before it, and how many of its count they can.

    The largest are placed first, each on the fullest node that still has room for it. None: all fit.
    """
    left = [dict(node.resources) for node in nodes]
    for bundle in sorted(wanted, key=lambda each: (-each.gpus, -each.device_bytes, -each.cpus)):
        fitting = [at for at, node in enumerate(nodes) if _may(bundle, node)]
        for done in range(bundle.count):
            at = next((at for at in sorted(fitting, key=lambda at: _room(left[at])) if _holds(left[at], bundle)), None)
            if at is None:
                return bundle, done
            for name, need in bundle.resources.items():
                left[at][name] -= need
    return None


def _may(bundle: Bundle, node: Place) -> bool:
    return not bundle.gpus or devices.suffices(node.labels, bundle.device_bytes)


def _holds(left: Mapping[str, float], bundle: Bundle) -> bool:
    return all(left.get(name, 0.0) >= need for name, need in bundle.resources.items())


def _room(left: Mapping[str, float]) -> tuple[float, float]:
    return left.get("GPU", 0.0), left.get("CPU", 0.0)


def shortage(wanted: Sequence[Bundle], nodes: Sequence[Place]) -> str | None:
    """One line: what is asked, and what there is; None where all is there."""
    short = lacking(wanted, nodes)
    if short is None:
        return None
    bundle, held = short
    asked = f"asks for {', '.join(map(str, wanted))}"
    gpus, cpus = _sum(nodes, "GPU"), _sum(nodes, "CPU")
    here = f"here are {gpus:g} GPUs and {cpus:g} CPUs on {counted(len(nodes), 'node')}"
    if bundle.gpus and bundle.device_bytes and gpus and not any(_may(bundle, node) for node in _with_gpus(nodes)):
        tiers = sorted({int(node.labels[MEMORY_LABEL]) for node in _with_gpus(nodes)})
        return f"{asked}; {here}, and the largest device has {tiers[-1]} GB"
    if bundle.count > 1 and held:
        return f"{asked}; {here}, and {held} of {bundle.count} fit"
    largest = max(nodes, key=lambda node: _room(node.resources), default=Place({}, {}))
    alone = ", ".join(f"{largest.resources.get(name, 0):g} {name}" for name in bundle.resources)
    return f"{asked}; {here}" + (f", and one node has at most {alone}" if len(nodes) > 1 else "")


def _sum(nodes: Sequence[Place], name: str) -> float:
    return sum(node.resources.get(name, 0.0) for node in nodes)


def _with_gpus(nodes: Sequence[Place]) -> list[Place]:
    return [node for node in nodes if node.resources.get("GPU")]


def require(wanted: Sequence[Bundle], *, what: str, patience_seconds: float = PATIENCE_SECONDS, mend: str = "") -> None:
    """Return when the cluster that this process is connected to has all of `wanted`, wherever it lies.

    `what` begins every line that is said; `mend` ends the error with what else the user could do. Raises UserError,
    one line, when the patience is over (with an autoscaler BOOT_SECONDS, if patience is given at all), or as soon as
    the autoscaler says that no node of its would do.
    """
    missing = shortage(wanted, places())
    if missing is None:
        return
    grows = patience_seconds > 0 and autoscales()
    patience = max(patience_seconds, BOOT_SECONDS) if grows else patience_seconds
    ends = f"; {mend}" if mend else "; start nodes that have it, or ask for less"
    wish = _wish(wanted) if grows else None
    try:
        missing = _wait(wanted, what=what, patience=patience, wish=wish)
    finally:
        if wish is not None:
            remove_placement_group(wish)
    if missing is not None:
        raise UserError(f"{what} {missing}{ends}")


def obtain(wanted: Sequence[Bundle], *, what: str) -> bool:
    """Whether an autoscaler brings what no node has; waits for it. False at once where there is none, or none that
    would say what it cannot do: Ray's first one does not, so whoever uses it keeps a node of each kind."""
    if not (autoscales() and _status().autoscaling_state.autoscaler_state_version):
        return False
    wish = _wish(wanted)
    try:
        return _wait(wanted, what=what, patience=BOOT_SECONDS, wish=wish) is None
    finally:
        remove_placement_group(wish)


def _wait(wanted: Sequence[Bundle], *, what: str, patience: float, wish: PlacementGroup | None) -> str | None:
    """What is missing in the end. Says it while it waits."""
    start = said = time.monotonic()
    missing = shortage(wanted, places())
    if patience > 0:
        whom = "the autoscaler was asked" if wish is not None else "a node may be started"
        log.warning("%s %s; %s, waiting up to %g s", what, missing, whom, patience)
    while missing is not None and time.monotonic() - start < patience:
        if wish is not None and _is_hopeless(wish):
            return f"{missing}; the autoscaler has no kind of node that would do"
        time.sleep(min(SECONDS_BETWEEN_LOOKS, patience))
        missing = shortage(wanted, places())
        if missing is not None and time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            log.warning("%s %s; waited %.0f of %g s", what, missing, said - start, patience)
    return missing


def _wish(wanted: Sequence[Bundle]) -> PlacementGroup:
    """What an autoscaler sees and acts on: bundles that wait for their place."""
    each = [bundle for bundle in wanted for _ in range(bundle.count)]
    wish: PlacementGroup = placement_group(
        [bundle.resources for bundle in each], bundle_label_selector=[bundle.selector for bundle in each]
    )
    return wish


def autoscales() -> bool:
    """Whether something starts nodes for this cluster: nodes then have the name of their group."""
    state = _status()
    names = {node.ray_node_type_name for node in state.cluster_resource_state.node_states} - {""}
    if state.autoscaling_state.autoscaler_state_version and any(not name.startswith(MIRRORED) for name in names):
        return True
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    said = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
    return any(not str(name).startswith(MIRRORED) for name in (said.get("active_nodes") or {}))


def _is_hopeless(wish: PlacementGroup) -> bool:
    """Whether the autoscaler reports that none of its kinds of node can meet the wish (Ray's second one does)."""
    reported = _status().autoscaling_state.infeasible_gang_resource_requests
    return any(wish.id.hex() in request.details for request in reported)


def _status() -> Any:
    """GetClusterStatusReply of Ray's control store."""
    from ray._private import worker
    from ray.core.generated import autoscaler_pb2

    messages: Any = autoscaler_pb2
    connected: Any = worker.global_worker
    reply = messages.GetClusterStatusReply()
    reply.ParseFromString(connected.gcs_client.get_cluster_status(timeout_s=10))
    return reply
