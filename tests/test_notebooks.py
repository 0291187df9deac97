"""The notebooks run from top to bottom on the demo, and are committed without what they showed."""

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from sote.cluster import logs
from sote.cluster import recipe as recipes
from sote.serve.recipe import ServeRecipe
from tests.conftest import Demo

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_CELLS = 14
SECONDS = 240  # for a cell, and for a kernel to start, on a machine that does other things too
PICTURE = re.compile(r'<img src="([^"]*)"')
BELOW = re.compile(r"<figcaption>([^<]*)</figcaption>")
OPENED_BY = ".venv/bin/uv run --no-project --with jupyterlab --with ipywidgets jupyter lab notebooks"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_committed_without_what_it_showed(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) <= MOST_CELLS
    assert cells[0].source.startswith("# ")
    assert OPENED_BY in cells[0].source
    codes = [cell for cell in cells if cell.cell_type == "code"]
    assert codes
    assert all(cell.outputs == [] and cell.execution_count is None for cell in codes)


def executed(
    name: str, run: Path, *more: str, started: Callable[[Any], None] | None = None, **parameters: object
) -> Any:
    """The notebook's cells after a run on the run folder, and cells of `more` after them. `started` is told of each
    cell before it runs."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in ({"RUN": str(run)} | parameters).items())
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in more]
    where = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(notebook, timeout=SECONDS, startup_timeout=SECONDS, kernel_name="python3", resources=where)
    if started is not None:
        client.on_cell_start = lambda cell, cell_index: started(cell)
    client.execute()
    return notebook.cells


def shown(cells: Any, kind: str = "text/html") -> list[str]:
    """What the cells show of one kind, in order, as many as there are outputs of it."""
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return ["".join(output.data[kind]) for output in outputs if kind in output.get("data", {})]


def titled(cells: Any, title: str) -> str:
    (found,) = [text for text in shown(cells) if f"{title}</h2>" in text]
    return found


def small(run: Path, folder: Path) -> Path:
    """A run folder with the demo's models that paints at 256x384 pixels."""
    recipe = recipes.load(run / "recipes" / "serve.toml", ServeRecipe)
    defaults = recipe.defaults.model_copy(
        update={"width": 256, "height": 384, "compression": 42, "prior_steps": 6, "decoder_steps": 4}
    )
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "serve.toml").write_text(recipes.dumps(recipe.model_copy(update={"defaults": defaults})))
    return folder


BY_HAND = (  # what a person does in the notebook after it has run, and what is shown then
    """
from IPython.display import HTML as Html
from ipywidgets.widgets.widget import _instances

forms = [each.children for each in _instances.values() if isinstance(each, VBox)]


def pressed(form):
    form[-2].click()
    return Html(form[-1].value)


pressed(forms[0])""",
    "prompt.value, seed.value, guidance.value = 'a blue star', 3, 2; pressed(forms[0])",
    "pressed(forms[1])",
    "display(Html(after.value)); step.value = 2; display(Html(after.value))",
    "seed.value = -5; pressed(forms[0])",
)


