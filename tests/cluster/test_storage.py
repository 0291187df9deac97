import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from sote.cluster import storage
from sote.cluster.errors import RunFailed, RunFolderError
from sote.cluster.recipe import Part, Recipe
from sote.cluster.storage import RunFolder, open_run


class Depth(Part):
    metres: int = 3


class Well(Recipe):
    colour: str = "grey"
    depth: Depth = Depth()


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), storage.atomic(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_killed_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")
    code = (
        "import os, sys; from pathlib import Path; from sote.cluster import storage\n"
        "with storage.atomic(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('new'); os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -9
    assert path.read_text() == "old"


def test_a_file_counts_only_with_its_marker(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    storage.write_table(path, pa.table({"a": [1]}))
    assert storage.committed(path) is None
    storage.commit(path, rows=1)
    assert storage.committed(path) == {"rows": 1}
    path.unlink()
    assert storage.committed(path) is None


def test_what_a_killed_process_left_half_written_is_taken_away_by_the_next(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, alive = int(ended.stdout), os.getpid()
    with open_run(Well(run=str(tmp_path)), verb="dig", command="c"):
        pass
    (tmp_path / "rows" / "tag").mkdir(parents=True)
    for pid in (dead, alive):
        (tmp_path / "rows" / "tag" / f".00000.parquet.{pid}.tmp").write_bytes(b"half")
    with open_run(Well(run=str(tmp_path)), verb="dig", command="c"):
        pass
    assert [path.name for path in (tmp_path / "rows" / "tag").iterdir()] == [f".00000.parquet.{alive}.tmp"]


def test_a_folder_is_made_once_and_again_only_after_a_failure(tmp_path: Path) -> None:
    made = []

    def fails(folder: Path) -> None:
        made.append(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        storage.once(tmp_path / "a", fails)
    storage.once(tmp_path / "a", made.append)
    storage.once(tmp_path / "a", made.append)
    assert made == [tmp_path / "a"] * 2


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    table = pa.table({"a": [1, None], "b": ["x", "y"]})
    storage.write_table(tmp_path / "1", table)
    storage.write_table(tmp_path / "2", table)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_run_records_its_recipe_its_command_and_its_end(tmp_path: Path) -> None:
    recipe = Well(run=str(tmp_path / "run"))
    with open_run(recipe, verb="dig", command="sote dig well.toml") as folder:
        started = json.loads(folder.record.read_text())
        assert started["end"] is None
    ended = json.loads(folder.record.read_text())
    assert (ended["exit_code"], ended["command"]) == (0, "sote dig well.toml")
    assert ended["end"] >= ended["start"]
    assert ended["digest"] == started["digest"]
    assert folder.recipe("dig") == folder.root / "recipe.toml"
    assert folder.recipe("dig").exists()


def test_a_failed_run_keeps_its_exit_code(tmp_path: Path) -> None:
    recipe = Well(run=str(tmp_path / "run"))
    for error, code in ((RunFailed("x"), 1), (RunFolderError("x"), 2), (ZeroDivisionError(), 1)):
        with pytest.raises(type(error)), open_run(recipe, verb="dig", command="c") as folder:
            raise error
        assert json.loads(folder.record.read_text())["exit_code"] == code


def test_a_second_verb_in_the_folder_keeps_its_own_recipe(tmp_path: Path) -> None:
    first, second = Well(run=str(tmp_path), colour="red"), Well(run=str(tmp_path), colour="blue")
    for recipe, verb in ((first, "dig"), (second, "fill"), (first, "dig")):
        with open_run(recipe, verb=verb, command=verb) as folder:
            pass
    assert 'colour = "red"' in (tmp_path / "recipe.toml").read_text()
    assert 'colour = "blue"' in (tmp_path / "recipe.fill.toml").read_text()
    record = json.loads(folder.record.read_text())
    assert list(record["verbs"]) == ["dig", "fill"]
    assert record["verbs"]["dig"]["continued"] == 1
    assert record["command"] == "dig"


def test_the_folder_of_another_recipe_is_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    with open_run(Well(run=str(tmp_path)), verb="dig", command="c"):
        pass
    before = (tmp_path / "recipe.toml").read_bytes()
    other = Well(run=str(tmp_path), depth=Depth(metres=4))
    with (
        pytest.raises(RunFolderError, match=r"depth\.metres: 3 there, 4 here"),
        open_run(other, verb="dig", command="c"),
    ):
        pass
    assert (tmp_path / "recipe.toml").read_bytes() == before
    with open_run(other, verb="dig", command="c", may_differ={"depth"}):
        pass


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(RunFolderError, match="holiday"), open_run(Well(run=str(tmp_path)), verb="dig", command="c"):
        pass
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunFolderError), open_run(Well(run=str(tmp_path / "file")), verb="dig", command="c"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "holiday.jpg"]


def test_two_processes_cannot_hold_one_folder_for_the_same_verb(tmp_path: Path) -> None:
    recipe = Well(run=str(tmp_path / "run"))
    with (
        open_run(recipe, verb="dig", command="c"),
        pytest.raises(RunFolderError, match="another `sote dig`"),
        open_run(recipe, verb="dig", command="c"),
    ):
        pass


def test_the_places_of_a_run_folder_are_those_of_the_contract() -> None:
    folder = RunFolder(Path("r"))
    assert folder.rows("tag", 3) == Path("r/rows/tag/00003.parquet")
    assert folder.export("unet") == Path("r/export/unet")
    assert folder.catalogue == Path("r/catalogue.parquet")
