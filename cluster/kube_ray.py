"""The part of KubeRay's objects that this project writes, typed as in `kube`, and of Serve's own config.

Only fields that KubeRay 1.7 takes without a feature gate. Serve's schema lets unknown keys pass; this one does not.

Source: KubeRay's definitions, v1.7; ray.serve.schema, 2.60. Kind: pure.
"""

from typing import Literal

from pydantic import ConfigDict, Field

from sote.cluster.kube import (
    ContainerSecurity,
    Env,
    Mount,
    Node,
    PodTemplate,
    Resources,
    Strings,
    Thing,
    ValueFrom,
)


class AuthOptions(Node):
    mode: Literal["token"] = "token"
    secret_name: str


class AutoscalerOptions(Node):
    version: Literal["v2"] = "v2"
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    idle_timeout_seconds: int = Field(ge=0)
    resources: Resources
    security_context: ContainerSecurity = ContainerSecurity()
    env: tuple[Env, ...] | None = None
    volume_mounts: tuple[Mount, ...]


class RedisPassword(Node):
    value_from: ValueFrom


class FaultTolerance(Node):
    redis_address: str
    redis_password: RedisPassword


class HeadGroup(Node):
    """`num-cpus: "0"`: no work is put on the head. Its service is inside the cluster only."""

    service_type: Literal["ClusterIP"] = "ClusterIP"
    ray_start_params: Strings
    template: PodTemplate


class WorkerGroup(Node):
    """`labels` become Ray's node labels; `resources` say what the operator cannot tell from the pod."""

    group_name: str
    replicas: int = Field(ge=0)
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=1)
    labels: Strings
    resources: Strings | None = None
    ray_start_params: Strings = Field(default_factory=dict)
    template: PodTemplate


class ClusterSpec(Node):
    ray_version: str
    enable_in_tree_autoscaling: bool
    autoscaler_options: AutoscalerOptions | None = None
    auth_options: AuthOptions
    gcs_fault_tolerance_options: FaultTolerance | None = None
    head_group_spec: HeadGroup
    worker_group_specs: tuple[WorkerGroup, ...] = Field(min_length=1)


class RayCluster(Thing):
    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayCluster"] = "RayCluster"
    spec: ClusterSpec


class JobSpec(Node):
    entrypoint: str
    submission_mode: Literal["K8sJobMode"] = "K8sJobMode"
    shutdown_after_job_finishes: Literal[True] = True
    ttl_seconds_after_finished: int = Field(ge=0)
    backoff_limit: int = Field(ge=0)
    submitter_pod_template: PodTemplate
    ray_cluster_spec: ClusterSpec


class RayJob(Thing):
    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayJob"] = "RayJob"
    spec: JobSpec


class UpgradeStrategy(Node):
    type: Literal["NewCluster", "None"] = "NewCluster"


class ServiceSpec(Node):
    serve_config: str
    upgrade_strategy: UpgradeStrategy = UpgradeStrategy()
    ray_cluster_config: ClusterSpec


class RayService(Thing):
    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayService"] = "RayService"
    spec: ServiceSpec


# ---- Serve's config, whose keys are in snake case


class ServeNode(Node):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=None)


class HttpOptions(ServeNode):
    host: str
    port: int


class ServeLogging(ServeNode):
    log_level: Literal["WARNING"] = "WARNING"
    enable_access_log: Literal[False] = False


class Arguments(ServeNode):
    """What `sote.serve.declared:build` takes."""

    recipe: str


class Application(ServeNode):
    name: Literal["sote"] = "sote"
    route_prefix: Literal["/"] = "/"
    import_path: Literal["sote.serve.declared:build"] = "sote.serve.declared:build"
    args: Arguments


class ServeConfig(ServeNode):
    proxy_location: Literal["EveryNode"] = "EveryNode"
    http_options: HttpOptions
    logging_config: ServeLogging = ServeLogging()
    applications: tuple[Application]
