import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sote.cluster import recipe as recipes
from sote.cluster import storage
from sote.cluster.errors import RunFailed, RunFolderError, SourceError
from sote.data import pipeline, schema
from sote.data.catalogue import Count
from sote.data.recipe import CaptionPart, CurateRecipe, SelectPart, Source, WorkPart
from tests.conftest import Demo


def curate(recipe: CurateRecipe, *, redo_from: str | None = None) -> Count:
    free = pipeline.may_differ(redo_from)
    with storage.open_run(recipe, verb="curate", command="sote curate", may_differ=free) as folder:
        return pipeline.run(recipe, folder, address=None, redo_from=redo_from)


def recipe_of(demo: Demo, **changes: object) -> CurateRecipe:
    return recipes.load(demo.run / "recipes" / "curate.toml", CurateRecipe).model_copy(update=changes)


@pytest.mark.timeout(900)
def test_every_file_is_in_the_catalogue_picked_or_with_one_reason(demo: Demo) -> None:
    table = pq.read_table(demo.run / "catalogue.parquet")
    assert table.schema.equals(schema.CATALOGUE)
    rows = table.to_pylist()
    files = {
        str(path)
        for kind in ("board", "pixiv")
        for path in (demo.run / "pictures" / kind).rglob("*")
        if path.is_file() and path.suffix != ".json"
    }
    assert Counter(row["uri"] for row in rows) == Counter(files)
    for row in rows:
        assert row["id"] == hashlib.sha256(Path(row["uri"]).read_bytes()).hexdigest()
        assert row["pick"] == (row["skip_reason"] is None and row["error"] is None)
        assert not (row["skip_reason"] and row["error"])
        assert (row["repeat"] > 0) == row["pick"]
        for reason in filter(None, (row["skip_reason"], row["error"])):
            assert reason.split(": ")[0] in {stage.name for stage in pipeline.STAGES}


def test_what_was_done_to_the_drawn_pictures_is_found_out(demo: Demo) -> None:
    rows = pq.read_table(demo.run / "catalogue.parquet").to_pylist()
    ends = {row["uri"]: (row["error"] or row["skip_reason"] or "picked", row["duplicate_group"]) for row in rows}
    truth = [json.loads(line) for line in (demo.run / "pictures" / "truth.jsonl").read_text().splitlines()]
    expected = {
        "truncated": "decode: truncated",
        "not a picture": "decode: not a picture",
        "absurd size": "decode: header says more than 100000000 pixels",
        "small": "decode: fewer than 768000 pixels",
        "variant": "picked",
    }
    checked = 0
    for entry in truth:
        end, group = ends[str(demo.run / "pictures" / entry["file"])]
        if entry["form"] in expected:
            assert end == expected[entry["form"]], entry
        elif entry["made_from"]:
            original = ends[str(demo.run / "pictures" / entry["made_from"])]
            assert group == original[1] is not None, entry
            assert {end.split(": ")[0], original[0].split(": ")[0]} == {"picked", "duplicates"}, entry
        checked += entry["form"] in expected or bool(entry["made_from"])
    assert checked >= 10


