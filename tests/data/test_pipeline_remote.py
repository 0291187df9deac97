"""Pictures and a run's rows at a URI, against a real S3 server; what Ray's workers do is done in a second process."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sote.cluster import remote, storage, store
from sote.cluster.errors import SourceError, Unreachable
from sote.data import catalogue, exports, files, index, pass_captions, pipeline, shards
from sote.data.decode import read_row
from sote.data.pass_captions import captioned
from sote.data.recipe import DecodePart, Source
from sote.data.shards import Work
from sote.serve.report import write_report
from tests.conftest import Command
from tests.data import test_exports, test_pass_captions
from tests.stores import Store

WORKER = """
import pickle, sys
from sote.data.pass_captions import captioned
from sote.data.shards import to_bytes
folder, recipe, shard = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(to_bytes(captioned(folder, shard, recipe)))
"""


def upload(folder: Path, to: str) -> None:
    found = [path for path in folder.rglob("*") if path.is_file()]
    store.each(lambda path: store.put(f"{to}/{path.relative_to(folder)}", path), found)


def curated(root: Path) -> Work:
    """A run that is complete but for latents, by the driver's own code."""
    work = test_pass_captions.made_run(test_pass_captions.work_of(root))
    work.digests["latents"] = "digest of latents"
    for shard in range(work.shard_count()):
        work.commit("caption", shard, captioned(work.folder, shard, work.recipe), seconds=0.0)
    pass_captions.select(work)
    for shard in work.pending("latents"):
        work.commit("latents", shard, shards.blank("latents", work.rows_in(shard)), seconds=0.0)
    catalogue.write(work)
    return work


@pytest.mark.parametrize("every", [0, 20])
def test_a_run_at_a_uri_has_the_bytes_of_a_local_one_though_writes_fail(s3: Store, tmp_path: Path, every: int) -> None:
    (tmp_path / "here").mkdir()
    curated(tmp_path / "here")
    recipe = test_pass_captions.work_of(tmp_path).recipe.model_copy(update={"run": f"{s3.uri}/there"})
    s3.fail_every(every)
    with storage.open_run(recipe, verb="curate", command="sote curate") as folder:
        curated(folder.root)
    s3.fail_every(0)
    here = {path.relative_to(tmp_path / "here"): path.read_bytes() for path in (tmp_path / "here").rglob("*.parquet")}
    there = {Path(name).relative_to("there"): data for name, data in s3.files().items() if name.endswith(".parquet")}
    assert len(here) > 20
    assert here == there


def test_a_worker_on_another_node_reads_the_rows_through_its_own_mirror(s3: Store, tmp_path: Path) -> None:
    import pickle

    work = test_pass_captions.made_run(test_pass_captions.work_of(remote.place(f"{s3.uri}/run")))
    given = pickle.dumps((work.folder, work.recipe, 1))
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "other")}
    done = subprocess.run([sys.executable, "-c", WORKER], input=given, capture_output=True, env=environment, check=True)
    assert shards.from_bytes(done.stdout).equals(captioned(work.folder, 1, work.recipe))
    assert (tmp_path / "other/sote/remote/s3").is_dir()


def test_a_stage_is_done_again_by_taking_its_markers_back_there(s3: Store, tmp_path: Path) -> None:
    recipe = test_pass_captions.work_of(tmp_path).recipe.model_copy(update={"run": f"{s3.uri}/run"})
    with storage.open_run(recipe, verb="curate", command="sote curate") as folder:
        work = curated(folder.root)
        pipeline.forget(work, "select")
        assert work.pending("select") == [0, 1, 2]
        assert work.pending("caption") == []
    left = {name.split("/")[2] for name in s3.files() if name.endswith(".parquet.done")}
    assert ("caption" in left, "select" in left) == (True, False)


def test_pictures_and_sidecars_on_s3_are_listed_and_read_as_local_ones(s3: Store, tmp_path: Path) -> None:
    test_exports.write_run(tmp_path)
    pictures = tmp_path / "pictures"
    (pictures / "0.img").rename(pictures / "0.png")
    (pictures / "0.json").write_text('{"rating": "s", "tag_string_general": "1girl"}')
    (pictures / "deep").mkdir()
    (pictures / "deep" / "1.png").write_bytes((pictures / "1.img").read_bytes())
    upload(pictures, f"{s3.uri}/pictures")

    def rows(path: str) -> list[dict[str, object]]:
        source = Source(name="s", kind="plain", path=path)
        return pa.concat_tables(index.tables([source], shard_rows=100)).to_pylist()

    here, there = rows(str(pictures)), rows(f"{s3.uri}/pictures")
    assert len(here) > 5
    for one, other in zip(here, there, strict=True):
        assert other | {"uri": str(other["uri"]).replace(f"{s3.uri}/pictures", str(pictures))} == one
        assert read_row(other, rule=DecodePart()) == read_row(one, rule=DecodePart())


def test_a_store_that_stays_away_ends_the_run_and_is_no_fault_of_a_row(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FIRST_WAIT_SECONDS", 0.0)

    def down() -> bytes:
        raise TimeoutError("read timed out")

    with pytest.raises(Unreachable, match=rf"^{s3.uri}/a.png: read timed out \(5 times\)"):
        files._tried(down, f"{s3.uri}/a.png")
    missing = {"uri": f"{s3.uri}/a.png", "offset": None, "bytes": None, "index_skip": None, "index_error": None}
    assert read_row(missing, rule=DecodePart())[1]["decode_error"] == "decode: file vanished"
    with pytest.raises(SourceError, match="no such folder"):
        index.check(Source(name="s", kind="plain", path=f"{s3.uri}/nothing"))


def test_a_run_at_a_uri_is_exported_and_reported(s3: Store, sote: Command, tmp_path: Path) -> None:
    run = test_exports.write_run(tmp_path)
    storage.write_text(run / "run.json", '{"verbs": {}}')
    upload(run, f"{s3.uri}/run")
    expected = exports.export(run, tmp_path / "here", "parquet")
    code, out, err = sote("export", f"{s3.uri}/run", f"{s3.uri}/out", "--format", "parquet")
    assert (code, out) == (0, f"{s3.uri}/out/00000.parquet\n"), err
    data = s3.files()["out/00000.parquet"]
    assert pq.read_table(pa.BufferReader(data)).equals(pq.read_table(expected[0]))
    code, out, err = sote("status", f"{s3.uri}/run")
    assert (code, "8 of 9 files picked" in out) == (0, True), err


def test_the_report_of_a_run_at_a_uri_is_written_there(s3: Store, tmp_path: Path) -> None:
    recipe = test_pass_captions.work_of(tmp_path).recipe.model_copy(update={"run": f"{s3.uri}/run"})
    with storage.open_run(recipe, verb="curate", command="sote curate") as folder:
        curated(folder.root)
    assert remote.named(write_report(remote.place(f"{s3.uri}/run"))) == f"{s3.uri}/run/report.html"
    assert b"6 files in" in s3.files()["run/report.html"]
