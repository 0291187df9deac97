"""Prompt adherence in the small world: paint the fixed prompts with each model, read the paintings by rules, count.

Reads: models of Stage C; data/world_prompts, data/world_reader. Writes: RUN/adherence.json and the paintings.
The reader knows the world's rules and no model, least of all the tagger that the captions come from.

Kind: actor.
"""

import asyncio
import io
import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image

from sote.cluster import storage
from sote.data import painting, world, world_prompts, world_reader
from sote.data.world_prompts import CONCEPT, Asked
from sote.serve.adherence_file import FILE, Adherence, Name
from sote.serve.cascade import Local
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.schema import GenerateRequest, resolve

ASKED = world_prompts.prompts()
FOLDER_OF = "images/adherence/{}"  # below the run folder: a model's paintings
SLOTS = 16  # pictures that step together
TRUTHS = 4  # pictures of the concept as it is drawn
# What the demo must show (shares)
LEAST_BASE, LEAST_LEARNT = 0.8, 0.7
DEVIATIONS = 2.0  # by how many standard deviations a count by chance may lie above its mean
LOOKS = "shape and colour"  # the group of tags that say both; the base is judged by both at once, and by each
_ALL_LOOKS = {*world.GROUPS[LOOKS], world_prompts.concept_tags()[0]}  # the held-out one is read, too


@dataclass(frozen=True)
class Judged:
    """One model: how it is called, and where it lies."""

    label: str
    part: ModelPart


def measure(
    run: Path,
    models: Mapping[Name, Judged],
    *,
    defaults: DefaultsPart,
    chance: float,
    asked: tuple[Asked, ...] = ASKED,
    processes: int = 2,
) -> Adherence:
    """Paint, read, count; writes RUN/adherence.json and returns what it holds.

    `chance` is the share of the concept among the pictures that were trained on: what a model paints of it that does
    not listen to its name.
    """
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {
            name: pool.submit(paint_and_read, run / FOLDER_OF.format(name), each.part, defaults, asked)
            for name, each in models.items()
        }
        painted = {
            name: [(f"{FOLDER_OF.format(name)}/{file}", tags) for file, tags in job.result()]
            for name, job in jobs.items()
        }
    found = {name: [sorted(tags) for _, tags in pictures] for name, pictures in painted.items()}
    told: dict[str, Any] = {
        "prompts": [_told(each) for each in asked],
        "models": {
            name: {"label": each.label, "images": [path for path, _ in painted[name]], "found": found[name]}
            for name, each in models.items()
        },
        "groups": {group: {name: _hits(asked, found[name], group) for name in models} for group in _groups(asked)},
        "concept": _concept(run, asked, {name: painted[name] for name in models}, chance=chance),
    }
    told["goals"] = list(_goals(told, *_either(asked, found["base"]), chance=chance))
    whole = Adherence.model_validate(told)
    storage.write_text(run / FILE, whole.model_dump_json(indent=1, exclude_none=True) + "\n")
    return whole


def share_of_concept(curated: Path) -> float:
    """The share of the concept among the picked pictures of a curate run: those whose caption names it."""
    name = world_prompts.spoken(world.CONCEPT.name.partition("_(")[0])
    table = pq.read_table(curated / "catalogue.parquet", columns=["pick", "caption"])
    captions = [row["caption"] for row in table.to_pylist() if row["pick"]]
    return sum(name in caption for caption in captions) / len(captions)


def scores(asked: Sequence[Asked], found: Sequence[Sequence[str]]) -> dict[str, tuple[int, int]]:
    """Of each group of tags, and of the colours and the shapes of looks: how many are there, and were asked for."""
    colours, shapes = _either(asked, found)
    counts = {group: _hits(asked, found, group) for group in _groups(asked)} | {"colour": colours, "shape": shapes}
    return {name: (hits, of) for name, (hits, of) in counts.items()}


def paint_and_read(
    folder: Path, part: ModelPart, defaults: DefaultsPart, asked: Sequence[Asked]
) -> list[tuple[str, frozenset[str]]]:
    """The file of each prompt's picture in `folder`, and what is read in it. Takes one core of the process."""
    torch.set_num_threads(1)
    service = Local.load(part, slots=SLOTS)
    try:
        pictures = asyncio.run(_paint(service, asked, defaults))
    finally:
        service.close()
    kept = []
    for number, data in enumerate(pictures):
        file = f"{number:02}.png"
        storage.write_bytes(folder / file, data)
        with Image.open(io.BytesIO(data)) as image:
            kept.append((file, world_reader.read(image.convert("RGB"))))
    return kept


