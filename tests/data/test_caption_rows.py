"""Captions of a whole shard are those of its rows one by one."""

import math
import random
from typing import Any

import pyarrow as pa
import pytest

from sote.data import schema
from sote.data.caption import CaptionFacts, caption, load_profile
from sote.data.caption_rows import COLUMNS, captions
from sote.data.recipe import CaptionPart, Source

CARD = load_profile("sote-v1")
PART = CaptionPart()
WRITTEN = ("caption", "caption_tags", "caption_groups", "words")
SOURCES = {
    "board": Source(name="board", kind="image board", path="a", sidecar_tags=True, date_word="mid"),
    "pixiv": Source(name="pixiv", kind="pixiv", path="b", tags=("drawn",)),
    "vn": Source(name="vn", kind="visual novel", path="c", title="Some Title", short_title="st"),
}
NAMES = ["1girl", "long_hair", "^_^", "a,b", "english_text", "ganyu_(genshin_impact)", "saber_(fate)", "hatsune_miku"]


def made_row(draw: random.Random) -> dict[str, Any]:
    def names() -> list[str] | None:
        return draw.choice([None, [], draw.sample(NAMES, 2)])

    # thresholds, the float32 just below them, and anything else
    likely = [0.35, 0.5, 0.3499999, 0.4999999, *(draw.random() for _ in range(4))]
    tags = [
        {"name": name, "probability": draw.choice(likely), "category": draw.choice(["general", "character"])}
        for name in draw.sample(NAMES, draw.randrange(len(NAMES)))
    ]
    return {
        "source": draw.choice(sorted(SOURCES)),
        "aesthetic_score": draw.choice([None, math.nan, draw.random()]),
        "quality_score": draw.choice([None, 0.98, draw.random()]),
        "rating": draw.choice([None, {name: draw.random() for name in schema.RATINGS}]),
        "tags": draw.choice([None, [], tags, tags, tags]),
        "year": draw.choice([None, 2004, 2020]),
        "text": draw.choice([None, 'The text says "a, b"']),
        "artist": draw.choice([None, "Some One"]),
        "title": draw.choice([None, "Own, Title"]),
        "short_title": draw.choice([None, "ot"]),
        "characters": names(),
        "series": names(),
        "sidecar_tags": names(),
    }


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], schema.BY_NAME[name].type) for name in COLUMNS})


def expected(row: dict[str, Any], profile, *, part: CaptionPart) -> tuple[Any, Any, Any, Any]:
    if row["tags"] is None:
        return None, None, None, None
    source = SOURCES[row["source"]]
    facts = CaptionFacts(
        source_kind=source.kind,
        tags=[(tag["name"], tag["probability"], tag["category"]) for tag in row["tags"]],
        rating=None if row["rating"] is None else tuple(row["rating"].values()),
        source_word=source.date_word,
        source_tags=source.tags,
        title=row["title"] or source.title,
        short_title=row["short_title"] or source.short_title,
        characters=row["characters"] or (),
        series=row["series"] or (),
        sidecar_tags=(row["sidecar_tags"] or ()) if source.sidecar_tags else (),
        **{name: row[name] for name in ("aesthetic_score", "quality_score", "year", "text", "artist")},
    )
    made = caption(facts, profile, part=part)
    groups = list(range(len(made.tags)))
    for together in made.together:
        for place in together:
            groups[place] = together[0]
    return made.text, list(made.tags), groups, made.words


@pytest.mark.parametrize("assembly", ["clean", "kohya"])
@pytest.mark.parametrize("part", [PART, CaptionPart(general_threshold=0.6, character_threshold=0.2)])
def test_a_shards_captions_are_those_of_its_rows(assembly: str, part: CaptionPart) -> None:
    draw = random.Random(0)
    profile = CARD.model_copy(update={"assembly": assembly})
    table = table_of([made_row(draw) for _ in range(400)])
    table = pa.concat_tables([table.slice(0, 150), table.slice(150)])
    made = captions(table, profile, part=part, sources=SOURCES)
    rows = zip(*(made[name].to_pylist() for name in WRITTEN), strict=True)
    assert list(rows) == [expected(row, profile, part=part) for row in table.to_pylist()]
    assert {name: column.type for name, column in made.items()} == {name: schema.BY_NAME[name].type for name in WRITTEN}


def test_names_of_tags_may_come_as_numbers_into_a_list() -> None:
    draw = random.Random(1)
    table = table_of([made_row(draw) for _ in range(50)])
    lists = table["tags"].combine_chunks()
    flat = lists.flatten()
    names = [
        flat.field("name").dictionary_encode(),
        flat.field("probability"),
        flat.field("category").dictionary_encode(),
    ]
    tag = pa.StructArray.from_arrays(names, names=["name", "probability", "category"])
    offsets = pa.array([0, *lists.value_lengths().fill_null(0).to_numpy().cumsum()], pa.int32())
    numbered = pa.ListArray.from_arrays(offsets, tag, mask=lists.is_null())
    other = table.set_column(table.column_names.index("tags"), "tags", numbered)
    of_both = [captions(each, CARD, part=PART, sources=SOURCES) for each in (table, other)]
    assert of_both[0]["caption_tags"].equals(of_both[1]["caption_tags"])


def test_a_shard_without_rows_or_without_tags_has_captions_too() -> None:
    empty = captions(table_of([]), CARD, part=PART, sources=SOURCES)
    assert [len(column) for column in empty.values()] == [0, 0, 0, 0]
    untagged = made_row(random.Random(2)) | {"tags": None}
    made = captions(table_of([untagged]), CARD, part=PART, sources=SOURCES)
    assert [column.to_pylist() for column in made.values()] == [[None], [None], [None], [None]]
