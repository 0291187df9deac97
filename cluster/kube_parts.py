"""The objects of a profile, part by part: what stands always, a cluster to submit to, one job, the endpoint.

Each part has its own pods, and only pods of one part reach each other. From outside come the operator (to the heads),
Prometheus (to the metrics) and the ingress controller (to the endpoint's port); everything else is refused.

Kind: pure, but for reading the alerts.
"""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import yaml

from sote.cluster import kube as k
from sote.cluster import kube_doors as doors
from sote.cluster import kube_pods as pods
from sote.cluster import kube_ray as ray
from sote.cluster import kube_tls
from sote.cluster.cluster_profile import ClusterProfile, Group, Kubernetes
from sote.cluster.kube import Thing
from sote.cluster.kube_pods import Part, Place

IDLE_SECONDS: Final = 300  # before the autoscaler gives a node back
JOB_TRIES: Final = 3  # more clusters for a job whose own failed; it continues its run folder
JOB_KEPT_SECONDS: Final = 300  # a job's cluster after its end, to read its logs
# of nginx's ingress controller; others pass them by. Pictures are sent (16 MiB), and painted for minutes
ANNOTATIONS: Final = {
    "nginx.ingress.kubernetes.io/proxy-body-size": "16m",
    "nginx.ingress.kubernetes.io/proxy-read-timeout": "600",
    "nginx.ingress.kubernetes.io/proxy-buffering": "off",  # events are sent as they come
    "nginx.ingress.kubernetes.io/ssl-redirect": "true",
}
ALERTS: Final = Path(__file__).parent / "deploy" / "alerts.yaml"
RESTRICTED: Final = {"pod-security.kubernetes.io/enforce": "restricted"}  # no pod here may do more than ours do


def ground(profile: ClusterProfile, kubernetes: Kubernetes) -> dict[str, tuple[Thing, ...]]:
    """What stands before anything runs, by file."""
    name = profile.name
    closed = doors.NetworkPolicy(
        metadata=k.Metadata(name=f"{name}-closed"), spec=doors.PolicySpec(pod_selector=k.Selector())
    )
    files: dict[str, tuple[Thing, ...]] = {
        "namespace.yaml": (k.Namespace(metadata=k.Metadata(name=kubernetes.namespace, labels=RESTRICTED)),),
        "access.yaml": (k.ServiceAccount(metadata=k.Metadata(name=f"{name}-worker")), closed),
    }
    if kubernetes.redis_address is None:
        heads = _peers(profile, ("cluster", "serve"))
        policy = _policy(profile, "redis", (_rule(heads, pods.GCS_PORT),))
        files["redis.yaml"] = (*pods.redis(profile, kubernetes), policy)
    if kubernetes.monitoring_namespace is not None:
        files["monitor.yaml"] = _monitors(profile, kubernetes)
    return files


def _monitors(profile: ClusterProfile, kubernetes: Kubernetes) -> tuple[Thing, ...]:
    """What Prometheus' operator makes of it: whom to ask, and when to raise an alarm."""
    monitored = k.Selector(
        match_labels={"app.kubernetes.io/part-of": profile.name},
        match_expressions=(k.Expression(key="ray.io/node-type", values=("head", "worker")),),
    )
    endpoints = [doors.Endpoint(port="metrics")]
    if kubernetes.metrics_secret is not None:
        shown = doors.Authorization(credentials=k.KeyOf(name=kubernetes.metrics_secret, key="key"))
        endpoints.append(doors.Endpoint(port="serve", authorization=shown))
    asked = doors.MonitorSpec(selector=monitored, pod_metrics_endpoints=tuple(endpoints))
    rules = doors.RuleSpec.model_validate(yaml.safe_load(ALERTS.read_text(encoding="utf-8")))
    named = k.Metadata(name=profile.name)
    return doors.PodMonitor(metadata=named, spec=asked), doors.PrometheusRule(metadata=named, spec=rules)