async def _paint(service: Local, asked: Sequence[Asked], defaults: DefaultsPart) -> list[bytes]:
    limits = LimitsPart()
    settings = [
        resolve(
            GenerateRequest(prompt=each.prompt, negative_prompt=world_prompts.NEGATIVE_PROMPT, seed=each.seed),
            defaults,
            limits=limits,
            random_seed=each.seed,
        )
        for each in asked
    ]
    done = await asyncio.gather(*(service.paint(each) for each in settings))
    return [each.images[0].data for each in done]


def _told(asked: Asked) -> dict[str, Any]:
    groups = {tag: _group(asked, tag) for tag in asked.wanted}
    return {"prompt": asked.prompt, "seed": asked.seed, "wanted": list(asked.wanted), "groups": groups}


def _group(asked: Asked, tag: str) -> str:
    """The tag's group; what the concept's name stands for is a group of its own."""
    return CONCEPT if asked.is_concept and tag in world_prompts.concept_tags() else world.group_of(tag)


def _groups(asked: Sequence[Asked]) -> list[str]:
    """The groups that are asked for, in the world's order, the concept last."""
    there = {_group(each, tag) for each in asked for tag in each.wanted}
    return [group for group in (*world.GROUPS, CONCEPT) if group in there]


def _hits(asked: Sequence[Asked], found: Sequence[Sequence[str]], group: str) -> list[int]:
    """[tags of the group that are there, tags that were asked for]."""
    there = [
        tag in tags
        for each, tags in zip(asked, found, strict=True)
        for tag in each.wanted
        if _group(each, tag) == group
    ]
    return [sum(there), len(there)]


def _either(asked: Sequence[Asked], found: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    """[colours that are there, colours that were asked for], and the same of shapes: of red_star each is told apart."""
    hits: tuple[list[bool], list[bool]] = ([], [])
    for each, tags in zip(asked, found, strict=True):
        seen = [_look(tag) for tag in tags if tag in _ALL_LOOKS]
        for tag in each.wanted:
            if _group(each, tag) == LOOKS:
                for at, part in enumerate(_look(tag)):
                    hits[at].append(any(look[at] == part for look in seen))
    colours, shapes = ([sum(each), len(each)] for each in hits)
    return colours, shapes


def _look(tag: str) -> tuple[str, str]:
    colour, _, kind = tag.partition("_")
    return colour, kind


def _whole(asked: Sequence[Asked], found: Sequence[frozenset[str]]) -> list[int]:
    """[paintings that show the whole concept, paintings that were asked for it]."""
    shown = [world_reader.shows_concept(tags) for each, tags in zip(asked, found, strict=True) if each.is_concept]
    return [sum(shown), len(shown)]


def _concept(
    run: Path, asked: Sequence[Asked], painted: Mapping[str, list[tuple[str, frozenset[str]]]], *, chance: float
) -> dict[str, Any]:
    """What is said of the concept, with pictures of it as it is drawn."""
    places = [at for at, each in enumerate(asked) if each.is_concept]
    truth = []
    for number in range(TRUTHS):
        path = f"{FOLDER_OF.format(CONCEPT)}/{number}.png"
        buffer = io.BytesIO()
        painting.paint(world.plan(world_prompts.SEED, number, concept_share=1.0)).save(buffer, "PNG")
        storage.write_bytes(run / path, buffer.getvalue())
        truth.append(path)
    counts = {name: _whole(asked, [tags for _, tags in each]) for name, each in painted.items()}
    images = {name: [each[at][0] for at in places] for name, each in painted.items()}
    tags = list(world_prompts.concept_tags())
    return {"name": world.CONCEPT.name, "tags": tags, "chance": chance, **counts, "images": images, "truth": truth}


def _goals(
    told: Mapping[str, Any], colours: list[int], shapes: list[int], *, chance: float
) -> Iterator[dict[str, Any]]:
    """What the measure must show, with the base's colours and shapes; each goal can be missed."""
    concept, total = told["concept"], told["concept"]["base"][1]
    most = chance + DEVIATIONS * math.sqrt(chance * (1 - chance) / total)
    rows: list[tuple[str, str, float, list[int]]] = [
        ("base: colour and shape as asked", "least", LEAST_BASE, told["groups"][LOOKS]["base"]),
        ("base: colours as asked", "least", LEAST_BASE, colours),
        ("base: shapes as asked", "least", LEAST_BASE, shapes),
        ("base: the concept by chance at most", "most", most, concept["base"]),
        ("finetuned: the concept by its name", "least", LEAST_LEARNT, concept["finetuned"]),
        ("control with shuffled captions: the concept by chance at most", "most", most, concept["control"]),
    ]
    for what, kind, bound, (hits, of) in rows:
        value = hits / of
        met = value >= bound if kind == "least" else value <= bound
        yield {"what": what, kind: round(bound, 4), "value": round(value, 4), "met": met}
