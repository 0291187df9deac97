"""What SECURITY.md promises: no code is read from files, and nothing listens beyond this machine by default."""

import ast
import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

TOP = Path(__file__).resolve().parent.parent
MODULES = sorted(path for layer in ("cluster", "data", "train", "serve") for path in (TOP / layer).rglob("*.py"))
LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
# Each reads code, or runs words that a file or a request may hold
FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"}
FORBIDDEN |= {"marshal.loads", "shelve.open", "joblib.load", "dill.loads", "cloudpickle.loads", "cloudpickle.load"}
FORBIDDEN |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "torch.jit.load", "torch.package"}
# What loads only data if this is said, and code if it is not
MUST_SAY = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
MODELS = re.compile(
    r"(Auto\w*Model\w*|\w+For\w+|\w+Model\w*|\w+Pipeline|\w*UNet|\w*Prior|\w+VQModel)\.from_pretrained$"
)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file, with the dotted name that is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def said(call: ast.Call) -> dict[str, object]:
    return {word.arg: word.value.value for word in call.keywords if word.arg and isinstance(word.value, ast.Constant)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TOP)))
def test_no_file_of_a_user_is_read_as_code(path: Path) -> None:
    for name, call in calls(path):
        assert name not in FORBIDDEN, f"line {call.lineno}: {name}"
        if name in MUST_SAY:
            word, value = MUST_SAY[name]
            assert said(call).get(word) is value, f"line {call.lineno}: {name} must say {word}={value}"
        words = said(call)
        assert not words.get("trust_remote_code"), f"line {call.lineno}"
        assert not words.get("shell"), f"line {call.lineno}"
        if MODELS.search(name):
            assert words.get("use_safetensors") is True, f"line {call.lineno}: {name} must say use_safetensors=True"


def test_the_audit_finds_what_it_looks_for(tmp_path: Path) -> None:
    for words in ("import torch; torch.load('a')", "eval('1')", "import subprocess; subprocess.run('id', shell=True)"):
        bad = tmp_path / "bad.py"
        bad.write_text(words)
        with pytest.raises(AssertionError):
            test_no_file_of_a_user_is_read_as_code(bad)


def test_a_pickle_that_is_called_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    import pickle

    from sote.cluster.errors import SoteError
    from sote.data import score_files
    from sote.train import modelfile

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    for name in ("head.pt", "head.pth", "model.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(SoteError):
            modelfile.prior(str(tmp_path / name), field="model.prior")
        with pytest.raises(SoteError):
            score_files.load_head(tmp_path / name, features=512)
    assert not (tmp_path / "owned").exists()


def test_an_own_ray_listens_on_loopback_alone_and_asks_for_a_token(local_ray: None) -> None:
    me = psutil.Process()
    found = set()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            if process.pid == me.pid or re.search(r"ray|gcs_server", " ".join(process.cmdline())):
                places = process.net_connections(kind="inet")
                found |= {(process.name(), *place.laddr) for place in places if place.status == psutil.CONN_LISTEN}
    assert len(found) >= 5, found  # the control store, the raylet, agents, workers
    assert {host for _, host, _ in found} <= LOOPBACK, found
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_server_listens_on_loopback_unless_its_recipe_says_otherwise() -> None:
    from sote.serve.recipe import ServeRecipe

    assert ServeRecipe.model_fields["host"].default == "127.0.0.1"


def test_nothing_that_ships_holds_a_secret_or_names_a_public_door() -> None:
    listed = subprocess.run(
        ["git", "-C", TOP, "ls-files", "cluster/deploy"], capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        text = (TOP / name).read_text(encoding="utf-8")
        assert not re.search(r"type:\s*(LoadBalancer|NodePort)", text), name
        assert not re.search(r"dashboard-host[=: ]+['\"]?0\.0\.0\.0", text), name
        assert not re.search(r"(?i)(auth_token|secret_access_key|password)\s*[:=]\s*['\"]?[A-Za-z0-9/+]{16,}", text), (
            name
        )


def test_the_threat_model_names_what_it_defends_against() -> None:
    text = (TOP / "SECURITY.md").read_text(encoding="utf-8")
    for name in ("CVE-2023-48022", "CVE-2025-62593", "CVE-2026-27482", "What is not defended against", "How to report"):
        assert name in text