def cluster(place: Place, groups: Sequence[Group]) -> tuple[Thing, ...]:
    """A cluster that stays, for `sote submit`."""
    spec = _cluster(place, groups, survives=True)
    head = ray.RayCluster(metadata=k.Metadata(name=place.profile.name), spec=spec)
    return head, *_policies(place), _budget(place, "head", 0)


def job(place: Place, groups: Sequence[Group], recipe: str) -> tuple[Thing, ...]:
    """A run of a recipe on a cluster of its own, which ends with it. A try again continues the run folder.

    With Kueue the nodes are all there or none: it lets no cluster in that would grow.
    """
    profile, kubernetes, part = place.profile, place.kubernetes, place.part
    name = f"{profile.name}-{part}"
    queue = {"kueue.x-k8s.io/queue-name": kubernetes.queue} if kubernetes.queue else None
    spec = ray.JobSpec(
        entrypoint=f"sote --address auto {part} {pods.RECIPES}/{part}.toml",
        ttl_seconds_after_finished=JOB_KEPT_SECONDS,
        backoff_limit=JOB_TRIES,
        submitter_pod_template=pods.submitter(place),
        ray_cluster_spec=_cluster(place, groups, survives=False, is_whole=queue is not None),
    )
    return (
        k.ConfigMap(metadata=k.Metadata(name=name), data={f"{part}.toml": recipe}),
        ray.RayJob(metadata=k.Metadata(name=name, labels=queue), spec=spec),
        *_policies(place),
        _budget(place, "head", 0),
    )


def endpoint(place: Place, groups: Sequence[Group], recipe: str) -> tuple[Thing, ...]:
    """The endpoint. Its recipe stands in Serve's config, so that a new one is taken over by the cluster that runs."""
    kubernetes, port = place.kubernetes, place.port
    if port is None:
        raise ValueError("an endpoint has a port")
    name = f"{place.profile.name}-serve"
    config = ray.ServeConfig(
        http_options=ray.HttpOptions(host="0.0.0.0", port=port),  # noqa: S104  of a pod, behind policies
        applications=(ray.Application(args=ray.Arguments(recipe=recipe)),),
    )
    spec = ray.ServiceSpec(
        serve_config=yaml.safe_dump(k.manifest(config), sort_keys=False),
        ray_cluster_config=_cluster(place, groups, survives=True),
    )
    things: list[Thing] = [ray.RayService(metadata=k.Metadata(name=name), spec=spec), *_policies(place)]
    things.append(_budget(place, "worker", 1))
    if kubernetes.host is not None and kubernetes.tls_secret is not None:
        backend = doors.BackendService(name=f"{name}-serve-svc", port=doors.BackendPort(name="serve"))
        paths = doors.Paths(paths=(doors.Path(backend=doors.Backend(service=backend)),))
        inside = doors.IngressSpec(
            ingress_class_name=kubernetes.ingress_class,
            tls=(doors.Tls(hosts=(kubernetes.host,), secret_name=kubernetes.tls_secret),),
            rules=(doors.Rule(host=kubernetes.host, http=paths),),
        )
        things.append(doors.Ingress(metadata=k.Metadata(name=name, annotations=ANNOTATIONS), spec=inside))
    return tuple(things)


def _cluster(place: Place, groups: Sequence[Group], *, survives: bool, is_whole: bool = False) -> ray.ClusterSpec:
    """`survives`: Ray keeps its state in Redis, so work outlives the head. `is_whole`: all nodes from the start."""
    profile, kubernetes = place.profile, place.kubernetes
    scaler = ray.AutoscalerOptions(
        idle_timeout_seconds=IDLE_SECONDS,
        resources=k.Resources.exactly(pods.AUTOSCALER),
        env=kube_tls.environment(kubernetes) or None,
        volume_mounts=(*pods.autoscaler_mounts(), *kube_tls.mounts(kubernetes)),
    )
    return ray.ClusterSpec(
        ray_version=metadata.version("ray"),
        enable_in_tree_autoscaling=not is_whole,
        autoscaler_options=None if is_whole else scaler,
        auth_options=ray.AuthOptions(secret_name=kubernetes.token_secret),
        gcs_fault_tolerance_options=_tolerance(profile, kubernetes) if survives else None,
        head_group_spec=ray.HeadGroup(
            ray_start_params={"num-cpus": "0", "num-gpus": "0"}, template=pods.head(place, profile.head)
        ),
        worker_group_specs=tuple(_group(place, group, is_whole=is_whole) for group in groups),
    )


