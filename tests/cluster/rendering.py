"""What tests of rendered clusters look at: a profile's files, their objects, the pods in them."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sote.cluster import cli, render
from sote.cluster import recipe as recipes
from sote.cluster.cluster_profile import ClusterProfile

TOP = Path(__file__).resolve().parents[2]
PROFILES = TOP / "cluster" / "deploy" / "profiles"
SHIPPED = PROFILES / "kubernetes.toml"


def profile(path: Path = SHIPPED, **tables: Any) -> ClusterProfile:
    """A profile; `tables` are put over its own."""
    loaded = recipes.load(path, ClusterProfile).model_dump()
    for name, value in tables.items():
        loaded[name] = loaded[name] | value if isinstance(loaded[name], dict) and value is not None else value
    return ClusterProfile.model_validate(loaded)


def files(of: ClusterProfile | None = None) -> dict[str, str]:
    """The text of each file; without a profile, of the shipped one."""
    return dict(_shipped()) if of is None else _files(of)


@functools.cache
def _shipped() -> dict[str, str]:
    return _files(profile())


def _files(of: ClusterProfile) -> dict[str, str]:
    named = {verb: getattr(of.recipes, verb) for verb in render.VERBS}
    given = {verb: cli.load_for(verb, PROFILES / path) for verb, path in named.items() if path}
    return render.files(of, given, name="kubernetes.toml")


def objects(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    return [thing for text in texts.values() for thing in yaml.load_all(text, Loader=yaml.CSafeLoader)]


def of_kind(texts: Mapping[str, str], kind: str) -> list[dict[str, Any]]:
    return [thing for thing in objects(texts) if thing["kind"] == kind]


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod template anywhere in an object."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value
        for each in value.values():
            yield from pods(each)
    elif isinstance(value, list):
        for each in value:
            yield from pods(each)


def leaves(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every plain value in an object, with its place."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from leaves(each, (*at, str(name)))
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each, at)
    else:
        yield at, value
