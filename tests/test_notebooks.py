"""The notebooks run from top to bottom on the demo, and are committed without what they showed."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import Demo

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_what_it_showed(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


def executed(name: str, demo: Demo) -> Any:
    """The notebook after a run on the demo."""
    assert demo.exit_code == 0, demo.err
    notebook = nbformat.read(FOLDER / name, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = f"RUN = {str(demo.run)!r}"
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    return notebook


def test_a_picture_can_be_painted_by_hand(demo: Demo) -> None:
    notebook = executed("paint.ipynb", demo)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_dataset_can_be_looked_at_by_hand(demo: Demo) -> None:
    notebook = executed("look_at_the_dataset.ipynb", demo)
    shown = ["".join(output.data.get("text/html", "") for output in cell.get("outputs", ())) for cell in notebook.cells]
    titles = (
        "From files to picked pictures",
        "What trains",
        "Near-duplicates",
        "Search the captions",
        "Length of captions",
    )
    assert [sum(f"{title}</h2>" in text for text in shown) for title in titles] == [1] * len(titles)
    assert sum(text.count("<img") for text in shown) > 60
    assert "<table" in shown[4]  # the catalogue
