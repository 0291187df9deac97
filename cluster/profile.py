"""A cluster on paper: its node groups, their prices and where its storage and secrets are, as one TOML file.

`sote cluster render` fills manifests from it, `sote check RECIPE --cluster FILE` prices a run with it. Prices are the
user's own: none is built in. Secrets are named, never written.

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
    instance_type: str | None = None  # of the cloud, for the launcher's file


class Group(Part):
    """Nodes of one kind. `device` is the accelerator's name ("A100", "L4", "A770"), None for CPU nodes.

    `accel` becomes the node label of that name; a CPU group with `device_slots` offers that many slots of Ray's
    resource GPU, so that models run on it, too. `memory_gb` is the node's, `device_memory_gb` one accelerator's.
    """

    name: Name
    use: tuple[Use, ...] = Field(min_length=1)
    accel: Accelerator = "cpu"
    device: str | None = None
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


class Kubernetes(Part):
    """Where the objects go, and the secrets that they name."""

    namespace: Name = "sote"
    image: str = "ghcr.io/sote/sote"  # without a tag: it is the version, with `-openvino` behind it for that variant
    token_secret: str = "sote-ray-token"  # noqa: S105  the name of a Secret with the key `auth_token`
    storage_secret: str | None = None  # a Secret whose keys become environment variables (AWS_ACCESS_KEY_ID, ...)
    storage_claim: str | None = None  # a PersistentVolumeClaim (ReadWriteMany), mounted at `storage_path`
    storage_path: str = "/shared"
    keys_secret: str | None = None  # a Secret with the key `keys.toml`: the endpoint's keys
    tls_secret: str | None = None  # a Secret of type kubernetes.io/tls for the endpoint's ingress
    host: str | None = None  # the endpoint's name behind that ingress
    redis_address: str | None = None  # of the head's control store, host:port; left out: a Redis is rendered, too
    queue: str | None = None  # Kueue's local queue


class Machines(Part):
    """Hosts that are there, for Ray's cluster launcher (`ray up`)."""

    head: str
    workers: tuple[str, ...] = ()
    user: str
    key_file: str = "~/.ssh/id_ed25519"


class Cloud(Part):
    """One cloud, for Ray's cluster launcher."""

    provider: Literal["aws", "gcp"] = "aws"
    region: str
    zone: str | None = None
    project: str | None = None  # gcp


class ClusterProfile(Part):
    """A cluster: `sote cluster render --profile FILE`."""

    name: Name = "sote"
    currency: str = "USD"
    head: Head = Head()
    groups: tuple[Group, ...] = Field(min_length=1)
    kubernetes: Kubernetes = Kubernetes()
    machines: Machines | None = None
    cloud: Cloud | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [group.name for group in self.groups]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"groups: {twice[0]!r} is listed twice, each group must have its own name")
        return self

    def of_use(self, use: Use) -> tuple[Group, ...]:
        """The groups that do this work."""
        return tuple(group for group in self.groups if use in group.use)
