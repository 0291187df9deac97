"""The launcher's files hold against Ray's own checks, and open nothing."""

import copy
import re
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from sote.cluster import launcher
from tests.cluster.rendering import PROFILES, profile

FILES = ["onprem.yaml", "aws.yaml"]


def config(name: str) -> dict[str, Any]:
    texts = launcher.files(profile(PROFILES / name.replace("yaml", "toml")))
    assert list(texts) == [name]
    loaded: dict[str, Any] = yaml.safe_load(texts[name])
    return loaded


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file_and_nothing_in_it_is_left_to_rays_defaults(name: str) -> None:
    written = config(name)
    prepared = prepare_config(copy.deepcopy(written))
    validate_config(prepared)
    for field, value in written.items():
        if field.endswith("_commands") and field not in ("head_setup_commands", "worker_setup_commands"):
            assert prepared[field] == value
    commands = [each for field, value in prepared.items() if field.endswith("_commands") for each in value]
    assert not [each for each in commands if "pip install -U" in each or "ray-wheels" in each]


@pytest.mark.parametrize("name", FILES)
def test_every_ray_is_started_with_the_token_and_the_dashboard_on_loopback(name: str) -> None:
    written = config(name)
    starts = [*written["head_start_ray_commands"], *written["worker_start_ray_commands"]]
    starts = [each for each in starts if "ray start" in each]
    assert len(starts) == 2
    for each in starts:
        assert "RAY_AUTH_MODE=token" in each
        assert "RAY_USAGE_STATS_ENABLED=0" in each
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "--num-cpus=0" in starts[0]
    assert "$(python -m sote.cluster.detect)" in starts[1]
    assert written["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_instances_are_private_and_in_a_group_that_ray_does_not_open() -> None:
    written = config("aws.yaml")
    assert written["provider"]["use_internal_ips"]
    assert "security_group" not in written["provider"]
    for name, each in written["available_node_types"].items():
        assert each["node_config"]["SecurityGroupIds"] == ["sg-0123456789abcdef0"]
        assert each["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert ("InstanceMarketOptions" in each["node_config"]) == (name in ("worker-a10", "worker-decode"))
        assert not [label for label in each["labels"] if label.startswith("ray.io/")]
    assert written["available_node_types"]["worker-a100"]["resources"] == {"CPU": 96, "GPU": 8}
    assert written["available_node_types"]["worker-a100"]["labels"] == {"accel": "cuda", "device-memory-gb": "80"}


def test_a_node_type_without_a_group_or_with_an_unknown_key_cannot_be_written() -> None:
    written = config("aws.yaml")
    node = written["available_node_types"]["worker-a10"]
    with pytest.raises(ValidationError, match="SecurityGroupIds"):
        launcher.NodeType.model_validate(node | {"node_config": node["node_config"] | {"SecurityGroupIds": []}})
    with pytest.raises(ValidationError, match="max_worker"):
        launcher.NodeType.model_validate(node | {"max_worker": 3})
    written["available_node_types"]["worker-a10"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(written))


def test_a_cloud_without_instance_types_is_said_at_once() -> None:
    shipped = profile(PROFILES / "aws.toml").model_dump()
    shipped["head"]["instance_type"] = shipped["groups"][1]["instance_type"] = None
    with pytest.raises(ValidationError, match=re.escape("head, a10: must have instance_type")):
        profile(PROFILES / "aws.toml", **shipped)
