"""A profile as files: Kubernetes' manifests, Ray's launcher files; everything that is wrong with it said at once.

    DIR/kustomization.yaml    kubectl apply -k DIR          what stands always, and a cluster for `sote submit`
    DIR/curate/, DIR/train/   kubectl apply -k DIR/curate   one run of the profile's recipe, on a cluster of its own
    DIR/serve/                kubectl apply -k DIR/serve    the endpoint
    DIR/onprem.yaml, aws.yaml ray up DIR/onprem.yaml

No file holds a secret: they are named, and `steps` says how to make them.

Kind: pure, but for files.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml

import sote
from sote.cluster import kube, kube_parts, launcher, storage
from sote.cluster import recipe as recipes
from sote.cluster.cluster_profile import ClusterProfile, Kubernetes, Use
from sote.cluster.errors import RecipeError, RunFolderError
from sote.cluster.kube import Node
from sote.cluster.kube_doors import Kustomization
from sote.cluster.kube_pods import KEYS, Place
from sote.cluster.recipe import Recipe

Verb = Literal["curate", "train", "serve"]
USES: Final[dict[Verb, tuple[Use, ...]]] = {"curate": ("decode", "caption"), "train": ("train",), "serve": ("serve",)}
MARK: Final = "# Written by `sote cluster render"  # how every file of ours begins
KEYS_FILE: Final = f"{KEYS}/keys.toml"
ANY_HOST: Final = "0.0.0.0"  # noqa: S104  of a pod, behind policies and keys
URI: Final = re.compile(r"[a-z][a-z0-9+.-]*://")


def files(profile: ClusterProfile, given: Mapping[Verb, Recipe], *, name: str) -> dict[str, str]:
    """The text of each file by its path. `given` are the recipes that the profile names, `name` its own for people.

    Raises RecipeError with a line for each problem that the profile and its recipes have together.
    """
    if problems := _problems(profile, given):
        raise RecipeError("\n".join(f"{name}: {problem}" for problem in problems))
    title = f"{MARK} --profile {name}` of Sote {sote.__version__}: change the profile, not this file.\n"
    texts = launcher.files(profile)
    if profile.kubernetes is not None:
        texts |= _manifests(profile, profile.kubernetes, given)
    return {path: title + text for path, text in sorted(texts.items())}


def write(out: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write the files below `out`, and remove those of ours there that are not among them.

    Raises RunFolderError if anything lies there that `sote cluster render` did not write; nothing is touched then.
    """
    there = [path for path in sorted(out.rglob("*")) if not path.is_dir()] if out.is_dir() else []
    strange = [path for path in there if not _is_ours(path)]
    if strange or (out.exists() and not out.is_dir()):
        raise RunFolderError(
            f"{strange[0] if strange else out}: is not of `sote cluster render`, which writes into a folder of its own "
            "only; name a new one with --out"
        )
    for path in there:
        if str(path.relative_to(out)) not in texts:
            path.unlink()
    for each, text in texts.items():
        (out / each).parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(out / each, text)
    return [out / each for each in texts]


def steps(profile: ClusterProfile, out: Path, written: Sequence[Path]) -> list[str]:
    """What to do next, a line each; values of secrets come from files or are made up where they are used."""
    lines = []
    if profile.kubernetes is not None:
        lines += _kubernetes_steps(
            profile.name, profile.kubernetes, out, [str(path.relative_to(out)) for path in written]
        )
    lines += launcher.steps(profile, out)
    return lines


def _manifests(profile: ClusterProfile, kubernetes: Kubernetes, given: Mapping[Verb, Recipe]) -> dict[str, str]:
    folders: dict[str, dict[str, tuple[kube.Thing, ...]]] = {"": kube_parts.ground(profile, kubernetes)}
    if work := profile.of_use("decode", "caption", "train"):
        folders[""]["cluster.yaml"] = kube_parts.cluster(Place(profile, kubernetes, "cluster"), work)
    for verb, recipe in given.items():
        groups, text = profile.of_use(*USES[verb]), recipes.dumps(recipe)
        if verb == "serve":
            place = Place(profile, kubernetes, verb, port=_values(recipe)["port"])
            folders["serve/"] = {"endpoint.yaml": kube_parts.endpoint(place, groups, text)}
        else:
            folders[f"{verb}/"] = {"job.yaml": kube_parts.job(Place(profile, kubernetes, verb), groups, text)}
    texts = {}
    for folder, found in folders.items():
        index = Kustomization(namespace=kubernetes.namespace, resources=tuple(sorted(found)))
        texts[f"{folder}kustomization.yaml"] = _text(index)
        texts |= {f"{folder}{file}": "---\n".join(_text(each) for each in things) for file, things in found.items()}
    return texts


def _text(thing: Node) -> str:
    dumped: str = yaml.dump(kube.manifest(thing), Dumper=_Dumper, sort_keys=False, width=120)
    return dumped


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, so that a recipe can be read; the same tuple twice without anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text_node)


