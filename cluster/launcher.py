"""Files for Ray's cluster launcher (`ray up`), from a profile: hosts that are there, or one cloud. Typed as in `kube`.

Ray listens on every address of a node, and asks for the token everywhere; the dashboard stays on the head's loopback.
`ray up` opens no port beyond what the hosts' firewall or the security group lets in: on AWS that is named, because the
group that Ray would make lets the whole world in at port 22.

Kind: pure.
"""

from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import Field

from sote.cluster import devices, kube
from sote.cluster import kube_pods as pods
from sote.cluster.cluster_profile import Cloud, ClusterProfile, Group, Machines
from sote.cluster.kube_ray import ServeNode

PORT: Final = 6379
IDLE_MINUTES: Final = 5
TOKEN: Final = "~/.ray/auth_token"  # noqa: S105  where Ray looks for it
FOLDER: Final = "~/sote"  # this checkout on every node
IGNORED: Final = ("/.git", "/.venv", "/runs")
INSIDE: Final = f"cd {FOLDER} && . .venv/bin/activate"
WARNING: Final = f"""\
# `ray up FILE` is run in the checkout, whose files go to every node. Before it, once: `ray get-auth-token --generate`
# writes {TOKEN} here; it is copied to every node, and nobody without it gets an answer. After it, in a second
# terminal: `ray dashboard FILE`, then `sote submit -- VERB RECIPE`.
# The start commands end every Ray that runs on the nodes: they are for this cluster alone.
"""
SETTINGS: Final = "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 && ulimit -n 65536"
DETECT: Final = "$(python -m sote.cluster.detect)"
# Every node installs the lock's versions; one with an Intel device ONNX Runtime's plugin for it, too
SETUP: Final = (
    f"cd {FOLDER} && make setup",
    f"{INSIDE} && if python -m sote.cluster.detect | grep -q accel=xpu; then "
    "uv pip install --require-hashes -r cluster/deploy/openvino.lock; fi",
)
BEGIN: Final = f"{INSIDE} && {SETTINGS} && ray start"
STOP: Final = f"{INSIDE} && ray stop"
START_HEAD: Final = (
    STOP,
    f"{BEGIN} --head --port={PORT} --dashboard-host=127.0.0.1 --num-cpus=0 --num-gpus=0"
    " --autoscaling-config=~/ray_bootstrap_config.yaml",
)
START_WORKER: Final = (STOP, f"{BEGIN} --address=$RAY_HEAD_IP:{PORT} {DETECT}")


class LocalProvider(ServeNode):
    type: Literal["local"] = "local"
    head_ip: str
    worker_ips: tuple[str, ...]


class AwsProvider(ServeNode):
    """Private addresses only; nodes end when they are given back."""

    type: Literal["aws"] = "aws"
    region: str
    availability_zone: str | None = None
    use_internal_ips: Literal[True] = True
    cache_stopped_nodes: Literal[False] = False


class Auth(ServeNode):
    ssh_user: str
    ssh_private_key: str | None = None


class Disk(ServeNode):
    size: int = Field(alias="VolumeSize")
    kind: Literal["gp3"] = Field(default="gp3", alias="VolumeType")
    encrypted: Literal[True] = Field(default=True, alias="Encrypted")


class Device(ServeNode):
    name: str = Field(default="/dev/sda1", alias="DeviceName")
    disk: Disk = Field(alias="Ebs")


class Market(ServeNode):
    kind: Literal["spot"] = Field(default="spot", alias="MarketType")


class Metadata(ServeNode):
    """The instance's credentials are given to who asks with a token of the session only, and not beyond a container."""

    tokens: Literal["required"] = Field(default="required", alias="HttpTokens")
    hops: Literal[2] = Field(default=2, alias="HttpPutResponseHopLimit")


class Role(ServeNode):
    arn: str = Field(alias="Arn")


class Instance(ServeNode):
    """What boto3's create_instances takes."""

    kind: str = Field(alias="InstanceType")
    machine_image: str = Field(alias="ImageId")
    subnets: tuple[str, ...] = Field(alias="SubnetIds")
    groups: tuple[str, ...] = Field(alias="SecurityGroupIds", min_length=1)
    devices: tuple[Device, ...] = Field(alias="BlockDeviceMappings")
    role: Role | None = Field(default=None, alias="IamInstanceProfile")
    market: Market | None = Field(default=None, alias="InstanceMarketOptions")
    metadata: Metadata = Field(default=Metadata(), alias="MetadataOptions")


