"""RUN/report.html as a whole: one file, nothing loaded, nothing unescaped, whatever is missing or broken."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sote.cluster import storage
from sote.cluster.errors import RunFolderError
from sote.cluster.page import VOID
from sote.cluster.searchbox import SCRIPT
from sote.data import schema
from sote.data.recipe import CurateRecipe, Source
from sote.serve.report import write_report

HOSTILE = "<script>alert('x')</script> & http://evil.example/x.js"
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href", "style"}


class Reader(HTMLParser):
    """Collects what a browser would load, and the elements that are open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.add(name)
        self.loads += [value or "" for key, value in attributes if key in LOADING]
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] == "style":
            self.loads += re.findall(r"url\([^)]*\)|@import[^;]*|https?://\S+", text)


def read(report: Path) -> Reader:
    reader = Reader()
    reader.feed(report.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def noise(seed: int, *, width: int = 1200, height: int = 900) -> Image.Image:
    draw = np.random.Generator(np.random.Philox(seed))
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def whole_run(root: Path, *, pictures: int, painted: int) -> Path:
    """A run with a catalogue of noise (the worst for a codec), training steps and painted images, one of them gone."""
    root.mkdir(exist_ok=True)
    run = root / "run"
    recipe = CurateRecipe(run=str(run), sources=(Source(name=HOSTILE, path=str(root)),))
    common = {
        "source": HOSTILE,
        "words": {"aesthetic": "very aesthetic", "quality": "best quality", "date": None, "rating": None},
        "aesthetic_score": 0.85,
        "quality_score": 0.99,
        "width": 1200,
        "height": 900,
        "caption_tags": [HOSTILE],
        "caption": HOSTILE,
        "repeat": 1,
    }
    rows = []
    for number in range(pictures):
        path = root / f"{number}.jpg"
        noise(number).save(path, quality=80)
        end = {"pick": True} if number % 2 == 0 else {"pick": False, "skip_reason": f"select: {HOSTILE}"}
        rows.append({"id": f"{number:064x}", "uri": str(path)} | common | end)
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    rows.append({"id": "f" * 64, "uri": str(root / "broken.png"), "pick": True} | common)
    with storage.open_run(recipe, verb="curate", command="sote curate x.toml") as folder:
        storage.write_table(folder.catalogue, pa.Table.from_pylist(rows, schema=schema.CATALOGUE))
        folder.images.mkdir()
        lines = [
            {"kind": "step", "step": step, "loss": 1 / step, "images_seen": step, "lr": 1e-5} for step in (1, 2, 3)
        ]
        for number in range(painted):
            noise(100 + number, width=1024, height=1024).save(folder.images / f"{number}.png", compress_level=1)
            image = {"kind": "image", "file": f"images/{number}.png", "prompt": HOSTILE, "seed": number}
            lines.append(image | {"seconds": 1.5, "parameters": {"guidance": 7.0, "note": HOSTILE}})
        (folder.images / f"{painted - 2}.png").unlink()
        folder.metrics.write_text("".join(json.dumps({"time": 1.0} | line) + "\n" for line in lines))
    return run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(whole_run(tmp_path_factory.mktemp("whole"), pictures=24, painted=7))


def test_the_report_lies_in_the_run_folder_and_has_every_section(report: Path) -> None:
    assert report.name == "report.html"
    text = report.read_text(encoding="utf-8")
    keys = re.findall(r'<section id="([^"]+)"', text)
    assert keys == [
        *("river", "trains", "scores", "words", "tags", "characters", "years", "length", "samples", "set-aside"),
        *("duplicates", "search", "training", "parameters", "images"),
    ]
    assert "25 files in = 13 picked + 12 set aside for 1 reason." in text
    assert "The model painted 7 images." in text


def test_a_browser_loads_nothing_from_elsewhere_and_runs_one_script_that_the_policy_names(report: Path) -> None:
    reader = read(report)
    text = report.read_text(encoding="utf-8")
    assert re.findall(r"<script>(.*?)</script>", text, re.DOTALL) == [SCRIPT]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert (
        html.escape(f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'")
        in text
    )
    assert not re.search("fetch|XMLHttpRequest|WebSocket|import|innerHTML|eval|https?:", SCRIPT)
    assert "iframe" not in reader.names
    sources = [load for load in reader.loads if not load.startswith(("data:image/", "#"))]
    assert all(re.fullmatch(r"(width|height|top|left):[\d.]+%", source) for source in sources), set(sources)
    assert sum(load.startswith("data:image/webp") for load in reader.loads) > 20


def test_hostile_text_is_escaped_wherever_it_comes_from(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert text.count("&lt;script&gt;") > 13  # captions, the source, the reason, prompts, parameters


def test_broken_and_vanished_pictures_leave_a_placeholder(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "images/5.png: the file is gone" in text
    assert text.count('class="blank"') == 2


def test_even_pictures_of_noise_keep_the_page_under_three_megabytes(report: Path) -> None:
    assert report.stat().st_size < 3_000_000


def test_writing_it_again_gives_the_same_bytes(tmp_path: Path) -> None:
    run = whole_run(tmp_path, pictures=2, painted=2)
    before = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == before


def test_a_run_with_nothing_in_it_says_so(tmp_path: Path) -> None:
    recipe = CurateRecipe(run=str(tmp_path / "run"), sources=(Source(name="a", path=str(tmp_path)),))
    with storage.open_run(recipe, verb="curate", command="sote curate x.toml") as folder:
        text = write_report(folder.root).read_text(encoding="utf-8")
    assert "Nothing is in this run yet." in text
    assert "Not in this run yet: curation, training, images." in text
    read(folder.report)


def test_what_is_no_run_folder_gets_no_report(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
