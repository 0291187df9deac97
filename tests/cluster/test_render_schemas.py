"""The rendered objects against the operator's own definitions, where SOTE_KUBERAY_CRDS names a folder of them.

git clone --depth 1 --branch v1.7.0 https://github.com/ray-project/kuberay
SOTE_KUBERAY_CRDS=kuberay/ray-operator/config/crd/bases python -m pytest tests/cluster/test_render_schemas.py
"""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.rendering import files, objects, profile

FOLDER = os.environ.get("SOTE_KUBERAY_CRDS")
KINDS = {"RayCluster", "RayJob", "RayService"}
pytestmark = pytest.mark.skipif(FOLDER is None, reason="SOTE_KUBERAY_CRDS names no folder of KubeRay's definitions")


def strict(schema: Any) -> Any:
    """An OpenAPI schema of Kubernetes as a JSON schema that takes no unknown field."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    kept = {
        name: strict(value)
        for name, value in schema.items()
        if not name.startswith("x-kubernetes") and name != "properties"
    }
    if "properties" in schema:
        kept["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        kept.setdefault("additionalProperties", False)
    return kept


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    found = {}
    for path in Path(str(FOLDER)).glob("*.yaml"):
        definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]
        if definition["names"]["kind"] in KINDS:
            [stored] = [version for version in definition["versions"] if version["storage"]]
            schema = strict(stored["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[definition["names"]["kind"]] = jsonschema.Draft7Validator(schema)
    return found


@pytest.mark.parametrize("tables", [{}, {"kubernetes": {"queue": "gpus", "redis_address": "redis:6379"}}])
def test_the_operator_knows_every_field_that_is_written(schemas: dict[str, Any], tables: dict[str, Any]) -> None:
    things = [thing for thing in objects(files(profile(**tables))) if thing["kind"] in KINDS]
    assert {thing["kind"] for thing in things} == KINDS
    for thing in things:
        problems = [
            f"{'/'.join(map(str, each.path))}: {each.message}" for each in schemas[thing["kind"]].iter_errors(thing)
        ]
        assert not problems


def test_a_field_that_the_operator_does_not_know_is_found(schemas: dict[str, Any]) -> None:
    [thing] = [thing for thing in objects(files()) if thing["kind"] == "RayCluster"]
    thing["spec"]["headGroupSpec"]["template"]["spec"]["hostNetwrok"] = True
    assert list(schemas["RayCluster"].iter_errors(thing))
