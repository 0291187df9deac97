"""The typed objects refuse what is not theirs."""

import pytest
from pydantic import ValidationError

from sote.cluster import kube, kube_doors, kube_ray


def test_a_field_that_is_mistyped_cannot_be_written() -> None:
    with pytest.raises(ValidationError, match="containerPrt"):
        kube.Port.model_validate({"name": "serve", "containerPrt": 8000})
    with pytest.raises(ValidationError, match="deploymentz"):
        kube_ray.ServeConfig.model_validate({"deploymentz": []})


def test_names_are_written_as_kubernetes_has_them() -> None:
    rule = kube_doors.IngressRule(from_=(kube_doors.Peer(pod_selector=kube.Selector()),))
    assert kube.manifest(rule) == {"from": [{"podSelector": {}}]}
    files = kube.FieldFiles(items=(kube.FieldFile(path="n", field_ref=kube.FieldOf(field_path="metadata.namespace")),))
    assert list(kube.manifest(kube.Projection(downward_api=files))) == ["downwardAPI"]
    assert kube.manifest(kube.Claim(claim_name="c")) == {"claimName": "c"}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (kube.ContainerSecurity, {"readOnlyRootFilesystem": False}),
        (kube.ContainerSecurity, {"capabilities": {"drop": []}}),
        (kube.PodSecurity, {"runAsUser": 0, "runAsGroup": 1, "fsGroup": 1}),
        (kube.ServiceSpec, {"type": "LoadBalancer", "selector": {}, "ports": []}),
        (kube.Env, {"name": "a", "valueFrom": {"value": "b"}}),
        (kube_ray.AuthOptions, {"mode": "disabled", "secretName": "s"}),
        (kube_doors.IngressRule, {"from": []}),
        (kube_doors.IngressSpec, {"ingressClassName": "nginx", "tls": [], "rules": []}),
    ],
)
def test_what_would_open_a_cluster_has_no_words(kind: type[kube.Node], wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(wrong)


def test_a_volume_is_of_one_kind() -> None:
    with pytest.raises(ValidationError, match="must be of exactly one kind"):
        kube.Volume(name="v", empty_dir=kube.EmptyDir(size_limit="1Gi"), config_map=kube.ConfigFiles(name="c"))
