import json
import shlex
from pathlib import Path

import pytest

from sote.cluster import submission
from sote.cluster.errors import UserError
from sote.cluster.submission import Submission


def arrive(monkeypatch: pytest.MonkeyPatch, job: Submission, name: str = "sote-curate-0") -> None:
    """Make this process look like the driver of the job, as Ray does it."""
    config = {"runtime_env": {}, "metadata": {submission.ID: name, "job_name": name} | job.metadata()}
    monkeypatch.setenv(submission.CONFIG, json.dumps(config))


def job(**fields: str) -> Submission:
    return Submission(**{"verb": "curate", "version": submission.version()} | fields)


def test_outside_of_a_job_there_is_no_submission() -> None:
    assert submission.here() is None
    assert submission.job_id() is None
    submission.begin()


def test_a_job_knows_how_it_was_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = job(run="runs/a", commit="c0ffee", device="cpu", folder="/home/ada")
    arrive(monkeypatch, sent, "sote-curate-1")
    assert submission.here() == sent
    assert submission.job_id() == "sote-curate-1"


def test_a_job_of_another_program_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(submission.CONFIG, json.dumps({"metadata": {submission.ID: "raysubmit_1"}}))
    assert submission.here() is None
    assert submission.job_id() == "raysubmit_1"


def test_an_image_of_another_version_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    arrive(monkeypatch, job(version="9.9"))
    with pytest.raises(UserError) as refused:
        submission.begin()
    mine = submission.version()
    assert str(refused.value) == (
        f"the cluster has sote {mine}, this was submitted by 9.9: use the image of 9.9 or submit from a checkout"
    )


def test_code_that_was_brought_along_is_of_its_own_version(monkeypatch: pytest.MonkeyPatch) -> None:
    arrive(monkeypatch, job(version="9.9", is_shipped="yes"))
    submission.begin()


def test_relative_paths_count_from_the_submitters_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir("/")
    arrive(monkeypatch, job(run="runs/a", folder=str(tmp_path)))
    submission.begin()
    assert Path.cwd() == tmp_path


def test_a_relative_run_is_refused_where_the_submitters_folder_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arrive(monkeypatch, job(run="runs/a", folder=str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"run: runs/a: .* an absolute path that all nodes share, or a URI"):
        submission.begin()
    for run in ("/shared/a", "s3://bucket/a"):
        arrive(monkeypatch, job(run=run, folder=str(tmp_path / "none")))
        submission.begin()


def test_the_drivers_command_is_readable_and_no_word_is_taken_for_shell() -> None:
    words = ["generate", submission.SHIPPED, "1girl; rm -rf ~", "--out", "$HOME/`id`.png"]
    shown = submission.command(words)
    assert shown.startswith('python -m sote.cluster.cli --address auto generate "$PWD/recipe.toml" ')
    assert shlex.split(shown)[6:] == words[1:]


def test_a_job_with_env_cpu_leaves_accelerators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert submission.may_accelerate()
    arrive(monkeypatch, job(device="gpu"))
    assert submission.may_accelerate()
    arrive(monkeypatch, job(device="cpu"))
    assert not submission.may_accelerate()


def test_what_an_extra_needs_is_read_from_the_package() -> None:
    assert submission.needs_of("openvino").startswith("onnxruntime-ep-openvino>=")
    assert submission.needs_of("no such extra") == ""
