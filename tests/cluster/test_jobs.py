"""Jobs on a cluster in other processes of this machine, as a user has it: submitted, followed, stopped.

One cluster for all tests here: a head on loopback with token authentication, started as `ray start` does.
"""

import contextlib
import ctypes
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
import ray
from PIL import Image

from sote.cluster import cli_jobs, jobs, tokens
from sote.cluster.errors import UserError
from sote.cluster.jobs import Jobs
from sote.cluster.submission import Submission
from tests.conftest import Command

pytestmark = pytest.mark.timeout(900)  # on a busy machine a Ray starts in minutes

SECRET = "c0ffee" * 10
WAIT_SECONDS = 400.0
DIE_WITH_PARENT = 1  # prctl(2), PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Cluster:
    """The cluster of these tests: its two addresses, and the process that holds it."""

    api: str
    control: str
    process: "subprocess.Popen[bytes]"

    @property
    def port(self) -> int:
        return int(self.api.rpartition(":")[2])

    def listening(self, *, besides: str | None = None) -> set[tuple[str, int]]:
        """Address and port of every socket that a process of the cluster listens on; not those of one kind of actor."""
        head = psutil.Process(self.process.pid)
        found = set()
        for process in (head, *head.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                if besides is not None and "".join(process.cmdline()).startswith(f"ray::{besides}"):
                    continue
                places = process.net_connections(kind="inet")
                found |= {tuple(place.laddr) for place in places if place.status == psutil.CONN_LISTEN}
        return found


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    api, control, client, agent, metrics = free_ports(5)
    # what Ray takes for a lone machine's: all of it on loopback
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {tokens.MODE: "token", tokens.TOKEN: SECRET}
    with tempfile.TemporaryDirectory(prefix="sj", dir="/tmp", ignore_cleanup_errors=True) as folder:  # short: sockets
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}"),
            *(f"--port={control}", f"--dashboard-port={api}", "--dashboard-host=127.0.0.1", "--num-cpus=4"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--metrics-export-port={metrics}", "--object-store-memory=200000000", "--disable-usage-stats"),
        ]
        with (Path(folder) / "out").open("w") as out:
            process = subprocess.Popen(
                command, env=environment, cwd="/", stdout=out, stderr=subprocess.STDOUT, preexec_fn=_end_with_the_tests
            )
        started = Cluster(f"http://127.0.0.1:{api}", f"127.0.0.1:{control}", process)
        try:
            _await_api(started, Path(folder) / "out")
            yield started
        finally:
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()  # `ray start --block` ends what it started
            process.wait()
            for left in psutil.wait_procs(family, timeout=10)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()


def _end_with_the_tests() -> None:
    """In the new process: be told to end when the tests are killed. `ray start --block` ends what it started."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)


def _await_api(cluster: Cluster, out: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while cluster.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            headers = {"Authorization": f"Bearer {SECRET}"}
            if httpx.get(f"{cluster.api}/api/version", headers=headers, trust_env=False, timeout=30).is_success:
                return
        time.sleep(0.3)
    pytest.fail(out.read_text())


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tokens.TOKEN, SECRET)
    monkeypatch.setenv(tokens.MODE, "token")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run(cluster: Cluster, *words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The `sote` command as a user runs it, in a folder of his."""
    command = [sys.executable, "-m", "sote.cluster.cli", *words, "--address", cluster.api]
    if "--" in words:
        command = [sys.executable, "-m", "sote.cluster.cli", "submit", "--address", cluster.api, *words[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)


def plain(cluster: Cluster, words: str, *, verb: str = "train") -> str:
    """A job of a few words of Python, sent as ours are."""
    environment = cli_jobs.environment(verb, None, is_near=True)
    sent = Submission(verb=verb, is_shipped="yes")
    return Jobs(cluster.api).submit(words, sent, recipe=None, code=None, environment=environment)


def ended(cluster: Cluster, name: str) -> jobs.Job:
    return Jobs(cluster.api).follow(name, lambda _: None)


def test_the_head_listens_on_loopback_alone_and_the_outer_address_of_the_machine_finds_nobody(cluster: Cluster) -> None:
    places = cluster.listening()
    assert (("127.0.0.1", cluster.port)) in {(host.removeprefix("::ffff:"), port) for host, port in places}
    assert {host for host, _ in places} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, places
    own = {each.address for net in psutil.net_if_addrs().values() for each in net if each.family == socket.AF_INET}
    for address in own - {"127.0.0.1"}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, cluster.port), timeout=5)