def _problems(profile: ClusterProfile, given: Mapping[Verb, Recipe]) -> list[str]:
    """What is wrong with the profile's places and recipes, as `field: what is wrong, what would be right`."""
    kubernetes = profile.kubernetes
    if kubernetes is None:
        problems = [] if profile.machines or profile.cloud else ["no table says where: kubernetes, machines or cloud"]
        return problems + [
            f"recipes.{verb}: is for Kubernetes, and there is no table `kubernetes`; submit it with `sote submit`"
            for verb in given
        ]
    problems = []
    for verb, recipe in given.items():
        if not profile.of_use(*USES[verb]):
            uses = " or ".join(f'"{use}"' for use in USES[verb])
            problems.append(f"recipes.{verb}: no group has {uses} in `use`")
        problems += [f"recipes.{verb}: {each}" for each in _homeless(kubernetes, recipe)]
        if verb == "serve":
            problems += [f"recipes.serve: {each}" for each in _open(kubernetes, _values(recipe))]
    if kubernetes.host is not None and "serve" not in given:
        problems.append("kubernetes.host: is the endpoint's, and recipes.serve names none")
    return problems


def _homeless(kubernetes: Kubernetes, recipe: Recipe) -> list[str]:
    """A run folder in a pod ends with it."""
    if URI.match(recipe.run):
        return []
    if kubernetes.storage_claim is None:
        return [f"run: {recipe.run} would end with its pod; name a URI (s3://...), or set kubernetes.storage_claim"]
    if Path(kubernetes.storage_path) not in Path(recipe.run).parents:
        return [f"run: {recipe.run} would end with its pod; name a URI or a folder below {kubernetes.storage_path}"]
    return []


def _open(kubernetes: Kubernetes, values: dict[str, Any]) -> list[str]:
    """The endpoint listens to other pods, so it has keys, and they come from the Secret."""
    problems = []
    if values["host"] != ANY_HOST:
        problems.append(f'host: {values["host"]} is not reached from other pods; set "{ANY_HOST}"')
    if values["access"]["keys"] != KEYS_FILE:
        problems.append(f'access.keys: must be "{KEYS_FILE}", where the Secret kubernetes.keys_secret is mounted')
    if kubernetes.keys_secret is None:
        problems.append("kubernetes.keys_secret: missing; an endpoint on a cluster has keys (`sote key` makes them)")
    return problems


def _values(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def _is_ours(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(len(MARK)) == MARK
    except (OSError, UnicodeDecodeError):
        return False


def _kubernetes_steps(name: str, kubernetes: Kubernetes, out: Path, written: Sequence[str]) -> list[str]:
    into = f"kubectl -n {kubernetes.namespace} create secret generic"
    lines = [
        f"kubectl create namespace {kubernetes.namespace}",
        "ray get-auth-token --generate   # once, writes ~/.ray/auth_token",
        f"{into} {kubernetes.token_secret} --from-file=auth_token=$HOME/.ray/auth_token",
        f"{into} {kubernetes.redis_secret} --from-literal=password=$(openssl rand -hex 24)",
    ]
    if kubernetes.ray_ca_secret:
        made = f"{into.removesuffix('generic')}tls {kubernetes.ray_ca_secret} --cert=ca/tls.crt --key=ca/tls.key"
        lines.append("python -m sote.cluster.certificate --new --authority ca --out own localhost   # once")
        lines.append(f"{made}   # and keep ca/tls.key in a safe place")
    if kubernetes.storage_secret:
        lines.append(f"{into} {kubernetes.storage_secret} --from-env-file=FILE   # AWS_ACCESS_KEY_ID=... and the like")
    if kubernetes.storage_claim:
        lines.append(
            f"kubectl -n {kubernetes.namespace} get persistentvolumeclaim {kubernetes.storage_claim}"
            "   # must be there, ReadWriteMany"
        )
    if "serve/endpoint.yaml" in written:
        if kubernetes.metrics_secret is not None:
            lines.append(f"{into} {kubernetes.metrics_secret} --from-literal=key=$(sote key keys.toml prometheus)")
        lines.append(f"{into} {kubernetes.keys_secret} --from-file=keys.toml   # sote key keys.toml NAME")
        if kubernetes.host is not None:
            lines.append(f"{into.removesuffix('generic')}tls {kubernetes.tls_secret} --cert=FILE --key=FILE")
    lines.append(f"kubectl apply -k {out}")
    if "cluster.yaml" in written:
        forward = f"kubectl -n {kubernetes.namespace} port-forward service/{name}-head-svc 8265"
        lines.append(f"{forward}   # then: sote submit -- VERB RECIPE")
    parts = [file.partition("/")[0] for file in written if file.endswith("/kustomization.yaml")]
    return lines + [f"kubectl apply -k {out / part}" for part in sorted(parts)]


VERBS: Final[tuple[Verb, ...]] = get_args(Verb)
