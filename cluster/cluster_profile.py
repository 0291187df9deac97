"""A cluster on paper: its node groups, their prices and where its storage and secrets are, as one TOML file.

`sote cluster render` fills manifests from it, `sote check RECIPE --cluster FILE` prices a run with it. Prices are the
user's own: none is built in. Secrets are named, never written. A table `kubernetes`, `machines` or `cloud` says where
the cluster is to be; a profile without any is for prices alone.

Kind: pure.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sote.cluster.recipe import Part

Use = Literal["decode", "caption", "train", "serve"]
Accelerator = Literal["cuda", "rocm", "xpu", "cpu"]
Variant = Literal["gpu", "openvino"]  # of the container image
# What Kubernetes takes as the name of an object, with room for what is put behind it
Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$")]
# An object that somebody else named: a Secret, a namespace
Object = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
RESOURCES: dict[str, str] = {"cuda": "nvidia.com/gpu", "rocm": "amd.com/gpu", "xpu": "gpu.intel.com/xe"}


class Price(Part):
    """What a node costs an hour, in the profile's currency; `spot` where it may be taken away."""

    on_demand: float = Field(ge=0)
    spot: float | None = Field(default=None, ge=0)


class Head(Part):
    """The head node: Ray's control store, the dashboard and the drivers of jobs. It takes no other work."""

    cpus: int = Field(default=8, ge=1)
    memory_gb: int = Field(default=32, ge=4)
    disk_gb: int = Field(default=100, ge=10)
    price: Price | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    taints: tuple[str, ...] = ()
    instance_type: str | None = None  # of the cloud, for the launcher's file


class Group(Part):
    """Nodes of one kind. `device` is the accelerator's name ("A100", "L4", "A770"), None for CPU nodes.

    `accel` becomes the node label of that name; a CPU group with `device_slots` offers that many slots of Ray's
    resource GPU, so that models run on it, too. `memory_gb` is the node's, `device_memory_gb` one accelerator's.
    """

    name: Name
    use: tuple[Use, ...] = Field(min_length=1)
    accel: Accelerator = "cpu"
    device: str | None = Field(default=None, pattern=r"^[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?$")  # a label's value
    devices: int = Field(default=0, ge=0)  # accelerators of one node
    device_memory_gb: int | None = Field(default=None, ge=1)
    device_slots: int = Field(default=0, ge=0)  # of a CPU node
    cpus: int = Field(ge=1)
    memory_gb: int = Field(ge=4)
    disk_gb: int = Field(default=200, ge=10)
    min_nodes: int = Field(default=0, ge=0)
    max_nodes: int = Field(ge=1)
    spot: bool = False
    price: Price | None = None
    image: Variant = "gpu"
    resource: str | None = None  # Kubernetes' name of the accelerator; left out: the usual one of `accel`
    node_selector: dict[str, str] = Field(default_factory=dict)
    taints: tuple[str, ...] = ()  # keys of the nodes' taints that are put up with, beside that of the accelerator
    device_group: int | None = Field(default=None, ge=1)  # that owns /dev/dri/render* there: Intel's and AMD's devices
    instance_type: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes ({self.min_nodes}) must be at most max_nodes ({self.max_nodes})")
        if (self.accel == "cpu") != (self.device is None) or (self.device is None) != (self.devices == 0):
            raise ValueError("a group with accelerators has `accel`, `device` and `devices`; a CPU group has none")
        if self.device_slots and self.accel != "cpu":
            raise ValueError("device_slots is a CPU group's; accelerators are counted by `devices`")
        if self.spot and self.price is not None and self.price.spot is None:
            raise ValueError("spot is true, so price.spot must say what such a node costs")
        return self

    @property
    def slots(self) -> int:
        """How much of Ray's resource GPU one node offers."""
        return self.devices or self.device_slots

    @property
    def resource_name(self) -> str | None:
        """What Kubernetes calls its accelerator; None for CPU nodes."""
        return self.resource or RESOURCES[self.accel] if self.devices else None


