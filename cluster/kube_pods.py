"""The pods of a profile: how large, of which image, with which rights and labels; Redis, which keeps Ray's state.

Every pod runs as USER without any right, on a root that it cannot write: what it writes lies in volumes that end with
it, or on the claim. Nothing but the autoscaler's container holds a key to Kubernetes' API.

Kind: pure.
"""

from dataclasses import dataclass
from typing import Final, Literal

import sote
from sote.cluster import devices, kube_tls
from sote.cluster import kube as k
from sote.cluster.cluster_profile import ClusterProfile, Group, Head, Kubernetes, Variant
from sote.cluster.devices import GB, Device
from sote.cluster.kube_doors import labelled

Part = Literal["cluster", "curate", "train", "serve"]
USER: Final = 10_001  # of the image, cluster/deploy/Containerfile
HOME: Final = "/home/sote"
RECIPES: Final = "/etc/sote/recipe"  # where a job's recipe lies in the head's pod
KEYS: Final = "/etc/sote/keys"  # where the endpoint's keys lie in the pods of `serve`
# Kubernetes and its own pods take a part of a node: a core, and of memory 2.6 GB of 32 at Google, 5 % to 8 % elsewhere
SYSTEM_CPUS, SYSTEM_SHARE = 1, 0.1
DISK_SHARE: Final = 0.8  # of a node's disk; the rest holds images of containers, ours of about 12 GB among them
AGENT_PORT, DASHBOARD_PORT, GCS_PORT, METRICS_PORT = 52_365, 8265, 6379, 8080  # Ray's and KubeRay's own
GRACE_SECONDS: Final = 150  # a replica drains for 120 s, drain_seconds of a serve recipe
AUTOSCALER: Final = {"cpu": "500m", "memory": "1Gi"}
SUBMITTER: Final = {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "2Gi"}
REDIS: Final = {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1Gi"}
REDIS_IMAGE: Final = "docker.io/library/redis:7.2.5-bookworm"  # the last under a BSD licence is of 7.2
REDIS_USER: Final = 999  # of that image
# The proxies of Ray Serve ask another replica where one dies: sote.serve.retrying.ENVIRONMENT
PROXY: Final = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "sote.serve.retrying:middlewares"}
TOKEN_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  where the autoscaler looks
API = "kubernetes-api"
TOKEN_SECONDS: Final = 3600
SCRATCH: Final = (k.Mount(name="tmp", mount_path="/tmp"), k.Mount(name="home", mount_path=HOME))  # noqa: S108


@dataclass(frozen=True)
class Place:
    """What a pod belongs to. `port` is the endpoint's, None where none is served."""

    profile: ClusterProfile
    kubernetes: Kubernetes
    part: Part
    port: int | None = None

    @property
    def labels(self) -> dict[str, str]:
        return labels(self.profile, self.part)


def labels(profile: ClusterProfile, part: str) -> dict[str, str]:
    """What all pods of a part carry, and nothing else."""
    return {"app.kubernetes.io/part-of": profile.name, "sote/part": part}


def image_of(kubernetes: Kubernetes, variant: Variant) -> str:
    """The image of this version."""
    return f"{kubernetes.image}:{sote.__version__}" + ("" if variant == "gpu" else f"-{variant}")


def head(place: Place, head: Head) -> k.PodTemplate:
    """The head's pod. The recipe of a job lies in it; KubeRay puts its autoscaler beside the first container."""
    cpus, memory = max(1, head.cpus - SYSTEM_CPUS), int(head.memory_gb * (1 - SYSTEM_SHARE)) - 1
    mounts, volumes = _storage(place)
    if place.part in ("curate", "train"):
        name = f"{place.profile.name}-{place.part}"
        mounts += (k.Mount(name="recipe", mount_path=RECIPES, read_only=True),)
        volumes += (k.Volume(name="recipe", config_map=k.ConfigFiles(name=name)),)
    amounts = _amounts(cpus, memory, head.disk_gb)
    container = _ray(place, "ray-head", "gpu", amounts=amounts, mounts=mounts)
    return k.PodTemplate(
        metadata=k.PodMetadata(labels=place.labels),
        spec=k.PodSpec(
            security_context=_security(USER),
            termination_grace_period_seconds=GRACE_SECONDS,
            node_selector=head.node_selector or None,
            tolerations=_tolerations(*head.taints),
            init_containers=kube_tls.makers(place.kubernetes, container.image),
            containers=(container,),
            volumes=(*volumes, *_scratch(head.disk_gb), _api()),
        ),
    )


