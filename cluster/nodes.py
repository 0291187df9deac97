"""What each node of a cluster has: every node that is alive is asked, all at once and with a limit of time.

A node is asked by a task that is pinned to it and takes no CPU. The task needs none of our code to say which Python
and Ray it runs; what needs our code is left out where it is missing. A node that does not answer is a row that says so.

Kind: wiring.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sote.cluster.devices import LABEL, MEMORY_LABEL, Device

SECONDS = 30.0  # for a worker's process to start on a busy node and look around
# What the parts of the river import, as distributions name them; one of the names of a group is enough
PACKAGES = (
    ("numpy",),
    ("pyarrow",),
    ("pillow",),
    ("torch",),
    ("onnxruntime", "onnxruntime-gpu", "onnxruntime-migraphx", "onnxruntime-openvino"),
    ("timm",),
    ("transformers",),
    ("open-clip-torch", "open_clip_torch"),
    ("diffusers",),
    ("deepspeed",),
)
HEAD = "node:__internal_head__"


@dataclass(frozen=True)
class Answer:
    """What a node says of itself. Bytes are the machine's; `engines` has for each device, the CPU last, the engine that
    a model in ONNX would take there, None if there is none. `sote` is None where our code is not to be had."""

    python: str
    ray: str
    sote: str | None
    missing: tuple[str, ...]
    memory_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int
    devices: tuple[Device, ...] = ()
    engines: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Node:
    """A node as Ray lists it, and its answer; where there is none, `silence` says why."""

    id: str
    name: str
    ip: str
    is_head: bool
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    answer: Answer | None = None
    silence: str | None = None

    @property
    def cpus(self) -> float:
        return self.resources.get("CPU", 0.0)

    @property
    def slots(self) -> int:
        """How much of Ray's resource GPU the node offers: accelerators, or slots of a CPU node."""
        return int(self.resources.get("GPU", 0.0))

    @property
    def kind(self) -> str:
        """What its workers compute on, as its label says; without the label, as its first device is."""
        found = self.answer.devices if self.answer else ()
        return self.labels.get(LABEL) or (found[0].kind if found and self.slots else "cpu")

    @property
    def device_gb(self) -> int | None:
        """The tier of memory that its label says."""
        said = self.labels.get(MEMORY_LABEL, "")
        return int(said) if said.isdigit() else None


def ask(*, seconds: float = SECONDS) -> list[Node]:
    """The nodes of the cluster that this process is connected to, the head first, each asked what it has."""
    listed: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in listed if node["Alive"]]
    look = ray.remote(num_cpus=0, max_retries=0)(_looker())
    asked = {node["NodeID"]: look.options(scheduling_strategy=_on(node["NodeID"])).remote() for node in alive}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
    found = [_node(node, *_answer(asked[node["NodeID"]], seconds)) for node in alive]
    return sorted(found, key=lambda node: (not node.is_head, node.kind, node.name, node.id))


def _on(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _answer(asked: "ray.ObjectRef[Any]", seconds: float) -> tuple[Answer | None, str | None]:
    try:
        said: dict[str, Any] = ray.get(asked, timeout=0.1)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(asked, force=True)
        return None, f"did not answer within {seconds:g} s"
    except ray.exceptions.RayError as error:
        return None, f"did not answer: {str(error).strip().splitlines()[-1]}"
    found = tuple(Device(**each) for each in said.pop("devices"))
    return Answer(**said, devices=found), None


def _node(listed: Mapping[str, Any], answer: Answer | None, silence: str | None) -> Node:
    return Node(
        id=listed["NodeID"],
        name=listed["NodeManagerHostname"],
        ip=listed["NodeManagerAddress"],
        is_head=HEAD in listed["Resources"],
        resources=listed["Resources"],
        labels=listed["Labels"] or {},
        answer=answer,
        silence=silence,
    )


def _looker() -> Any:
    """The function that runs on a node. It is made here, so that it travels by value and needs no module there."""
    packages = PACKAGES

    def look() -> dict[str, Any]:
        import dataclasses
        import pathlib
        import platform
        import shutil
        import tempfile
        from importlib import metadata

        def version(names: tuple[str, ...]) -> str | None:
            have = {str(each.metadata["Name"]).casefold(): each.version for each in metadata.distributions()}
            return next((have[name.casefold()] for name in names if name.casefold() in have), None)

        read = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        lines = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in read)}
        said: dict[str, Any] = {
            "python": platform.python_version(),
            "ray": version(("ray",)) or "?",
            "sote": None,
            "missing": tuple(names[0] for names in packages if version(names) is None),
            "memory_bytes": lines["MemTotal"],
            "free_memory_bytes": lines["MemAvailable"],
            "free_disk_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
            "devices": [],
        }
        try:
            from sote.cluster import devices
        except ImportError:
            return said
        found = devices.found()
        engines = [devices.pick_engine(each, offered=devices.offered_engines(each)) for each in (*found, devices.cpu())]
        described = [dataclasses.asdict(each) for each in found]
        return said | {"sote": version(("sote",)) or "as shipped", "devices": described, "engines": tuple(engines)}

    return look


def differences(found: list[Node]) -> list[str]:
    """One line for each thing that should be the same on all nodes and is not; the driver's own Python counts."""
    answers = [node.answer for node in found if node.answer is not None]
    lines = []
    for what, here in (("python", platform.python_version()), ("ray", ray.__version__), ("sote", None)):
        seen = {str(getattr(answer, what)) for answer in answers if getattr(answer, what) is not None}
        seen |= {here} if here else set()
        if len(seen) > 1:
            lines.append(f"{what.capitalize()} differs: {', '.join(sorted(seen))}; all nodes must have the same")
    return lines
