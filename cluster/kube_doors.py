"""Who may reach whom in Kubernetes, and what may be taken away, typed as in `kube`.

Source: Kubernetes' API reference, v1.32; Prometheus Operator's PodMonitor, v1; kustomize's kustomization.
Kind: pure.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from sote.cluster.kube import KeyOf, Node, Selector, Strings, Thing


class PolicyPort(Node):
    port: int
    protocol: Literal["TCP"] = "TCP"


class Peer(Node):
    """Pods of this namespace, or of those that `namespace_selector` names."""

    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None


class IngressRule(Node):
    """`from_`: who; `ports`: where to, everywhere where there are none."""

    from_: tuple[Peer, ...] = Field(min_length=1)
    ports: tuple[PolicyPort, ...] | None = None


class PolicySpec(Node):
    pod_selector: Selector
    policy_types: tuple[Literal["Ingress"]] = ("Ingress",)
    ingress: tuple[IngressRule, ...] | None = None


class NetworkPolicy(Thing):
    api_version: Literal["networking.k8s.io/v1"] = "networking.k8s.io/v1"
    kind: Literal["NetworkPolicy"] = "NetworkPolicy"
    spec: PolicySpec


class BudgetSpec(Node):
    max_unavailable: int
    selector: Selector


class DisruptionBudget(Thing):
    api_version: Literal["policy/v1"] = "policy/v1"
    kind: Literal["PodDisruptionBudget"] = "PodDisruptionBudget"
    spec: BudgetSpec


class BackendPort(Node):
    name: str


class BackendService(Node):
    name: str
    port: BackendPort


class Backend(Node):
    service: BackendService


class Path(Node):
    path: Literal["/"] = "/"
    path_type: Literal["Prefix"] = "Prefix"
    backend: Backend


class Paths(Node):
    paths: tuple[Path, ...]


class Rule(Node):
    host: str
    http: Paths


class Tls(Node):
    hosts: tuple[str, ...]
    secret_name: str


class IngressSpec(Node):
    """TLS is not optional."""

    ingress_class_name: str
    tls: tuple[Tls, ...] = Field(min_length=1)
    rules: tuple[Rule, ...]


class Ingress(Thing):
    api_version: Literal["networking.k8s.io/v1"] = "networking.k8s.io/v1"
    kind: Literal["Ingress"] = "Ingress"
    spec: IngressSpec


class Authorization(Node):
    type: Literal["Bearer"] = "Bearer"
    credentials: KeyOf


class Endpoint(Node):
    port: str
    path: str = "/metrics"
    interval: str = "30s"
    authorization: Authorization | None = None


class MonitorSpec(Node):
    selector: Selector
    pod_metrics_endpoints: tuple[Endpoint, ...]


class PodMonitor(Thing):
    api_version: Literal["monitoring.coreos.com/v1"] = "monitoring.coreos.com/v1"
    kind: Literal["PodMonitor"] = "PodMonitor"
    spec: MonitorSpec


class RuleGroup(Node):
    name: str
    rules: tuple[Mapping[str, Any], ...]  # as they stand in cluster/deploy/alerts.yaml


class RuleSpec(Node):
    groups: tuple[RuleGroup, ...]


class PrometheusRule(Thing):
    api_version: Literal["monitoring.coreos.com/v1"] = "monitoring.coreos.com/v1"
    kind: Literal["PrometheusRule"] = "PrometheusRule"
    spec: RuleSpec


class Kustomization(Node):
    api_version: Literal["kustomize.config.k8s.io/v1beta1"] = "kustomize.config.k8s.io/v1beta1"
    kind: Literal["Kustomization"] = "Kustomization"
    namespace: str
    resources: tuple[str, ...] = Field(min_length=1)


def labelled(labels: Strings) -> Selector:
    """What has these labels."""
    return Selector(match_labels=labels)
