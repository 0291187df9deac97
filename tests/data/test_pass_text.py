import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from sote.cluster import storage
from sote.cluster.errors import RunFailed
from sote.cluster.logs import read_metrics
from sote.cluster.storage import RunFolder
from sote.data import pass_text, places, shards, standin_reader
from sote.data.pass_text import wanted
from sote.data.recipe import CurateRecipe
from sote.data.shards import Work
from sote.data.text import Reader

STAGES = ("index", "decode", "score", "tag", "duplicates", "text")
# width of the picture, probability of english_text (None: no such tag), what else is known of the row
ROWS: list[tuple[int, float | None, dict[str, str]]] = [
    (60, 0.9, {}),
    (61, 0.35, {}),  # on the threshold, as float32 below it
    (62, 0.3499, {}),
    (63, None, {}),
    (64, 0.9, {"duplicates_skip": "duplicates: copy of another"}),
    (65, 0.9, {"decode_error": "decode: truncated"}),
    (66, 0.9, {}),
    (67, 0.9, {}),
    (68, 0.9, {}),
]


def tagged(folder: Path, *, text: dict[str, Any] | None, rows: Any = ROWS, shard_count: int = 2) -> Work:
    """A run with the rows in each of its shards, tagged and deduplicated."""
    folder.mkdir(exist_ok=True)
    recipe = CurateRecipe.model_validate(
        {
            "run": str(folder / "run"),
            "sources": [{"name": "s", "path": str(folder)}],
            "slice_rows": 2,
            "decode": {"min_pixels": 1},
            "text": text,
        }
    )
    work = Work(recipe, RunFolder(folder / "run"), dict.fromkeys(STAGES, "d"))
    for shard in range(shard_count):
        made = []
        for number, (width, probability, known) in enumerate(rows):
            path = folder / f"{shard}-{width}.png"
            Image.new("RGB", (width, 40), (width, 100 * shard, 0)).save(path)
            tags = [{"name": "1girl", "probability": 0.99, "category": "general"}]
            if probability is not None:
                tags.append({"name": "english_text", "probability": probability, "category": "general"})
            row = {"row": number, "uri": str(path), "bytes": path.stat().st_size, "tags": tags, **known}
            made.append(row | {"id": hashlib.sha256(path.read_bytes()).hexdigest()})
        for stage in STAGES[:-1]:
            work.commit(stage, shard, shards.table_of(stage, made), seconds=0.0)
    storage.commit(work.index_marker, digest="d", shards=shard_count, rows=shard_count * len(rows))
    return work


def test_sound_rows_tagged_english_text_are_read_and_no_others(tmp_path: Path) -> None:
    work = tagged(tmp_path, text={}, shard_count=1)
    assert [row["row"] for row in wanted(work.folder, work.recipe.text, 0)] == [0, 1, 6, 7, 8]
    assert wanted(work.folder, None, 0) == []
    untagged = tagged(tmp_path / "other", text={}, rows=[(60, None, {}), (61, 0.1, {})], shard_count=1)
    assert wanted(untagged.folder, untagged.recipe.text, 0) == []


def test_rows_that_have_no_tags_at_all_are_not_read(tmp_path: Path) -> None:
    work = tagged(tmp_path, text={}, shard_count=1)
    table = pq.read_table(work.folder.rows("tag", 0)).to_pylist()
    for number in (0, 7):
        table[number]["tags"] = None
    storage.write_table(work.folder.rows("tag", 0), shards.table_of("tag", table))
    assert [row["row"] for row in wanted(work.folder, work.recipe.text, 0)] == [1, 6, 8]


def test_without_a_text_table_every_shard_is_committed_at_once(tmp_path: Path) -> None:
    work = tagged(tmp_path, text=None)
    pass_text.run(work)  # no Ray is running
    assert work.pending("text") == []
    assert pq.read_table(work.folder.rows("text", 1)).num_rows == len(ROWS)


