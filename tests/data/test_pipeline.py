import hashlib
import json
import os
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
from sote.data.recipe import CaptionPart, CurateRecipe, LatentsPart, ScorePart, Source, TagPart, TextPart, WorkPart


def recipe_for(run: Path, *, models: Path, pictures: Path) -> CurateRecipe:
    return CurateRecipe(
        run=str(run),
        sources=(
            Source(name="board", kind="image board", path=str(pictures / "board")),
            Source(name="pixiv", kind="pixiv", path=str(pictures / "pixiv")),
        ),
        shard_rows=8,
        slice_rows=4,
        score=ScorePart(
            aesthetic=str(models / "aesthetic"),
            quality_clip=str(models / "quality_clip"),
            quality_head=str(models / "quality_head"),
        ),
        tag=TagPart(tagger=str(models / "tagger")),
        text=TextPart(reader=str(models / "reader"), max_new_tokens=8),
        latents=LatentsPart(encoder=str(models / "encoder"), resolution=256),
        work=WorkPart(max_failed_share=0.5),
    )


def curate(recipe: CurateRecipe, *, redo_from: str | None = None) -> Count:
    free = pipeline.may_differ(redo_from)
    with storage.open_run(recipe, verb="curate", command="sote curate", may_differ=free) as folder:
        return pipeline.run(recipe, folder, address=None, redo_from=redo_from)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, local_ray: None, models: Path, pictures: Path) -> Path:
    """The run folder of a curation that nothing went wrong with."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    curate(recipe_for(run, models=models, pictures=pictures))
    return run


def test_every_file_is_in_the_catalogue_picked_or_with_one_reason(undisturbed: Path, pictures: Path) -> None:
    table = pq.read_table(undisturbed / "catalogue.parquet")
    assert table.schema.equals(schema.CATALOGUE)
    rows = table.to_pylist()
    files = {
        str(path)
        for kind in ("board", "pixiv")
        for path in (pictures / kind).rglob("*")
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


def test_what_was_done_to_the_drawn_pictures_is_found_out(undisturbed: Path) -> None:
    rows = pq.read_table(undisturbed / "catalogue.parquet").to_pylist()
    reasons = Counter(row["error"] or row["skip_reason"] for row in rows)
    assert reasons["decode: truncated"] == 1
    assert reasons["decode: not a picture"] == 1
    assert sum(number for reason, number in reasons.items() if reason and reason.startswith("duplicates: ")) >= 1
    ids = {row["id"] for row in rows}
    assert all(row["keeper"] in ids for row in rows if row["duplicate_group"] is not None)


def test_picked_rows_have_scores_captions_and_latents_in_their_place(undisturbed: Path) -> None:
    from safetensors import safe_open

    picked = [row for row in pq.read_table(undisturbed / "catalogue.parquet").to_pylist() if row["pick"]]
    assert picked
    for row in picked:
        assert 0 <= row["aesthetic_score"] <= 1
        assert 0 <= row["quality_score"] <= 1
        assert row["caption"] == ", ".join(row["caption_tags"])
        assert row["words"]["aesthetic"] in row["caption_tags"]
        with safe_open(undisturbed / "latents" / row["latent_shard"], framework="numpy") as file:
            facts = file.metadata()
            latents = file.get_slice("latents")[row["latent_offset"]]
        width, height = map(int, row["bucket"].split("x"))
        assert latents.shape == (16, height // 32, width // 32)
        assert json.loads(facts["ids"])[row["latent_offset"]] == row["id"]
        assert (facts["compression"], facts["bucket"]) == ("32.0", row["bucket"])


def test_pixiv_captions_name_the_artist_and_board_captions_the_date(undisturbed: Path) -> None:
    for row in pq.read_table(undisturbed / "catalogue.parquet").to_pylist():
        if row["caption_tags"]:
            by = any(tag.startswith("art by ") for tag in row["caption_tags"])
            assert by == (row["source"] == "pixiv")
            dated = bool({"newest", "recent", "mid", "early", "oldest"} & set(row["caption_tags"]))
            assert dated == (row["source"] == "board")


def test_the_same_command_again_redoes_nothing_and_gives_the_same_bytes(
    undisturbed: Path, models: Path, pictures: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "rows").rglob("*.parquet")}
    catalogue = (undisturbed / "catalogue.parquet").read_bytes()
    curate(recipe_for(undisturbed, models=models, pictures=pictures))
    assert {path: path.stat().st_mtime_ns for path in (undisturbed / "rows").rglob("*.parquet")} == before
    assert (undisturbed / "catalogue.parquet").read_bytes() == catalogue


def test_a_killed_curation_continues_to_the_same_catalogue_without_redoing_committed_shards(
    undisturbed: Path, models: Path, pictures: Path, tmp_path: Path
) -> None:
    recipe = recipe_for(tmp_path / "run", models=models, pictures=pictures)
    path = tmp_path / "curate.toml"
    path.write_text(recipes.dumps(recipe))
    command = [sys.executable, "-m", "sote.cluster.cli", "curate", str(path)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    rows = tmp_path / "run" / "rows"
    deadline = time.monotonic() + 120
    while not list(rows.glob("tag/*.done")) and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    committed = {each: each.stat().st_mtime_ns for each in rows.rglob("*.parquet") if storage.committed(each)}
    assert committed
    assert not (tmp_path / "run" / "catalogue.parquet").exists()
    curate(recipe)
    assert all(each.stat().st_mtime_ns == then for each, then in committed.items())
    assert (tmp_path / "run" / "catalogue.parquet").read_bytes() == (undisturbed / "catalogue.parquet").read_bytes()


def test_a_stage_can_be_done_again_with_another_recipe_and_what_follows_with_it(
    undisturbed: Path, models: Path, pictures: Path, tmp_path: Path
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    old = recipe_for(run, models=models, pictures=pictures)
    new = old.model_copy(update={"caption": CaptionPart(general_threshold=0.99, character_threshold=0.99)})
    with pytest.raises(RunFolderError, match=r"caption\.character_threshold"):
        curate(new)
    tags = {path: path.stat().st_mtime_ns for path in (run / "rows" / "tag").iterdir()}
    curate(new, redo_from="caption")
    assert {path: path.stat().st_mtime_ns for path in (run / "rows" / "tag").iterdir()} == tags
    before, after = (
        [row["caption"] or "" for row in pq.read_table(each / "catalogue.parquet").to_pylist()]
        for each in (undisturbed, run)
    )
    assert sum(map(len, after)) < sum(map(len, before))


def test_a_folder_without_one_readable_picture_is_refused(tmp_path: Path, models: Path) -> None:
    (tmp_path / "board").mkdir()
    (tmp_path / "pixiv").mkdir()
    for kind in ("board", "pixiv"):
        (tmp_path / kind / "a.jpg").write_text("not a picture")
    with pytest.raises(SourceError, match="not one readable picture among the 2 files"):
        curate(recipe_for(tmp_path / "run", models=models, pictures=tmp_path))


def test_too_many_failures_end_the_run_with_the_reasons_counted(
    tmp_path: Path, models: Path, pictures: Path, local_ray: None
) -> None:
    import shutil

    (tmp_path / "board").mkdir()
    (tmp_path / "pixiv").mkdir()
    good = next(path for path in sorted((pictures / "board").iterdir()) if path.suffix == ".png")
    for kind in ("board", "pixiv"):
        shutil.copy(good, tmp_path / kind / "a.png")
        for name in "bcd":
            (tmp_path / kind / f"{name}.jpg").write_text("not a picture")
    with pytest.raises(RunFailed, match=r"decode: 6 of 8 files failed.*not a picture': 6"):
        curate(recipe_for(tmp_path / "run", models=models, pictures=tmp_path))


def test_only_what_a_redone_stage_depends_on_may_differ() -> None:
    assert pipeline.may_differ(None) == {"work"}
    assert pipeline.may_differ("caption") == {"work", "caption", "select", "latents"}
    assert "sources" in pipeline.may_differ("index")
