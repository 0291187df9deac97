"""The part of Kubernetes' objects that this project writes, typed: a field that is not here cannot be written.

Field names are Kubernetes' own in snake case; `manifest` gives them in camel case, what is not set left out. Secrets
are named only: no model here has a place for the value of one.

Source: Kubernetes' API reference, v1.32. Kind: pure.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Strings = dict[str, str]
ODD = {"downward_api": "downwardAPI", "serve_config": "serveConfigV2", "from_": "from"}


def camel(name: str) -> str:
    """Kubernetes' name of a field."""
    return ODD.get(name) or to_camel(name)


class Node(BaseModel):
    """A table of an object: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=camel, populate_by_name=True)


class Metadata(Node):
    name: str
    labels: Strings | None = None
    annotations: Strings | None = None


class Thing(Node):
    """A whole object."""

    api_version: str
    kind: str
    metadata: Metadata


def manifest(thing: Node) -> dict[str, Any]:
    """What stands in the file: plain values, keys in the order of the classes."""
    return thing.model_dump(mode="json", by_alias=True, exclude_none=True)


# ---- pods


class KeyOf(Node):
    """A key of a Secret, by name, or `field_path` of the pod."""

    name: str
    key: str


class FieldOf(Node):
    field_path: str


class ValueFrom(Node):
    secret_key_ref: KeyOf | None = None
    field_ref: FieldOf | None = None


class Env(Node):
    name: str
    value: str | None = None
    value_from: ValueFrom | None = None


class Named(Node):
    name: str


class EnvFrom(Node):
    secret_ref: Named


class Mount(Node):
    name: str
    mount_path: str
    read_only: bool | None = None


class Item(Node):
    key: str
    path: str


class EmptyDir(Node):
    size_limit: str


class SecretFiles(Node):
    secret_name: str
    items: tuple[Item, ...] | None = None


class ConfigFiles(Node):
    name: str
    items: tuple[Item, ...] | None = None


class TokenFile(Node):
    path: str
    expiration_seconds: int = Field(ge=600)


class FieldFile(Node):
    path: str
    field_ref: FieldOf


class FieldFiles(Node):
    items: tuple[FieldFile, ...]


class Projection(Node):
    service_account_token: TokenFile | None = None
    config_map: ConfigFiles | None = None
    downward_api: FieldFiles | None = None


class Projected(Node):
    sources: tuple[Projection, ...]


class Claim(Node):
    claim_name: str


class Volume(Node):
    """Exactly one kind of it is set."""

    name: str
    empty_dir: EmptyDir | None = None
    secret: SecretFiles | None = None
    config_map: ConfigFiles | None = None
    persistent_volume_claim: Claim | None = None
    projected: Projected | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.model_fields_set - {"name"}) != 1:
            raise ValueError(f"volume {self.name}: must be of exactly one kind")
        return self


class Resources(Node):
    """Limits are the requests: what a pod may take is kept for it, so nothing else on the node is pushed out."""

    requests: Strings
    limits: Strings

    @classmethod
    def exactly(cls, amounts: Mapping[str, str]) -> Self:
        return cls(requests=dict(amounts), limits=dict(amounts))


class Capabilities(Node):
    drop: tuple[Literal["ALL"]] = ("ALL",)


class Seccomp(Node):
    type: Literal["RuntimeDefault"] = "RuntimeDefault"


class ContainerSecurity(Node):
    allow_privilege_escalation: Literal[False] = False
    read_only_root_filesystem: Literal[True] = True
    capabilities: Capabilities = Capabilities()


class PodSecurity(Node):
    run_as_non_root: Literal[True] = True
    run_as_user: int = Field(ge=1)
    run_as_group: int = Field(ge=1)
    fs_group: int = Field(ge=1)
    supplemental_groups: tuple[int, ...] | None = None
    fs_group_change_policy: Literal["OnRootMismatch"] = "OnRootMismatch"
    seccomp_profile: Seccomp = Seccomp()


class Port(Node):
    name: str = Field(max_length=15)
    container_port: int


class HttpGet(Node):
    path: str
    port: int | str


class TcpSocket(Node):
    port: int | str


class Probe(Node):
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    initial_delay_seconds: int | None = None
    timeout_seconds: int = 5
    period_seconds: int = 10
    failure_threshold: int = 3


class Container(Node):
    name: str
    image: str
    image_pull_policy: Literal["IfNotPresent"] = "IfNotPresent"
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    ports: tuple[Port, ...] | None = None
    env: tuple[Env, ...] | None = None
    env_from: tuple[EnvFrom, ...] | None = None
    resources: Resources
    volume_mounts: tuple[Mount, ...] = ()
    startup_probe: Probe | None = None
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    security_context: ContainerSecurity = ContainerSecurity()


class Toleration(Node):
    key: str
    operator: Literal["Exists"] = "Exists"


class Expression(Node):
    key: str
    operator: Literal["In"] = "In"
    values: tuple[str, ...]


class Selector(Node):
    """What has all these labels; without any: everything."""

    match_labels: Strings | None = None
    match_expressions: tuple[Expression, ...] | None = None


class Spread(Node):
    max_skew: int = 1
    topology_key: str
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = "ScheduleAnyway"
    label_selector: Selector


class PodSpec(Node):
    service_account_name: str | None = None
    automount_service_account_token: Literal[False] = False
    security_context: PodSecurity
    restart_policy: Literal["Never", "Always"] | None = None
    termination_grace_period_seconds: int | None = None
    node_selector: Strings | None = None
    tolerations: tuple[Toleration, ...] | None = None
    topology_spread_constraints: tuple[Spread, ...] | None = None
    init_containers: tuple[Container, ...] | None = None
    containers: tuple[Container, ...] = Field(min_length=1)
    volumes: tuple[Volume, ...] = ()


class PodMetadata(Node):
    labels: Strings
    annotations: Strings | None = None


class PodTemplate(Node):
    metadata: PodMetadata
    spec: PodSpec


# ---- objects without pods


class Namespace(Thing):
    api_version: Literal["v1"] = "v1"
    kind: Literal["Namespace"] = "Namespace"


class ServiceAccount(Thing):
    api_version: Literal["v1"] = "v1"
    kind: Literal["ServiceAccount"] = "ServiceAccount"
    automount_service_account_token: Literal[False] = False


class ConfigMap(Thing):
    api_version: Literal["v1"] = "v1"
    kind: Literal["ConfigMap"] = "ConfigMap"
    data: Strings


class ServicePort(Node):
    name: str
    port: int


class ServiceSpec(Node):
    """Inside the cluster only: there is no type that a machine outside can reach."""

    type: Literal["ClusterIP"] = "ClusterIP"
    selector: Strings
    ports: tuple[ServicePort, ...]


class Service(Thing):
    api_version: Literal["v1"] = "v1"
    kind: Literal["Service"] = "Service"
    spec: ServiceSpec


class StorageRequest(Node):
    requests: Strings


class ClaimSpec(Node):
    access_modes: tuple[Literal["ReadWriteOnce"]] = ("ReadWriteOnce",)
    resources: StorageRequest


class ClaimTemplate(Node):
    metadata: Metadata
    spec: ClaimSpec


class StatefulSetSpec(Node):
    service_name: str
    replicas: int = 1
    selector: Selector
    template: PodTemplate
    volume_claim_templates: tuple[ClaimTemplate, ...]


class StatefulSet(Thing):
    api_version: Literal["apps/v1"] = "apps/v1"
    kind: Literal["StatefulSet"] = "StatefulSet"
    spec: StatefulSetSpec