def test_llava_reads_what_a_row_names_in_a_file_or_in_a_tar(tmp_path: Path) -> None:
    standin_reader.make(tmp_path / "reader", seed=0)
    work = tagged(tmp_path, text={"reader": str(tmp_path / "reader"), "max_new_tokens": 4}, shard_count=1)
    picture = tmp_path / "0-60.png"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(picture, "deep/60.png")
    rows = pq.read_table(work.folder.rows("index", 0)).to_pylist()
    rows[6]["uri"] = places.in_tar("deep/60.png", str(tmp_path / "a.tar"))  # the same picture as row 0
    (tmp_path / "0-67.png").unlink()
    (tmp_path / "0-68.png").write_bytes(picture.read_bytes()[:-30])
    storage.write_table(work.folder.rows("index", 0), shards.table_of("index", rows))
    reader = Reader(tmp_path / "reader", max_new_tokens=4, rows=2, device="cpu")
    (piece,) = pass_text.read(reader, work.folder, work.recipe, numbers=[0])
    shard, read = piece["shard"], shards.from_bytes(piece["text"]).to_pylist()
    answers = {row["row"]: row.get("read_text") for row in read}
    assert (shard, list(answers)) == (0, [0, 1, 6, 7, 8])
    assert answers[0]
    assert answers[6] == answers[0]
    errors = {row["row"]: row["text_error"] for row in read if row["text_error"]}
    assert errors == {7: "text: file vanished", 8: "text: truncated"}


def test_a_server_is_asked_and_every_outcome_is_a_row(tmp_path: Path, chat_server: Any) -> None:
    busy = Counter[int]()

    def answer(picture: Image.Image) -> Any:
        busy[picture.width] += 1
        if picture.width == 61 and busy[61] == 1:
            return 429, {"Retry_After": "0"}, b"{}"
        if picture.width == 67:
            return 400, {}, b"{}"
        return chat_server.said("A girl." if picture.width == 66 else f'The text says "{picture.width}, A".')

    chat_server.answer = answer
    key = tmp_path / "key"
    key.write_text("confidential\n")
    text = {"url": chat_server.url, "reader": "some-vlm", "api_key_file": str(key), "requests_at_once": 3}
    work = tagged(tmp_path, text=text)
    (tmp_path / "1-68.png").unlink()
    pass_text.run(work)
    assert work.pending("text") == []
    for shard in (0, 1):
        rows = pq.read_table(work.folder.rows("text", shard)).to_pylist()
        assert [row["row"] for row in rows] == list(range(len(ROWS)))
        assert rows[0]["text"] == 'The text says "60. A"'
        assert rows[1]["read_text"] == 'The text says "61, A".'
        assert (rows[6]["text"], rows[6]["read_text"], rows[6]["text_error"]) == (None, "A girl.", None)
        assert rows[7]["text_error"] == "text: the reader refused it (HTTP 400)"
        assert all(rows[number]["read_text"] is rows[number]["text_error"] is None for number in (2, 3, 4, 5))
    assert rows[8]["text_error"] == "text: file vanished"
    lines = read_metrics(work.folder.metrics)
    tallies = {line["shard"]: line for line in lines if line["kind"] == "text"}
    assert [[tallies[shard][name] for name in ("asked", "accepted", "refused", "failed")] for shard in (0, 1)] == [
        [5, 3, 1, 1],
        [5, 2, 1, 2],
    ]
    (engine,) = [line for line in lines if line["kind"] == "engine"]
    assert (engine["stage"], engine["engine"], engine["device"]) == ("text", "http", chat_server.url)
    assert chat_server.keys == {"Bearer confidential"}
    assert not any("confidential" in path.read_text(errors="replace") for path in work.folder.root.rglob("*.json*"))


def test_a_server_that_is_dead_ends_the_run_and_the_same_run_continues(tmp_path: Path, chat_server: Any) -> None:
    alive = chat_server.answer
    work = tagged(tmp_path, text={"url": chat_server.url, "reader": "some-vlm", "requests_at_once": 1})
    chat_server.answer = lambda picture: alive(picture) if len(chat_server.bodies) < 8 else (401, {}, b"{}")
    with pytest.raises(RunFailed, match=r"^text\.url: http://127\S+ answers no more .*401"):
        pass_text.run(work)
    assert work.pending("text") == [1]
    first = work.folder.rows("text", 0).read_bytes()
    asked = len(chat_server.bodies)
    chat_server.answer = alive
    pass_text.run(work)
    assert work.pending("text") == []
    assert len(chat_server.bodies) == asked + 5
    assert work.folder.rows("text", 0).read_bytes() == first
    facts = storage.committed(work.folder.rows("text", 1))
    assert facts is not None
    assert json.dumps(facts["errors"]) == "{}"
