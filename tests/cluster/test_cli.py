"""Bad input at the door: exit code 2, one line that names the thing and the mend, nothing overwritten."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sote.train import world_files
from tests.conftest import Command


def recipe_with(tmp_path: Path, text: str, name: str = "recipe.toml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def one_line(error: str) -> str:
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    return error


CURATE = 'run = "{run}"\n[[sources]]\nname = "mine"\npath = "{pictures}"\n'


def test_an_unknown_key_is_named_with_its_file(sote: Command, tmp_path: Path) -> None:
    path = recipe_with(tmp_path, CURATE.format(run=tmp_path / "run", pictures=tmp_path) + "[decode]\nmin_pixel = 3\n")
    code, _, error = sote("curate", path)
    assert code == 2
    assert one_line(error) == f"sote: {path}: decode.min_pixel: unknown key, did you mean min_pixels\n"
    assert not (tmp_path / "run").exists()


def test_a_wrong_type_is_named_with_its_field(sote: Command, tmp_path: Path) -> None:
    text = CURATE.format(run=tmp_path / "run", pictures=tmp_path) + '[decode]\nmin_pixels = "many"\n'
    code, _, error = sote("curate", recipe_with(tmp_path, text))
    assert code == 2
    assert "decode.min_pixels" in one_line(error)


def test_a_missing_and_an_empty_folder_are_refused_before_the_run_folder_is_made(sote: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("none", "empty"):
        text = CURATE.format(run=tmp_path / "run", pictures=tmp_path / folder)
        code, _, error = sote("curate", recipe_with(tmp_path, text))
        assert code == 2
        assert str(tmp_path / folder) in one_line(error)
    assert not (tmp_path / "run").exists()


def test_a_missing_weight_is_refused_with_the_command_that_fetches_it(sote: Command, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"x")
    text = CURATE.format(run=tmp_path / "run", pictures=tmp_path / "pictures")
    code, _, error = sote("curate", recipe_with(tmp_path, text))
    assert code == 2
    assert "hf download" in one_line(error)
    assert not (tmp_path / "run").exists()


def test_an_unknown_stage_lists_the_stages(sote: Command, tmp_path: Path) -> None:
    text = CURATE.format(run=tmp_path / "run", pictures=tmp_path)
    code, _, error = sote("curate", recipe_with(tmp_path, text), "--stage", "tagging")
    assert code == 2
    assert "index, decode, score, tag" in one_line(error)


def test_what_is_no_run_folder_is_refused(sote: Command, tmp_path: Path) -> None:
    for verb in ("status", "report", "card"):
        code, _, error = sote(verb, str(tmp_path / "none"))
        assert code == 2
        assert str(tmp_path / "none") in one_line(error)


def test_a_port_in_use_is_refused(sote: Command, tmp_path: Path, models: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = (
            f'run = "{tmp_path / "run"}"\nport = {port}\n'
            f'[model]\nprior = "{models / "prior"}"\ndecoder = "{models / "decoder"}"\n'
        )
        code, _, error = sote("serve", recipe_with(tmp_path, text))
    assert code == 2
    assert str(port) in one_line(error)


def test_stage_b_given_as_the_prior_is_called_by_its_name(sote: Command, tmp_path: Path, models: Path) -> None:
    text = f'run = "{tmp_path / "run"}"\n[model]\nprior = "{models / "decoder"}"\ndecoder = "{models / "decoder"}"\n'
    code, _, error = sote("serve", recipe_with(tmp_path, text))
    assert code == 2
    assert "Stage C" in one_line(error)


def test_a_demo_into_a_folder_with_other_things_overwrites_nothing(sote: Command, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    code, _, error = sote("demo", "--out", str(tmp_path))
    assert code == 2
    assert "thesis.txt" in one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_demo_on_a_folder_that_is_not_there_is_refused(sote: Command, tmp_path: Path) -> None:
    code, _, error = sote("demo", "--images", str(tmp_path / "none"), "--out", str(tmp_path / "run"))
    assert code == 2
    assert str(tmp_path / "none") in one_line(error)
    assert not (tmp_path / "run").exists()


def test_a_demo_of_weights_that_are_not_whole_names_what_they_lack(sote: Command, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    code, _, error = sote("demo", "--weights", str(weights), "--out", str(tmp_path / "run"))
    assert code == 2
    assert "has no prior/prior/diffusion_pytorch_model.safetensors" in one_line(error)
    assert not (tmp_path / "run").exists()


def test_a_demo_that_was_begun_with_other_weights_is_not_continued(sote: Command, tmp_path: Path) -> None:
    weights, run = tmp_path / "weights", tmp_path / "run"
    for folder, text in ((weights, "these"), (run / "weights", "those")):
        for place in world_files.places():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text(text)
    (run / "run.json").write_text('{"verbs": {}}')
    code, _, error = sote("demo", "--weights", str(weights), "--out", str(run))
    assert code == 2
    assert "name a new run" in one_line(error)
    assert not (run / "recipes").exists()


def test_a_demo_with_random_models_takes_no_weights(sote: Command, tmp_path: Path) -> None:
    code, _, error = sote("demo", "--quick", "--weights", str(tmp_path), "--out", str(tmp_path / "run"))
    assert code == 2
    assert one_line(error).startswith("sote: --weights")


def test_a_full_disk_is_said_in_one_line_and_is_no_fault_of_the_input(
    sote: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "run.json").write_text('{"verbs": {}}')
    # /dev/full answers every write with "no space left on device"
    (tmp_path / "report.html").symlink_to("/dev/full")
    monkeypatch.setattr("sote.cluster.storage.atomic", in_place)
    code, _, error = sote("report", str(tmp_path))
    assert code == 1
    assert "no space left" in one_line(error)


@contextlib.contextmanager
def in_place(path: Path) -> Iterator[Path]:
    """A write without a temporary file, so that the device behind the link is written to."""
    yield path


def test_weights_have_no_sets(sote: Command, tmp_path: Path) -> None:
    code, _, err = sote("export", str(tmp_path), str(tmp_path / "out"), "--set", "final")
    assert (code, err) == (2, "sote: --set final: weights have no sets; name a dataset's --format, or leave it out\n")


def test_a_dataset_is_exported_from_a_run_folder_only(sote: Command, tmp_path: Path) -> None:
    code, _, err = sote("export", str(tmp_path / "none"), str(tmp_path / "out"), "--format", "kohya")
    assert code == 2
    assert str(tmp_path / "none") in err
    assert err.count("\n") == 1


def test_a_recipe_of_few_lines_is_taken_for_what_it_can_be(sote: Command, tmp_path: Path) -> None:
    """A recipe to serve needs no more than a run; one to train needs data and a length."""
    recipe = tmp_path / "serve.toml"
    recipe.write_text('run = "r"\n[model]\nprior = "missing-prior"\ndecoder = "missing-decoder"\n')
    code, _, err = sote("check", str(recipe))
    assert code == 2
    assert "model.prior" in err
    assert "missing-prior" in err