class Kubernetes(Part):
    """Where the objects go, and the secrets that they name."""

    namespace: Name = "sote"
    image: str = Field(default="ghcr.io/sote/sote", pattern=r"^[\w.-]+(:\d+)?(/[\w.-]+)+$")  # without tag: `image_of`
    token_secret: Object = "sote-ray-token"  # noqa: S105  with the key `auth_token`
    ray_ca_secret: Object | None = None  # of type kubernetes.io/tls: the authority of Ray's own TLS between its nodes
    storage_secret: Object | None = None  # its keys become environment variables (AWS_ACCESS_KEY_ID, HF_TOKEN, ...)
    storage_claim: Object | None = None  # a PersistentVolumeClaim (ReadWriteMany), mounted at `storage_path`
    storage_path: str = Field(default="/shared", pattern=r"^(/[\w.-]+)+$")
    keys_secret: Object | None = None  # with the key `keys.toml`: the endpoint's keys
    tls_secret: Object | None = None  # of type kubernetes.io/tls, for the endpoint's ingress
    host: str | None = Field(default=None, pattern=r"^[a-z0-9.-]+$")  # the endpoint's name behind that ingress
    ingress_class: Object = "nginx"
    ingress_namespace: Object = "ingress-nginx"  # whence the ingress controller reaches the endpoint
    operator_namespace: Object = "kuberay-system"  # whence KubeRay reaches the heads
    monitoring_namespace: Object | None = None  # whence Prometheus (its operator) scrapes; left out: nobody does
    metrics_secret: Object | None = None  # with the key `key`: the endpoint's key that Prometheus shows it
    redis_address: str | None = Field(default=None, pattern=r"^[\w.-]+:\d+$")  # left out: a Redis is rendered, too
    redis_secret: Object = "sote-redis"  # noqa: S105  with the key `password`
    queue: Object | None = None  # Kueue's local queue

    @model_validator(mode="after")
    def _closed(self) -> Self:
        if self.host is not None and self.tls_secret is None:
            raise ValueError("host is set, so tls_secret must name the certificate: keys do not travel in the clear")
        return self


class Recipes(Part):
    """What the rendered jobs and the endpoint run: recipe files, relative to the profile."""

    curate: str | None = None
    train: str | None = None
    serve: str | None = None


class Machines(Part):
    """Hosts that are there, for Ray's cluster launcher (`ray up`). Each says itself which accelerators it has."""

    head: str
    workers: tuple[str, ...] = Field(min_length=1)
    user: str
    key_file: str = "~/.ssh/id_ed25519"


class Cloud(Part):
    """One cloud, for Ray's cluster launcher. The security group lets in what it lets in: Ray would open port 22."""

    provider: Literal["aws"] = "aws"
    region: str
    zone: str | None = None
    subnet: str = Field(pattern=r"^subnet-\w+$")  # a private one, which `ray up` reaches
    security_group: str = Field(pattern=r"^sg-\w+$")  # members among themselves, and port 22 from where you are
    machine_image: str = Field(pattern=r"^ami-\w+$")  # with the accelerators' driver, Python 3.11 or newer, make, rsync
    user: str = "ubuntu"
    instance_profile: str | None = None  # ARN of the nodes' role: the storage, and for the head to start nodes


class ClusterProfile(Part):
    """A cluster: `sote cluster render --profile FILE`."""

    name: Name = "sote"
    currency: str = "USD"
    head: Head = Head()
    groups: tuple[Group, ...] = Field(min_length=1)
    recipes: Recipes = Recipes()
    kubernetes: Kubernetes | None = None
    machines: Machines | None = None
    cloud: Cloud | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [group.name for group in self.groups]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"groups: {twice[0]!r} is listed twice, each group must have its own name")
        return self

    @model_validator(mode="after")
    def _instances_are_named(self) -> Self:
        if self.cloud is None:
            return self
        nameless = [group.name for group in self.groups if group.instance_type is None]
        if self.head.instance_type is None or nameless:
            what = ", ".join([*(["head"] if self.head.instance_type is None else []), *nameless])
            raise ValueError(f"{what}: must have instance_type, because there is a table `cloud`")
        return self

    def of_use(self, *uses: Use) -> tuple[Group, ...]:
        """The groups that do any of this work."""
        return tuple(group for group in self.groups if set(uses) & set(group.use))
