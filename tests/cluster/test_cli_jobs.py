"""What is refused before anything is sent: every line here is said without a cluster."""

from pathlib import Path

import pytest

from sote.cluster import cli_jobs, tokens
from tests.conftest import Command

REMOTE = "https://head.example.org:8265"


@pytest.fixture(autouse=True)
def recipes_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder with a recipe of each kind, and no token."""
    for name in (tokens.TOKEN, tokens.PLACE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("curate.toml").write_text('run = "runs/a"\n[[sources]]\nname = "mine"\npath = "pictures"\n')
    Path("train.toml").write_text(
        'run = "/shared/t"\n[data]\ncurated = "/shared/a"\n[model]\nprior = "stable-cascade"\n[length]\nepochs = 1\n'
        "[workers]\nuse_gpu = true\n"
    )


def refused(sote: Command, *words: str) -> str:
    code, out, error = sote(*words)
    assert (code, out) == (2, ""), error
    assert "Traceback" not in error
    return error


def test_a_recipe_is_read_here_and_all_that_is_wrong_with_it_said(sote: Command) -> None:
    Path("curate.toml").write_text('run = "r"\nwrok = 3\n[[sources]]\nname = 4\npath = "pictures"\n')
    error = refused(sote, "submit", "--", "curate", "curate.toml")
    assert "curate.toml: wrok: unknown key, did you mean work" in error
    assert "curate.toml: sources.0.name: " in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to submit"),
        (("dance", "x.toml"), "'dance' is no command to submit; known here: curate, train"),
        (("curate",), "submit: curate: Missing argument 'RECIPE'"),
        (("curate", "curate.toml", "--stgae", "tag"), "No such option: --stgae"),
        (("curate", "none.toml"), "none.toml: no such recipe file"),
        (("submit", "--", "curate", "curate.toml"), "'submit' is no command to submit"),
    ],
)
def test_a_command_is_parsed_by_its_own_verb(sote: Command, words: tuple[str, ...], said: str) -> None:
    error = refused(sote, "submit", "--", *words)
    assert said in error
    assert error.count("\n") == 1


def test_a_relative_path_is_refused_where_the_job_runs_on_another_machine(sote: Command) -> None:
    error = refused(sote, "submit", "--address", REMOTE, "--", "curate", "curate.toml")
    assert "run: runs/a: is relative" in error
    assert "an absolute path that all nodes share, or a URI" in error
    error = refused(sote, "submit", "--address", REMOTE, "--", "export", "/shared/t", "out")
    assert "OUT: out: is relative" in error


def test_nothing_is_sent_to_another_machine_without_a_token(sote: Command) -> None:
    for address in (REMOTE, "http://10.0.0.1:8265"):
        for words in (("submit", "--", "train", "train.toml"), ("jobs",), ("logs", "j"), ("stop", "j")):
            error = refused(sote, words[0], "--address", address, *words[1:])
            assert "no token, and nothing beyond this machine is talked to without one" in error
            assert error.count("\n") == 1


def test_a_recipe_that_asks_for_accelerators_is_no_job_for_the_cpu(sote: Command) -> None:
    error = refused(sote, "submit", "--env", "cpu", "--", "train", "train.toml")
    assert error == (
        "sote: --env cpu: workers.use_gpu = True: the recipe asks for accelerators; take it out, or --env\n"
    )


def test_the_global_address_is_the_verbs_too(sote: Command) -> None:
    assert "no token" in refused(sote, "--address", REMOTE, "jobs")
    assert "Ray Client is not used here" in refused(sote, "--address", "ray://head:10001", "jobs")


def test_a_job_has_the_time_to_end_well_that_its_verb_needs() -> None:
    seconds = {verb: int(cli_jobs.environment(verb, None, is_near=False)[cli_jobs.GRACE]) for verb in cli_jobs.VERBS}
    assert seconds["train"] >= 600 > seconds["curate"] >= 30
    hidden = cli_jobs.environment("curate", None, is_near=False, device=cli_jobs.Device.cpu)
    assert hidden["CUDA_VISIBLE_DEVICES"] == "-1"


def test_the_drain_of_a_server_is_added_to_its_time() -> None:
    from sote.serve.recipe import ServeRecipe

    recipe = ServeRecipe.model_validate({"run": "r", "model": {"prior": "p", "decoder": "d"}, "drain_seconds": 500})
    assert int(cli_jobs.environment("serve", recipe, is_near=False)[cli_jobs.GRACE]) > 500