@pytest.fixture(scope="module")
def painted(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The cells of paint.ipynb and those of `BY_HAND`, run."""
    assert demo.exit_code == 0, demo.err
    return executed("paint.ipynb", small(demo.run, tmp_path_factory.mktemp("paint") / "run"), *BY_HAND)


def test_pictures_can_be_painted_by_hand(painted: Any) -> None:
    cells = painted[: -len(BY_HAND)]
    grids = {
        name: titled(cells, name)
        for name in ("One picture", "Step by step", "Prompts and seeds", "Guidance", "Compression")
    }
    below = {name: BELOW.findall(grid) for name, grid in grids.items()}
    assert below["One picture"] == ["seed 7"]
    steps = [[1, 2, 3, 5, 6], [1, 2, 3, 5, 6], [1, 2, 3, 4]]  # Stage C's latents, those painted, Stage B's
    assert below["Step by step"] == [f"step {step}" for row in steps for step in row]
    assert below["Prompts and seeds"] == ["seed 7", "seed 8"] * 2
    assert below["Guidance"] == [f"guidance {guidance}" for guidance in (1, 2, 4, 8)] * 2
    assert below["Compression"] == ["32: 8x12 cells", "42: 6x9 cells", "48: 5x8 cells", "64: 4x6 cells"]
    for name, grid in grids.items():
        pictures = PICTURE.findall(grid)
        # the last of Stage C that was painted is the last of Stage B
        assert len(pictures) == len(below[name]) == len(set(pictures)) + (name == "Step by step")


def test_a_form_paints_what_stands_in_it_and_the_slider_shows_another_step(painted: Any) -> None:
    first = PICTURE.findall(titled(painted[: -len(BY_HAND)], "One picture"))
    again, other, steps, slid, wrong = ([cell] for cell in painted[-len(BY_HAND) :])
    assert PICTURE.findall(titled(again, "One picture")) == first  # the same seed paints the same picture
    assert PICTURE.findall(titled(other, "One picture")) != first
    assert all(words in titled(other, "One picture") for words in ("a blue star", "Seed: 3,", "CFG scale: 2"))
    assert "a blue star" in titled(steps, "Step by step")
    last, second = (PICTURE.findall(titled(slid, f"After step {step}")) for step in (6, 2))
    assert len(set(last + second)) == 4
    (said,) = shown(wrong, "text/html")
    assert "seed" in said
    assert not PICTURE.findall(said)


def test_the_dataset_can_be_looked_at_by_hand(demo: Demo) -> None:
    assert demo.exit_code == 0, demo.err
    cells = executed("look_at_the_dataset.ipynb", demo.run)
    for title in (
        "From files to picked pictures",
        "What trains",
        "Scores and their words",
        "Near-duplicates",
        "Search the captions",
        "Length of captions",
    ):
        assert titled(cells, title)
    assert sum(len(PICTURE.findall(text)) for text in shown(cells)) > 60
    catalogue = shown(cells)[0]
    assert all(name in catalogue for name in ("aesthetic_score", "skip_reason", "caption"))


def going_on(demo: Path, run: Path) -> Callable[[], None]:
    """Make `run` the demo's run as it was in the midst of the training, with a last step that is skipped. Gives what
    brings it to its end."""
    run.mkdir()
    for path in demo.iterdir():
        if path.name not in ("run.json", "metrics.jsonl"):
            (run / path.name).symlink_to(path)
    lines, record = logs.read_metrics(demo / "metrics.jsonl"), json.loads((demo / "run.json").read_text())
    ended = json.dumps(record)
    record["verbs"]["train"] |= {"end": None, "exit_code": None}
    (run / "run.json").write_text(json.dumps(record))
    last = max(at for at, line in enumerate(lines) if line["kind"] == "step")
    lines[last] |= {"skipped": "loss is not finite", "skipped_ids": ["ab" * 32]}
    write = logs.Metrics(run / "metrics.jsonl").write
    for line in lines[: last // 2]:
        write(**line)

    def finish() -> None:
        for line in lines[last // 2 :]:
            write(**line)
        (run / "run.json").write_text(ended)

    return finish


def test_a_run_can_be_watched_while_it_goes_on(demo: Demo, tmp_path: Path) -> None:
    assert demo.exit_code == 0, demo.err
    run = tmp_path / "run"
    end = threading.Timer(1, going_on(demo.run, run))
    cells = executed(
        "watch_a_run.ipynb",
        run,
        started=lambda cell: end.start() if "watching.follow" in cell.source else None,
        FOLLOW_SECONDS=200,
    )
    lines = logs.read_metrics(demo.run / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "step"]
    training, course = titled(cells, "How the training went"), titled(cells, "On the way")  # one of it, drawn anew
    assert f"<dt>steps</dt><dd>{len(steps)}</dd>" in training
    assert "The training has ended" in training
    for chart in ("Loss", "Loss by time", "Speed", "Gradient norm"):
        assert f'aria-label="{chart}"' in training
    assert all(words in course for words in ("Workers", "1 skipped step", "loss is not finite", "Checkpoints"))
    assert titled(cells, "grad_norm").count("<polyline") == 2
    samples = [line for line in lines if line["kind"] == "sample"]
    assert len(samples) == len(PICTURE.findall(titled(cells, "What it paints"))) > 1
    saved = [line["bytes"] for line in lines if line["kind"] == "checkpoint"]
    (table,) = [text for text in shown(cells) if "<th>bytes</th>" in text]
    assert all(f"<td>{size}</td>" in table for size in saved)