class NodeType(ServeNode):
    node_config: Instance
    resources: dict[str, int]
    labels: dict[str, str]
    min_workers: int
    max_workers: int


class Launch(ServeNode):
    """A launcher's file. Lists are said even where they are empty: Ray's defaults install a Ray of their own."""

    cluster_name: str
    max_workers: int
    idle_timeout_minutes: int = IDLE_MINUTES
    provider: LocalProvider | AwsProvider
    auth: Auth
    available_node_types: dict[str, NodeType] | None = None
    head_node_type: str | None = None
    file_mounts: dict[str, str] = {FOLDER: ".", TOKEN: TOKEN}  # noqa: RUF012  pydantic copies it
    rsync_exclude: tuple[str, ...] = IGNORED
    rsync_filter: tuple[str, ...] = ()
    initialization_commands: tuple[str, ...] = ()
    setup_commands: tuple[str, ...] = SETUP
    head_setup_commands: tuple[str, ...] = ()
    worker_setup_commands: tuple[str, ...] = ()
    head_start_ray_commands: tuple[str, ...] = START_HEAD
    worker_start_ray_commands: tuple[str, ...] = START_WORKER


def files(profile: ClusterProfile) -> dict[str, str]:
    """The launcher's files by name: those for which the profile has a table."""
    found: dict[str, Launch] = {}
    if profile.machines is not None:
        found["onprem.yaml"] = onprem(profile, profile.machines)
    if profile.cloud is not None:
        found["aws.yaml"] = aws(profile, profile.cloud)
    return {name: WARNING + _text(launch) for name, launch in found.items()}


def steps(profile: ClusterProfile, out: Path) -> list[str]:
    """What to do next."""
    found = list(files(profile))
    lines = [f"ray get-auth-token --generate   # once, writes {TOKEN}"] if found else []
    for name in found:
        lines += [f"ray up {out / name}", f"ray dashboard {out / name}   # then: sote submit -- VERB RECIPE"]
    return lines


def onprem(profile: ClusterProfile, machines: Machines) -> Launch:
    """Hosts of any make: each says itself which accelerators it has."""
    return Launch(
        cluster_name=profile.name,
        max_workers=len(machines.workers),
        provider=LocalProvider(head_ip=machines.head, worker_ips=machines.workers),
        auth=Auth(ssh_user=machines.user, ssh_private_key=machines.key_file),
    )


def aws(profile: ClusterProfile, cloud: Cloud) -> Launch:
    """Instances in a private subnet, started and given back as work comes and goes."""
    head = NodeType(
        node_config=_instance(cloud, profile.head.instance_type, profile.head.disk_gb, is_spot=False),
        resources={"CPU": 0},
        labels={devices.LABEL: "cpu"},
        min_workers=0,
        max_workers=0,
    )
    workers = {f"worker-{group.name}": _node_type(cloud, group) for group in profile.groups}
    return Launch(
        cluster_name=profile.name,
        max_workers=sum(group.max_nodes for group in profile.groups),
        provider=AwsProvider(region=cloud.region, availability_zone=cloud.zone),
        auth=Auth(ssh_user=cloud.user),
        available_node_types={"head": head} | workers,
        head_node_type="head",
    )


def _node_type(cloud: Cloud, group: Group) -> NodeType:
    """The autoscaler counts on what stands here, so it is not left to the nodes. Ray keeps labels of `ray.io/`."""
    labels = {name: value for name, value in pods.node_labels(group).items() if not name.startswith("ray.io/")}
    return NodeType(
        node_config=_instance(cloud, group.instance_type, group.disk_gb, is_spot=group.spot),
        resources={"CPU": group.cpus} | ({"GPU": group.slots} if group.slots else {}),
        labels=labels,
        min_workers=group.min_nodes,
        max_workers=group.max_nodes,
    )


def _instance(cloud: Cloud, kind: str | None, disk_gb: int, *, is_spot: bool) -> Instance:
    values: dict[str, Any] = {
        "InstanceType": kind,
        "ImageId": cloud.machine_image,
        "SubnetIds": (cloud.subnet,),
        "SecurityGroupIds": (cloud.security_group,),
        "BlockDeviceMappings": ({"Ebs": {"VolumeSize": disk_gb}},),
        "IamInstanceProfile": {"Arn": cloud.instance_profile} if cloud.instance_profile else None,
        "InstanceMarketOptions": {} if is_spot else None,
    }
    return Instance.model_validate(values)


def _text(launch: Launch) -> str:
    return str(yaml.safe_dump(kube.manifest(launch), sort_keys=False, width=120))
