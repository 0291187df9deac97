"""What must hold of every rendered cluster: rights, doors, secrets; and how a wrong profile is answered."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

import sote
from sote.cluster import kube_pods, kube_ray, render
from sote.cluster import recipe as recipes
from sote.cluster.cluster_profile import ClusterProfile
from sote.cluster.errors import RecipeError
from sote.serve import retrying
from sote.serve.recipe import ServeRecipe
from tests.cluster.rendering import PROFILES, SHIPPED, files, leaves, objects, of_kind, pods, profile

FULL = {
    "monitoring_namespace": "monitoring",
    "metrics_secret": "sote-metrics",
    "storage_secret": "sote-storage",
    "redis_address": "redis.example.org:6379",
    "queue": "gpus",
    "ray_ca_secret": "sote-ray-ca",
}


@pytest.fixture(params=["shipped", "everything"], scope="module")
def texts(request: pytest.FixtureRequest) -> dict[str, str]:
    return files(profile() if request.param == "shipped" else profile(kubernetes=FULL))


def containers(texts: dict[str, str]) -> list[dict[str, Any]]:
    return [each for thing in objects(texts) for pod in pods(thing) for each in pod["spec"]["containers"]]


def test_every_pod_has_its_requests_as_limits_and_no_rights(texts: dict[str, str]) -> None:
    assert len(containers(texts)) >= 11
    for each in containers(texts):
        assert each["resources"]["requests"] == each["resources"]["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= each["resources"]["limits"].keys()
        security = each["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
    for thing in objects(texts):
        for pod in pods(thing):
            security = pod["spec"]["securityContext"]
            assert security["runAsNonRoot"]
            assert security["runAsUser"] > 0
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["spec"]["automountServiceAccountToken"] is False


def test_what_a_container_writes_is_a_volume_of_its_pod(texts: dict[str, str]) -> None:
    for thing in objects(texts):
        for pod in pods(thing):
            volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
            claims = {each["metadata"]["name"] for each in thing["spec"].get("volumeClaimTemplates", [])}
            for each in pod["spec"]["containers"]:
                mounts = {mount["mountPath"]: mount["name"] for mount in each["volumeMounts"]}
                assert set(mounts.values()) <= volumes | claims
                if each["name"].startswith("ray"):
                    assert {"/tmp", kube_pods.HOME} <= mounts.keys()


def test_every_ray_pod_is_probed_and_only_the_autoscaler_holds_a_key_to_kubernetes(texts: dict[str, str]) -> None:
    for each in containers(texts):
        if each["name"] in ("ray-head", "ray-worker"):
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= each.keys()
        assert kube_pods.API not in [mount["name"] for mount in each["volumeMounts"]]
    scalers = [
        value for place, value in leaves(objects(texts)) if "volumeMounts" in place and "autoscalerOptions" in place
    ]
    assert kube_pods.API in scalers


def test_no_value_of_a_secret_stands_anywhere(texts: dict[str, str]) -> None:
    kinds = {thing["kind"] for thing in objects(texts)}
    assert "Secret" not in kinds
    for place, value in leaves(objects(texts)):
        if re.search("password|token|secret", place[-1], re.IGNORECASE):
            assert value in (False, "token") or re.fullmatch("[a-z0-9-]{1,20}", str(value)), place
    for each in containers(texts):
        for env in each.get("env", []):
            is_place = env.get("value", "").startswith("/")
            assert "valueFrom" in env or is_place or not re.search("TOKEN|KEY|SECRET|PASSWORD", env["name"])


def test_no_service_is_reached_from_outside_and_only_the_endpoint_has_an_ingress(texts: dict[str, str]) -> None:
    for place, value in leaves(objects(texts)):
        if place[-1] in ("type", "serviceType"):
            assert value not in ("LoadBalancer", "NodePort")
        assert place[-1] not in ("hostPort", "hostNetwork", "hostPath", "privileged", "externalIPs")
    [ingress] = of_kind(texts, "Ingress")
    assert ingress["spec"]["tls"] == [{"hosts": ["sote.example.org"], "secretName": "sote-tls"}]
    [path] = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "sote-serve-serve-svc", "port": {"name": "serve"}}


def policies(texts: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {thing["metadata"]["name"]: thing["spec"] for thing in of_kind(texts, "NetworkPolicy")}


def test_everything_is_closed_and_the_dashboard_opens_to_the_operator_only(texts: dict[str, str]) -> None:
    found = policies(texts)
    assert found["sote-closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for name, spec in found.items():
        for rule in spec.get("ingress", []):
            [peer] = rule["from"]
            ports = {each["port"] for each in rule.get("ports", [])}
            space = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
            if space is None:  # pods of the namespace: those of one part among themselves, heads to Redis
                parts = peer["podSelector"]["matchExpressions"][0]["values"]
                assert parts == [name.removeprefix("sote-")] or (name == "sote-redis" and ports == {6379})
            else:
                allowed = {"kuberay-system": {8265, 8000}, "ingress-nginx": {8000}, "monitoring": {8080, 8000}}[space]
                assert ports
                assert ports <= allowed
    labelled = {pod["metadata"]["labels"]["sote/part"] for thing in objects(texts) for pod in pods(thing)}
    assert labelled == {
        spec["podSelector"]["matchLabels"]["sote/part"] for spec in found.values() if spec["podSelector"]
    }


def test_ray_asks_for_its_token_everywhere_and_puts_no_work_on_a_head(texts: dict[str, str]) -> None:
    specs = [
        thing["spec"].get("rayClusterSpec") or thing["spec"].get("rayClusterConfig") or thing["spec"]
        for thing in objects(texts)
        if thing["kind"] in ("RayCluster", "RayJob", "RayService")
    ]
    assert len(specs) == 4
    for spec in specs:
        assert spec["authOptions"] == {"mode": "token", "secretName": "sote-ray-token"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def groups(texts: dict[str, str], kind: str, name: str) -> dict[str, dict[str, Any]]:
    [found] = [thing["spec"] for thing in of_kind(texts, kind) if thing["metadata"]["name"] == name]
    spec = found.get("rayClusterSpec") or found.get("rayClusterConfig") or found
    return {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def test_a_group_says_what_it_has_as_detect_would() -> None:
    found = groups(files(), "RayCluster", "sote")
    assert list(found) == ["a100", "l4", "arc", "decode"]
    labels = {"accel": "xpu", "device-memory-gb": "16", "ray.io/accelerator-type": "A770"}
    assert found["arc"]["labels"] == labels
    assert found["arc"]["resources"] == {"GPU": "1"}  # the operator does not know Intel's resource
    limits = found["arc"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["gpu.intel.com/xe"] == "1"
    assert found["arc"]["template"]["spec"]["containers"][0]["image"].endswith(f":{sote.__version__}-openvino")
    assert found["arc"]["template"]["spec"]["securityContext"]["supplementalGroups"] == [992]
    assert "resources" not in found["a100"]
    assert found["decode"]["labels"] == {"accel": "cpu"}
    slots = profile(groups=[{**profile().groups[3].model_dump(), "use": ["caption", "decode", "train", "serve"]}])
    slots = slots.model_copy(update={"groups": (slots.groups[0].model_copy(update={"device_slots": 4}),)})
    assert groups(files(slots), "RayCluster", "sote")["decode"]["resources"] == {"GPU": "4"}


def test_each_job_has_the_groups_of_its_work_and_all_of_their_nodes_where_a_queue_waits_for_them() -> None:
    assert list(groups(files(), "RayJob", "sote-curate")) == ["l4", "arc", "decode"]
    assert list(groups(files(), "RayJob", "sote-train")) == ["a100"]
    assert list(groups(files(), "RayService", "sote-serve")) == ["l4"]
    assert groups(files(), "RayJob", "sote-curate")["l4"]["minReplicas"] == 1
    queued = files(profile(kubernetes=FULL))
    assert groups(queued, "RayJob", "sote-curate")["l4"]["minReplicas"] == 16
    for job in of_kind(queued, "RayJob"):
        assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
        assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False


def test_a_job_runs_our_command_on_the_recipe_that_lies_in_its_head() -> None:
    texts = files()
    for job in of_kind(texts, "RayJob"):
        verb = job["metadata"]["name"].removeprefix("sote-")
        [data] = [each["data"] for each in of_kind(texts, "ConfigMap") if each["metadata"]["name"] == f"sote-{verb}"]
        assert job["spec"]["entrypoint"] == f"sote --address auto {verb} {kube_pods.RECIPES}/{verb}.toml"
        assert list(data) == [f"{verb}.toml"]
        assert job["spec"]["backoffLimit"] > 0
        assert job["spec"]["shutdownAfterJobFinishes"]


def test_serves_config_is_serves_own_and_holds_the_recipe_that_asks_for_keys() -> None:
    [service] = of_kind(files(), "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    kube_ray.ServeConfig.model_validate(config)
    recipe = recipes.loads(config["applications"][0]["args"]["recipe"], ServeRecipe, name="recipe")
    assert recipe == recipes.load(PROFILES / "../recipes/serve.toml", ServeRecipe)
    assert recipe.access.keys == render.KEYS_FILE
    spec = service["spec"]["rayClusterConfig"]
    for pod in pods(spec):
        [container] = pod["spec"]["containers"]
        assert {"name": "keys", "mountPath": kube_pods.KEYS, "readOnly": True} in container["volumeMounts"]
        assert container["env"][-1] == {"name": "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "value": ENVIRONMENT}
    assert spec["gcsFaultToleranceOptions"]["redisAddress"] == "sote-redis:6379"
    assert spec["workerGroupSpecs"][0]["template"]["spec"]["topologySpreadConstraints"]


[ENVIRONMENT] = retrying.ENVIRONMENT.values()


def test_a_redis_is_rendered_unless_there_is_one() -> None:
    assert [each["metadata"]["name"] for each in of_kind(files(), "StatefulSet")] == ["sote-redis"]
    assert not of_kind(files(profile(kubernetes=FULL)), "StatefulSet")
    assert of_kind(files(profile(kubernetes=FULL)), "PodMonitor")
    (rule,) = of_kind(files(profile(kubernetes=FULL)), "PrometheusRule")
    assert "SoteRunStalled" in {each.get("alert") for group in rule["spec"]["groups"] for each in group["rules"]}
    assert not of_kind(files(), "PodMonitor")


def test_two_renderings_are_the_same_text_and_start_with_what_wrote_them() -> None:
    one, other = files(), files(profile())
    assert one == other
    assert all(text.startswith(render.MARK) for text in one.values())


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
@pytest.mark.parametrize("folder", ["", "curate", "train", "serve"])
def test_kustomize_takes_each_folder_and_puts_it_into_the_namespace(tmp_path: Path, folder: str) -> None:
    render.write(tmp_path, files())
    built = subprocess.run(["kubectl", "kustomize", tmp_path / folder], capture_output=True, text=True, check=True)
    for thing in yaml.safe_load_all(built.stdout):
        assert thing["kind"] == "Namespace" or thing["metadata"]["namespace"] == "sote"


Command = Callable[..., tuple[int, str, str]]


def test_the_command_writes_the_files_and_says_what_to_do_next(sote: Command, tmp_path: Path) -> None:
    code, out, err = sote("cluster", "render", "--profile", str(SHIPPED), "--out", str(tmp_path / "out"))
    assert (code, err) == (0, "")
    files_there = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.yaml")}
    assert files_there == files().keys()
    assert "kubectl -n sote create secret generic sote-ray-token" in out
    assert f"kubectl apply -k {tmp_path / 'out'}\n" in out
    assert "sote submit -- VERB RECIPE" in out
    assert sote("cluster", "render", "--profile", str(SHIPPED), "--out", str(tmp_path / "out"))[0] == 0


@pytest.mark.parametrize("name", ["onprem.toml", "aws.toml"])
def test_a_profile_without_kubernetes_gives_the_launchers_file_alone(name: str) -> None:
    assert list(files(profile(PROFILES / name))) == [name.replace("toml", "yaml")]


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (('accel = "xpu"', 'accel = "xpx"'), [r"groups\.2\.accel: input should be 'cuda', 'rocm', 'xpu' or 'cpu'"]),
        (("spot = true\n", "spto = true\n"), [r"groups\.1\.spto: unknown key, did you mean spot"]),
        (('tls_secret = "sote-tls"\n', ""), [r"kubernetes: host is set, so tls_secret must name the certificate"]),
        (('"ghcr.io/sote/sote"', '"ghcr.io/sote/sote:latest"'), [r"kubernetes\.image: string should match pattern"]),
        (('use = ["train"]', 'use = ["decode"]'), [r'recipes\.train: no group has "train" in `use`']),
        (
            ('keys_secret = "sote-keys"\nt', "t"),
            [r"recipes\.serve: kubernetes\.keys_secret: missing; an endpoint on a cluster has keys"],
        ),
        (
            ('storage_claim = "sote"', ""),
            [rf"recipes\.{verb}: run: /shared/runs/\w+ would end with its pod; name a URI" for verb in render.VERBS],
        ),
        (('train = "../recipes/train.toml"', 'train = "none.toml"'), [r"none\.toml: no such recipe file"]),
        (('train = "../recipes/train.toml"', 'train = "curate.toml"'), [r"curate\.toml: no such recipe file"]),
    ],
)
def test_a_wrong_profile_is_answered_by_a_line_for_each_problem(
    sote: Command, tmp_path: Path, change: tuple[str, str], lines: list[str]
) -> None:
    shutil.copytree(PROFILES.parent, tmp_path / "deploy")
    path = tmp_path / "deploy" / "profiles" / "kubernetes.toml"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    code, out, err = sote("cluster", "render", "--profile", str(path), "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    said = err.splitlines()
    assert len(said) == len(lines)
    for line, pattern in zip(said, lines, strict=True):
        assert re.search(pattern, line), line
    assert not (tmp_path / "out").exists()


def test_a_profile_that_says_no_place_is_for_prices_alone() -> None:
    bare = ClusterProfile.model_validate(
        {"groups": [{"name": "a", "use": ["decode"], "cpus": 4, "memory_gb": 8, "max_nodes": 1}]}
    )
    with pytest.raises(RecipeError, match=r"^p: no table says where: kubernetes, machines or cloud$"):
        render.files(bare, {}, name="p")


def test_a_recipe_whose_server_others_cannot_reach_or_anybody_can_is_refused() -> None:
    serve = recipes.load(PROFILES / "../recipes/serve.toml", ServeRecipe)
    alone = serve.model_copy(update={"host": "127.0.0.1"})
    with pytest.raises(RecipeError, match=r"recipes\.serve: host: 127\.0\.0\.1 is not reached from other pods"):
        render.files(profile(), {"serve": alone}, name="p")
    other = ServeRecipe.model_validate(serve.model_dump() | {"access": {"keys": "keys.toml"}})
    with pytest.raises(RecipeError, match=r"recipes\.serve: access\.keys: must be"):
        render.files(profile(), {"serve": other}, name="p")


def test_a_folder_that_holds_anything_else_is_refused_untouched(sote: Command, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.yaml").write_text("kind: Mine\n")
    code, _, err = sote("cluster", "render", "--profile", str(SHIPPED), "--out", str(tmp_path))
    assert code == 2
    assert "deep/mine.yaml: is not of `sote cluster render`" in err
    assert [path.name for path in tmp_path.rglob("*.yaml")] == ["mine.yaml"]


def test_what_a_smaller_profile_does_not_write_is_removed_from_before(tmp_path: Path) -> None:
    render.write(tmp_path, files())
    less = {path: text for path, text in files().items() if not path.startswith("train/")}
    render.write(tmp_path, less)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.yaml")} == less.keys()


def test_with_an_authority_every_ray_container_speaks_tls_and_only_the_makers_see_the_authority() -> None:
    secured = files(profile(kubernetes=FULL | {"ray_ca_secret": "sote-ray-ca"}))
    found = [pod["spec"] for thing in objects(secured) for pod in pods(thing)]
    rays = [spec for spec in found if spec["containers"][0]["name"].startswith("ray-") and "initContainers" in spec]
    assert rays
    for spec in rays:
        (maker,) = spec["initContainers"]
        names = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}
        assert names["RAY_USE_TLS"] == "1"
        mounted = {each["name"] for each in spec["containers"][0]["volumeMounts"]}
        assert "ray-tls" in mounted
        assert "ray-authority" not in mounted
        assert {"ray-tls", "ray-authority"} == {each["name"] for each in maker["volumeMounts"]}
    groups = [thing["spec"] for thing in of_kind(secured, "RayCluster")]
    assert all(any(env["name"] == "RAY_USE_TLS" for env in each["autoscalerOptions"]["env"]) for each in groups)
    assert all("initContainers" not in pod["spec"] for thing in objects(files()) for pod in pods(thing))