def worker(place: Place, group: Group) -> k.PodTemplate:
    """A pod that takes a whole node of the group."""
    mounts, volumes = _storage(place)
    cpus, memory = max(1, group.cpus - SYSTEM_CPUS), int(group.memory_gb * (1 - SYSTEM_SHARE))
    name = group.resource_name
    amounts = _amounts(cpus, memory, group.disk_gb, {name: str(group.devices)} if name else {})
    container = _ray(place, "ray-worker", group.image, amounts=amounts, mounts=mounts)
    own = place.labels | {"sote/group": group.name}
    return k.PodTemplate(
        metadata=k.PodMetadata(labels=own),
        spec=k.PodSpec(
            service_account_name=f"{place.profile.name}-worker",
            security_context=_security(USER, group.device_group),
            termination_grace_period_seconds=GRACE_SECONDS,
            node_selector=group.node_selector or None,
            tolerations=_tolerations(*([name] if name else []), *group.taints),
            topology_spread_constraints=_spread(own) if {"serve", "caption"} & set(group.use) else None,
            init_containers=kube_tls.makers(place.kubernetes, container.image),
            containers=(container,),
            volumes=(*volumes, *_scratch(group.disk_gb)),
        ),
    )


def submitter(place: Place) -> k.PodTemplate:
    """The pod that hands a job to its cluster and shows its log."""
    container = k.Container(
        name="ray-job-submitter",
        image=image_of(place.kubernetes, "gpu"),
        env=(k.Env(name="HOME", value=HOME),),
        resources=k.Resources.exactly(SUBMITTER),
        volume_mounts=SCRATCH,
    )
    return k.PodTemplate(
        metadata=k.PodMetadata(labels=place.labels),
        spec=k.PodSpec(
            service_account_name=f"{place.profile.name}-worker",
            security_context=_security(USER),
            restart_policy="Never",
            containers=(container,),
            volumes=_scratch(1),
        ),
    )


def autoscaler_mounts() -> tuple[k.Mount, ...]:
    """What the autoscaler's container sees of the head's volumes."""
    return *SCRATCH, k.Mount(name=API, mount_path=TOKEN_FOLDER, read_only=True)


def node_labels(group: Group) -> dict[str, str]:
    """The labels of Ray's nodes: what `sote.cluster.detect` would say on one of them, and the accelerator's name."""
    memory = group.device_memory_gb * GB if group.device_memory_gb else None
    seen = [Device(group.accel, group.device, memory_bytes=memory)] if group.device else []
    return devices.labels_of(seen) | ({"ray.io/accelerator-type": group.device} if group.device else {})


def redis(profile: ClusterProfile, kubernetes: Kubernetes) -> tuple[k.Thing, ...]:
    """One Redis that writes every second what it is told, on a disk that outlives it."""
    name, own = f"{profile.name}-redis", labels(profile, "redis")
    secret = k.KeyOf(name=kubernetes.redis_secret, key="password")
    container = k.Container(
        name="redis",
        image=REDIS_IMAGE,
        command=("redis-server",),
        args=("--dir", "/data", "--appendonly", "yes", "--requirepass", "$(REDIS_PASSWORD)"),
        ports=(k.Port(name="redis", container_port=GCS_PORT),),
        env=(k.Env(name="REDIS_PASSWORD", value_from=k.ValueFrom(secret_key_ref=secret)),),
        resources=k.Resources.exactly(REDIS),
        volume_mounts=(k.Mount(name="data", mount_path="/data"),),
        liveness_probe=k.Probe(tcp_socket=k.TcpSocket(port="redis"), initial_delay_seconds=10),
        readiness_probe=k.Probe(tcp_socket=k.TcpSocket(port="redis")),
    )
    pod = k.PodTemplate(
        metadata=k.PodMetadata(labels=own),
        spec=k.PodSpec(
            service_account_name=f"{profile.name}-worker",
            security_context=_security(REDIS_USER),
            containers=(container,),
        ),
    )
    claim = k.ClaimTemplate(
        metadata=k.Metadata(name="data"), spec=k.ClaimSpec(resources=k.StorageRequest(requests={"storage": "2Gi"}))
    )
    return (
        k.Service(
            metadata=k.Metadata(name=name, labels=own),
            spec=k.ServiceSpec(selector=own, ports=(k.ServicePort(name="redis", port=GCS_PORT),)),
        ),
        k.StatefulSet(
            metadata=k.Metadata(name=name, labels=own),
            spec=k.StatefulSetSpec(
                service_name=name, selector=labelled(own), template=pod, volume_claim_templates=(claim,)
            ),
        ),
    )


def _amounts(cpus: int, memory_gb: int, disk_gb: int, more: dict[str, str] | None = None) -> k.Resources:
    disk = f"{int(disk_gb * DISK_SHARE)}Gi"
    return k.Resources.exactly({"cpu": str(cpus), "memory": f"{memory_gb}Gi", "ephemeral-storage": disk} | (more or {}))