def _tolerance(profile: ClusterProfile, kubernetes: Kubernetes) -> ray.FaultTolerance:
    password = k.ValueFrom(secret_key_ref=k.KeyOf(name=kubernetes.redis_secret, key="password"))
    return ray.FaultTolerance(
        redis_address=kubernetes.redis_address or f"{profile.name}-redis:{pods.GCS_PORT}",
        redis_password=ray.RedisPassword(value_from=password),
    )


def _group(place: Place, group: Group, *, is_whole: bool) -> ray.WorkerGroup:
    """A job's groups start with a node each: what a run does not see when it starts, it does not count on."""
    least = group.min_nodes if place.part == "cluster" else max(1, group.min_nodes)
    least = group.max_nodes if is_whole else least
    # The operator counts the limits of NVIDIA and AMD; Intel's resource and slots of CPU nodes it does not know
    is_counted = (group.resource_name or "").endswith("gpu")
    return ray.WorkerGroup(
        group_name=group.name,
        replicas=least,
        min_replicas=least,
        max_replicas=group.max_nodes,
        labels=pods.node_labels(group),
        resources={"GPU": str(group.slots)} if group.slots and not is_counted else None,
        template=pods.worker(place, group),
    )


def _policies(place: Place) -> tuple[Thing, ...]:
    """Who reaches the pods of a part: one another; the operator their head and Serve's health; Prometheus."""
    profile, kubernetes = place.profile, place.kubernetes
    served = (place.port,) if place.port else ()
    rules = [
        _rule(_peers(profile, (place.part,))),
        _rule(_namespace(kubernetes.operator_namespace), pods.DASHBOARD_PORT, *served),
    ]
    if kubernetes.monitoring_namespace is not None:
        asked = served if kubernetes.metrics_secret is not None else ()
        rules.append(_rule(_namespace(kubernetes.monitoring_namespace), pods.METRICS_PORT, *asked))
    if served and kubernetes.host is not None:
        rules.append(_rule(_namespace(kubernetes.ingress_namespace), *served))
    return (_policy(profile, place.part, tuple(rules)),)


def _policy(profile: ClusterProfile, part: str, rules: tuple[doors.IngressRule, ...]) -> doors.NetworkPolicy:
    return doors.NetworkPolicy(
        metadata=k.Metadata(name=f"{profile.name}-{part}"),
        spec=doors.PolicySpec(pod_selector=doors.labelled(pods.labels(profile, part)), ingress=rules),
    )


def _rule(peer: doors.Peer, *ports: int) -> doors.IngressRule:
    return doors.IngressRule(from_=(peer,), ports=tuple(doors.PolicyPort(port=port) for port in ports) or None)


def _peers(profile: ClusterProfile, parts: tuple[Part, ...]) -> doors.Peer:
    those = k.Expression(key="sote/part", values=parts)
    own = {"app.kubernetes.io/part-of": profile.name}
    return doors.Peer(pod_selector=k.Selector(match_labels=own, match_expressions=(those,)))


def _namespace(name: str) -> doors.Peer:
    return doors.Peer(namespace_selector=doors.labelled({"kubernetes.io/metadata.name": name}))


def _budget(place: Place, kind: str, unavailable: int) -> doors.DisruptionBudget:
    """How many pods of a kind an upgrade of nodes may take at once. A head with drivers on it is waited for: they end
    with it. The endpoint's has none, for its state is in Redis and its workers answer without it."""
    own = place.labels | {"ray.io/node-type": kind}
    spec = doors.BudgetSpec(max_unavailable=unavailable, selector=doors.labelled(own))
    return doors.DisruptionBudget(metadata=k.Metadata(name=f"{place.profile.name}-{place.part}-{kind}"), spec=spec)