def test_no_token_and_a_wrong_one_are_refused(
    cluster: Cluster, sote: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(tokens.MODE)
    monkeypatch.setenv(tokens.TOKEN, "f00d" * 16)
    assert sote("jobs", "--address", cluster.api) == (
        2,
        "",
        f"sote: {cluster.api}: the cluster does not take the token that is here; use the cluster's own "
        "(RAY_AUTH_TOKEN_PATH)\n",
    )
    monkeypatch.delenv(tokens.TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, error = sote("jobs", "--address", cluster.api)
    assert (code, error.count("\n")) == (2, 1)
    assert "asks for a token and there is none here" in error
    assert httpx.post(f"{cluster.api}/api/jobs/", json={"entrypoint": "id"}, trust_env=False).status_code == 401


def test_a_curation_runs_as_a_job_in_its_submitters_folder(cluster: Cluster, tmp_path: Path) -> None:
    """No picture is of use, so that no model has work: the way is what is looked at."""
    from sote.data import standins

    standins.make(tmp_path / "w")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / "small.png")
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"broken" * 99)
    weights = "[score]\n" + "".join(f'{name} = "w/{name}"\n' for name in ("aesthetic", "quality_clip", "quality_head"))
    (tmp_path / "curate.toml").write_text(
        'run = "runs/mine"\n[[sources]]\nname = "mine"\npath = "pictures"\n'
        f'{weights}[tag]\ntagger = "w/tagger"\n[work]\nmax_failed_share = 1.0\n'
    )
    done = run(cluster, "submit", "--wait", "--env", "cpu", "--", "curate", "./curate.toml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    name = done.stdout.split()[0]
    assert name.startswith("sote-curate-")
    assert f"sote logs {name} --follow --address {cluster.api}" in done.stdout
    record = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())
    assert (record["job"], record["exit_code"]) == (name, 0)
    assert (tmp_path / "runs" / "mine" / "catalogue.parquet").is_file()
    job = Jobs(cluster.api).get(name)
    assert job.entrypoint == 'python -m sote.cluster.cli --address auto curate "$PWD/recipe.toml"'
    assert job.submission is not None
    assert (job.submission.verb, job.submission.run, job.exit_code) == ("curate", "runs/mine", 0)