def _security(user: int, group: int | None = None) -> k.PodSecurity:
    """`group` is one more, such as that of device files."""
    more = (group,) if group else None
    return k.PodSecurity(run_as_user=user, run_as_group=user, fs_group=user, supplemental_groups=more)


def _ray(
    place: Place, name: str, variant: Variant, *, amounts: k.Resources, mounts: tuple[k.Mount, ...]
) -> k.Container:
    """A container with Ray in it. Its token comes from KubeRay (`authOptions`). Ray's agent says whether its node is
    well; a pod of the endpoint's workers takes requests where Serve's proxy answers."""
    kubernetes = place.kubernetes
    is_head, serves = name == "ray-head", name != "ray-head" and place.part == "serve"
    ports = {"gcs": GCS_PORT, "dashboard": DASHBOARD_PORT} if is_head else {}
    ports |= {"metrics": METRICS_PORT} | ({"serve": place.port} if place.port else {})
    healthy = k.HttpGet(path="/api/healthz", port=AGENT_PORT)
    ready = k.HttpGet(path="/-/healthz", port="serve") if serves else healthy
    secret = kubernetes.storage_secret
    return k.Container(
        name=name,
        image=image_of(kubernetes, variant),
        ports=tuple(k.Port(name=each, container_port=port) for each, port in ports.items()),
        env=_environment(place),
        env_from=(k.EnvFrom(secret_ref=k.Named(name=secret)),) if secret else None,
        resources=amounts,
        volume_mounts=mounts,
        startup_probe=k.Probe(http_get=healthy, period_seconds=5, failure_threshold=60),
        liveness_probe=k.Probe(http_get=healthy, failure_threshold=30),  # a busy node answers late
        readiness_probe=k.Probe(http_get=ready, period_seconds=5, failure_threshold=2 if serves else 10),
    )


def _environment(place: Place) -> tuple[k.Env, ...]:
    kubernetes = place.kubernetes
    kept = kubernetes.storage_path if kubernetes.storage_claim else f"{HOME}/.cache"
    values = {"HOME": HOME, "TMPDIR": "/tmp", "HF_HOME": f"{kept}/huggingface"}  # noqa: S108  a volume of the pod
    values |= {"RAY_USAGE_STATS_ENABLED": "0"} | (PROXY if place.part in ("serve", "cluster") else {})
    return *(k.Env(name=name, value=value) for name, value in values.items()), *kube_tls.environment(kubernetes)


def _scratch(disk_gb: int) -> tuple[k.Volume, ...]:
    limit = k.EmptyDir(size_limit=f"{max(1, int(disk_gb * DISK_SHARE))}Gi")
    return k.Volume(name="tmp", empty_dir=limit), k.Volume(name="home", empty_dir=limit)


def _storage(place: Place) -> tuple[tuple[k.Mount, ...], tuple[k.Volume, ...]]:
    """What every Ray container mounts, and the volumes of that beside `_scratch`: the claim, the endpoint's keys."""
    kubernetes = place.kubernetes
    mounts, volumes = [*SCRATCH, *kube_tls.mounts(kubernetes)], list(kube_tls.volumes(kubernetes))
    if kubernetes.storage_claim:
        mounts.append(k.Mount(name="storage", mount_path=kubernetes.storage_path))
        claim = k.Claim(claim_name=kubernetes.storage_claim)
        volumes.append(k.Volume(name="storage", persistent_volume_claim=claim))
    if kubernetes.keys_secret and place.part == "serve":
        mounts.append(k.Mount(name="keys", mount_path=KEYS, read_only=True))
        keys = k.SecretFiles(secret_name=kubernetes.keys_secret, items=(k.Item(key="keys.toml", path="keys.toml"),))
        volumes.append(k.Volume(name="keys", secret=keys))
    return tuple(mounts), tuple(volumes)


def _api() -> k.Volume:
    """What a service account's token folder holds, for the autoscaler's container alone."""
    namespace = k.FieldFile(path="namespace", field_ref=k.FieldOf(field_path="metadata.namespace"))
    sources = (
        k.Projection(service_account_token=k.TokenFile(path="token", expiration_seconds=TOKEN_SECONDS)),
        k.Projection(config_map=k.ConfigFiles(name="kube-root-ca.crt", items=(k.Item(key="ca.crt", path="ca.crt"),))),
        k.Projection(downward_api=k.FieldFiles(items=(namespace,))),
    )
    return k.Volume(name=API, projected=k.Projected(sources=sources))


def _tolerations(*keys: str) -> tuple[k.Toleration, ...] | None:
    return tuple(k.Toleration(key=key) for key in keys) or None


def _spread(own: dict[str, str]) -> tuple[k.Spread, ...]:
    return (k.Spread(topology_key="topology.kubernetes.io/zone", label_selector=labelled(own)),)
