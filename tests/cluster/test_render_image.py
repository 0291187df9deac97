"""The image file, read line by line: known instructions, files that exist, the lock's versions, no root, no curl."""

import itertools
import re
import shlex
import tomllib
from dataclasses import dataclass

from sote.cluster import kube_pods
from tests.cluster.rendering import TOP

FILE = TOP / "cluster" / "deploy" / "Containerfile"
OPENVINO = TOP / "cluster" / "deploy" / "openvino.lock"
# Of the reference of the format; MAINTAINER is not: it is deprecated
INSTRUCTIONS = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|ONBUILD|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR"
)


@dataclass(frozen=True)
class Line:
    instruction: str
    words: list[str]
    stage: str


def lines() -> list[Line]:
    """The instructions in order, continued lines joined, each with the stage that it is of."""
    text = re.sub(r"\\\n", " ", "\n".join(each for each in FILE.read_text().splitlines() if not each.startswith("#")))
    found, stage = [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        words = shlex.split(re.sub(r'\["|",\s+"|"\]', " ", rest))
        if instruction == "FROM":
            stage = words[2]
        found.append(Line(instruction, words, stage))
    return found


def of(instruction: str) -> list[Line]:
    return [line for line in lines() if line.instruction == instruction]


def test_every_instruction_is_known_and_every_stage_is_used() -> None:
    assert all(INSTRUCTIONS.fullmatch(line.instruction) for line in lines())
    stages = [line.words[2] for line in of("FROM")]
    assert stages == ["build", "gpu", "openvino", "image"]
    assert of("FROM")[-1].words[0] == "${VARIANT}"
    taken = [word.removeprefix("--from=") for line in of("COPY") for word in line.words if word.startswith("--from=")]
    assert taken == ["build"]


def test_the_base_is_an_exact_version_and_the_same_in_all_stages() -> None:
    bases = {line.words[0] for line in of("FROM")} - {"${VARIANT}"}
    assert len(bases) == 1
    assert re.fullmatch(r"docker\.io/library/python:\d+\.\d+\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", bases.pop())


def test_what_is_copied_exists_and_is_not_kept_from_the_build() -> None:
    let_in = {
        line[1:] for line in FILE.with_name("Containerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = [word for line in of("COPY") if line.stage == "build" for word in line.words[:-1]]
    assert {"pyproject.toml", "requirements.lock", "cluster/deploy/openvino.lock", "sote"} <= set(copied)
    for word in copied:
        assert (TOP / word).exists(), word
        assert word.split("/")[0] in let_in
    packages = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {package.removeprefix("sote.").partition(".")[0] for package in packages} <= set(copied)


def test_every_package_is_of_a_lock_and_checked_by_its_hash() -> None:
    installs = [line.words for line in of("RUN") if "install" in line.words and "uv" in line.words]
    dependencies, openvino, own = installs
    assert "--require-hashes" in dependencies
    assert dependencies[dependencies.index("--constraint") + 1] == "requirements.lock"
    assert dependencies[dependencies.index("--requirement") + 1] == "pyproject.toml"
    assert "--require-hashes" in openvino
    assert {"--no-deps", "--no-build-isolation", "."} <= set(own)
    extras = {extra for name, extra in itertools.pairwise(dependencies) if name == "--extra"}
    assert extras <= tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    [pip] = [line.words for line in of("RUN") if line.words[0] == "pip"]
    assert re.fullmatch(r"uv==\d+\.\d+\.\d+", pip[-1])


def test_each_lock_gives_a_version_and_hashes_to_each_package() -> None:
    for lock in (TOP / "requirements.lock", OPENVINO):
        packages = re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n?", "", lock.read_text()).strip())
        for package in packages:
            assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", package), package
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", package), package
    assert "onnxruntime-ep-openvino==" in OPENVINO.read_text()


def test_nothing_runs_as_root_and_what_is_written_lies_where_pods_mount_it() -> None:
    [user] = of("USER")
    assert user.words == [f"{kube_pods.USER}:{kube_pods.USER}"]
    last = [line.instruction for line in lines() if line.stage == "image"]
    assert not {"RUN", "COPY", "ADD"} & set(last[last.index("USER") :])
    environment = dict(word.split("=", 1) for line in of("ENV") if line.stage == "image" for word in line.words)
    assert environment["HOME"] == kube_pods.HOME
    assert environment["TMPDIR"] == "/tmp"
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_commit_stays_in_the_image_and_nothing_is_fetched_and_run() -> None:
    assert any(line.words == ["COMMIT=unknown"] and line.stage == "image" for line in of("ARG"))
    assert "org.opencontainers.image.revision=${COMMIT}" in [word for line in of("LABEL") for word in line.words]
    said = " ".join(word for line in lines() for word in line.words)
    assert not re.search(r"curl|wget|https?://|sudo|chmod 777", said)
    assert not of("ADD")
    [health] = of("HEALTHCHECK")
    assert "sote.cluster.cli" in " ".join(health.words)