def test_a_job_ends_with_its_own_exit_code(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "curate.toml").write_text('run = "r"\n[[sources]]\nname = "mine"\npath = "nowhere"\n')
    done = run(cluster, "submit", "--wait", "--", "curate", "curate.toml", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "nowhere" in done.stdout
    assert jobs.exit_code(ended(cluster, plain(cluster, "exit 7"))) == 7
    assert jobs.exit_code(ended(cluster, plain(cluster, "kill -9 $$"))) == 128 + signal.SIGKILL


SLOW = """python -c "
import signal, sys, time, pathlib
def heard(*_):
    time.sleep(8)
    pathlib.Path('{said}').write_text('saved')
    sys.exit(143)
signal.signal(signal.SIGTERM, heard)
print('ready', flush=True)
time.sleep(600)
" """


def test_a_job_that_is_stopped_has_the_time_to_save_and_did_not_succeed(
    cluster: Cluster, tmp_path: Path, sote: Command
) -> None:
    name = plain(cluster, SLOW.format(said=tmp_path / "said"))
    _until(lambda: "\nready\n" in Jobs(cluster.api).log(name))  # Ray writes the command first
    assert sote("stop", name, "--address", cluster.api) == (0, f"{name}: stopped\n", "")
    assert (tmp_path / "said").read_text() == "saved"
    assert jobs.exit_code(ended(cluster, name)) == 143
    code, _, error = sote("stop", name, "--address", cluster.api)
    assert (code, error) == (2, f"sote: {name}: has ended already (stopped)\n")


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_follow_it(cluster: Cluster, tmp_path: Path) -> None:
    name = plain(cluster, "echo begun; sleep 300")
    command = [sys.executable, "-m", "sote.cluster.cli", "logs", name, "--follow", "--address", cluster.api]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        while "begun" not in (line := following.stdout.readline()):
            assert line
        following.send_signal(signal.SIGINT)
        _, error = following.communicate(timeout=WAIT_SECONDS)
    assert following.returncode == 130
    assert f"{name} goes on; follow it with `sote logs {name} --follow --address {cluster.api}`" in error
    assert error.count("\n") == 1
    client = Jobs(cluster.api)
    assert not client.get(name).has_ended
    assert client.stop(name).has_ended


def test_the_table_of_jobs_says_what_each_did(cluster: Cluster, sote: Command) -> None:
    name = plain(cluster, "exit 3", verb="export")
    ended(cluster, name)
    code, out, _ = sote("jobs", "--address", cluster.api)
    assert code == 0
    [line] = [line for line in out.splitlines() if name in line]
    assert [word in line for word in ("export", "failed", " 3")] == [True] * 3


def test_an_unknown_job_is_refused(cluster: Cluster, sote: Command) -> None:
    for words in (("logs", "sote-train-0"), ("stop", "sote-train-0"), ("logs", "sote-train-0", "--follow")):
        code, out, error = sote(*words, "--address", cluster.api)
        assert (code, out) == (2, "")
        assert error == f"sote: sote-train-0: no such job at {cluster.api}; `sote jobs` lists those that there are\n"


def test_an_accelerator_that_will_never_be_there_is_not_waited_for(
    cluster: Cluster, sote: Command, tmp_path: Path
) -> None:
    (tmp_path / "curate.toml").write_text(f'run = "{tmp_path}/r"\n[[sources]]\nname = "mine"\npath = "/pictures"\n')
    words = ("submit", "--address", cluster.api, "--env", "gpu", "--", "curate", str(tmp_path / "curate.toml"))
    code, out, error = sote(*words)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "asks for 1 GPU at least" in error
    assert "has 4 CPU" in error


def test_a_node_without_a_package_is_named_with_it(cluster: Cluster) -> None:
    words = (
        "from sote.cluster import arrival, session\n"
        "arrival.NEEDS['curate'] = ('sote.data', 'no_such_package', 'nor.this')\n"
        "import sys\n"
        "with session.connect(sys.argv[1]):\n"
        "    try:\n"
        "        arrival.check('curate')\n"
        "    except arrival.UserError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", words, cluster.control], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("node 127.0.0.1: has no package 'no_such_package' (and 1 more), which `sote curate`")
    assert done.stdout.count("\n") == 1, done.stderr


def test_what_is_no_job_api_is_told_from_nobody(cluster: Cluster) -> None:
    [free] = free_ports(1)
    with pytest.raises(UserError, match="no job API answers there"):
        Jobs(f"http://127.0.0.1:{free}")
    with pytest.raises(UserError, match="something else than Ray's job API answers there"):
        Jobs(f"http://{cluster.control}")
    with _serving(b"<html>hello</html>") as url, pytest.raises(UserError, match="something else than Ray's job API"):
        Jobs(url)


def test_another_ray_at_the_address_is_named_with_its_version() -> None:
    there = json.dumps({"ray_version": "2.9.3", "version": "4"}).encode()
    with _serving(there) as url, pytest.raises(UserError) as refused:
        Jobs(url)
    assert f"Ray 2.9.3 is there, here is Ray {ray.__version__}" in str(refused.value)


@contextlib.contextmanager
def _serving(body: bytes) -> Iterator[str]:
    """An HTTP server on loopback that says the same to everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_a_training_and_a_server_run_as_jobs(cluster: Cluster, tmp_path: Path) -> None:
    """Both at once: the training to its end, the server until it is stopped."""
    from sote.train import standins
    from tests.train.conftest import write_curated

    standins.make(tmp_path / "models")
    write_curated(tmp_path / "curated", images=8)
    [port] = free_ports(1)
    (tmp_path / "train.toml").write_text(
        'run = "runs/t"\n[data]\ncurated = "curated"\n[model]\nprior = "models/prior"\n[length]\nmax_steps = 2\n'
        "[batch]\neffective_batch = 2\nmicro_batch = 2\n[workers]\ncount = 1\n[checkpoint]\nevery_steps = 2\n"
        '[optimizer]\nwarmup_steps = 1\n[export]\ndecoder = "models/decoder"\n'
    )
    (tmp_path / "serve.toml").write_text(
        f'run = "runs/s"\nport = {port}\n[model]\nprior = "models/prior"\ndecoder = "models/decoder"\nname = "tiny"\n'
        "[defaults]\nwidth = 256\nheight = 256\nprior_steps = 4\ndecoder_steps = 4\n"
    )
    sent = run(cluster, "submit", "--", "serve", "serve.toml", folder=tmp_path)
    assert sent.returncode == 0, sent.stderr
    server = sent.stdout.split()[0]
    trained = run(cluster, "submit", "--wait", "--", "train", "train.toml", folder=tmp_path)
    assert trained.returncode == 0, trained.stdout + trained.stderr + Jobs(cluster.api).log(server)
    assert json.loads((tmp_path / "runs" / "t" / "run.json").read_text())["job"] == trained.stdout.split()[0]
    assert list((tmp_path / "runs" / "t" / "checkpoints").glob("step-*"))
    client = Jobs(cluster.api)
    _until(lambda: f"http://127.0.0.1:{port}" in client.log(server) or client.get(server).has_ended)
    painted = httpx.post(
        f"http://127.0.0.1:{port}/v1/generate",
        json={"prompt": "a"},
        headers={"Accept": "image/png"},
        timeout=WAIT_SECONDS,
        trust_env=False,
    )
    assert painted.status_code == 200, client.log(server)
    assert Image.open(io.BytesIO(painted.content)).size == (256, 256)
    # Ray binds a replica's own port to every address (ray/serve/_private/replica.py); it asks for the token
    beyond = {host for host, _ in cluster.listening(besides="ServeReplica")} - {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert not beyond
    assert client.stop(server).state == "STOPPED"
    assert json.loads((tmp_path / "runs" / "s" / "run.json").read_text())["exit_code"] == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