def test_picked_rows_have_scores_captions_and_latents_in_their_place(demo: Demo) -> None:
    from safetensors import safe_open

    picked = [row for row in pq.read_table(demo.run / "catalogue.parquet").to_pylist() if row["pick"]]
    assert picked
    for row in picked:
        assert 0 <= row["aesthetic_score"] <= 1
        assert 0 <= row["quality_score"] <= 1
        assert row["caption"] == ", ".join(row["caption_tags"])
        assert row["words"]["aesthetic"] in row["caption_tags"]
        with safe_open(demo.run / "latents" / row["latent_shard"], framework="numpy") as file:
            facts = file.metadata()
            latents = file.get_slice("latents")[row["latent_offset"]]
        width, height = map(int, row["bucket"].split("x"))
        assert latents.shape == (16, height // 32, width // 32)
        assert json.loads(facts["ids"])[row["latent_offset"]] == row["id"]
        assert (facts["compression"], facts["bucket"]) == ("32.0", row["bucket"])


def test_pixiv_captions_name_the_artist_and_board_captions_the_date(demo: Demo) -> None:
    for row in pq.read_table(demo.run / "catalogue.parquet").to_pylist():
        if row["caption_tags"]:
            by = any(tag.startswith("art by ") for tag in row["caption_tags"])
            assert by == (row["source"] == "pixiv")
            dated = bool({"newest", "recent", "mid", "early", "oldest"} & set(row["caption_tags"]))
            assert dated == (row["source"] == "board")


def test_a_killed_curation_continues_to_the_same_rows_without_redoing_committed_shards(
    demo: Demo, tmp_path: Path, local_ray: None
) -> None:
    whole = recipe_of(demo)
    # the first source fills the first shards, so their rows must be those of the undisturbed run
    recipe = recipe_of(demo, run=str(tmp_path / "run"), sources=whole.sources[:1], text=None, latents=None)
    path = tmp_path / "curate.toml"
    path.write_text(recipes.dumps(recipe))
    started = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    rows = tmp_path / "run" / "rows"
    deadline = time.monotonic() + 180
    while not list(rows.glob("tag/*.done")) and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    committed = {each: each.stat().st_mtime_ns for each in rows.rglob("*.parquet") if storage.committed(each)}
    assert committed
    assert not (tmp_path / "run" / "catalogue.parquet").exists()
    curate(recipe)
    assert all(each.stat().st_mtime_ns == then for each, then in committed.items())
    shards = sorted(path.name for path in (rows / "index").glob("*.parquet"))
    assert len(shards) == 2
    for stage in ("index", "decode", "score", "tag"):
        for name in shards:
            assert (rows / stage / name).read_bytes() == (demo.run / "rows" / stage / name).read_bytes(), (stage, name)
    assert pq.read_metadata(tmp_path / "run" / "catalogue.parquet").num_rows == 32


KILLED = """
import sys
from pathlib import Path
from sote.cluster import recipe, storage
from sote.data import pipeline
from sote.data.recipe import CurateRecipe
loaded = recipe.load(Path(sys.argv[1]), CurateRecipe)
with storage.open_run(loaded, verb="curate", command="sote curate", may_differ={"work"}) as folder:
    pipeline.run(loaded, folder, address=None)
"""


def test_a_stage_can_be_done_again_with_another_recipe_and_what_follows_with_it(
    demo: Demo, tmp_path: Path, local_ray: None
) -> None:
    run = tmp_path / "run"
    shutil.copytree(demo.run, run)
    new = recipe_of(demo, run=str(run), caption=CaptionPart(general_threshold=0.99, character_threshold=0.99))
    with pytest.raises(RunFolderError, match=r"caption\.character_threshold"):
        curate(new)
    kept = [*(run / "rows" / "tag").iterdir(), *(run / "latents").rglob("*.safetensors")]
    before_it = {path: path.stat().st_mtime_ns for path in kept}
    curate(new, redo_from="caption")
    assert {path: path.stat().st_mtime_ns for path in kept} == before_it  # the same rows are picked
    before, after = (
        [row["caption"] or "" for row in pq.read_table(each / "catalogue.parquet").to_pylist()]
        for each in (demo.run, run)
    )
    assert sum(map(len, after)) < sum(map(len, before))


def test_a_folder_without_one_readable_picture_is_refused(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "pictures" / name).write_text("not a picture")
    sources = (Source(name="mine", path=str(tmp_path / "pictures")),)
    with pytest.raises(SourceError, match="not one readable picture among the 2 files"):
        curate(recipe_of(demo, run=str(tmp_path / "run"), sources=sources))


def test_too_many_failures_end_the_run_with_the_reasons_counted(demo: Demo, tmp_path: Path, local_ray: None) -> None:
    run = tmp_path / "run"
    shutil.copytree(demo.run, run)
    for marker in (run / "rows" / "caption").glob("*.done"):
        marker.unlink()  # something is still to do, so the share is looked at
    strict = recipe_of(demo, run=str(run), work=WorkPart(max_failed_share=0.01))
    with pytest.raises(RunFailed, match=r"decode: 3 of 64 files failed.*'decode: truncated': 1"):
        curate(strict)


def test_only_what_a_redone_stage_depends_on_may_differ() -> None:
    assert pipeline.may_differ(None) == {"work"}
    assert pipeline.may_differ("caption") == {"work", "caption", "select"}
    assert pipeline.may_differ("latents") == {"work", "latents"}
    assert pipeline.may_differ("score") == {"work", "score", "tag", "duplicates", "text", "caption", "select"}
    assert pipeline.may_differ("index") == CurateRecipe.model_fields.keys() - {"run"}


def test_other_picks_make_other_latents(demo: Demo, tmp_path: Path, local_ray: None) -> None:
    run = tmp_path / "run"
    shutil.copytree(demo.run, run)
    fewer = recipe_of(demo, run=str(run), select=SelectPart(min_aesthetic_score=0.5))
    count = curate(fewer, redo_from="select")
    assert 0 < count.picked < 55
    rows = [row for row in pq.read_table(run / "catalogue.parquet").to_pylist() if row["latent_shard"]]
    assert len(rows) == count.picked
    assert {row["latent_shard"] for row in rows} == {
        str(path.relative_to(run / "latents")) for path in (run / "latents").rglob("*.safetensors")
    }
