"""A run folder in which paintings were measured, with scenes of the small world in the place of paintings."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from sote.data import painting, world
from sote.serve.adherence_file import NAMES

CONCEPT = world.CONCEPT.name


def measure(run: Path, *, prompts: int = 3, of_concept: int = 2) -> dict[str, Any]:
    """Write RUN/adherence.json with its pictures, and return what is in it.

    The base misses the first tag of every prompt, the control all; the finetuned model paints all. The control paints
    the concept never, the base once.
    """
    (run / "images").mkdir(parents=True, exist_ok=True)
    scenes = [world.plan(11, at) for at in range(prompts)]
    asked, painted = [scene.tags for scene in scenes], [painting.paint(scene) for scene in scenes]
    models: dict[str, Any] = {name: {"label": name, "images": [], "found": []} for name in NAMES}
    groups: dict[str, Any] = {}
    for name in NAMES:
        for at, wanted in enumerate(asked):
            found = {"base": wanted[1:], "finetuned": wanted, "control": ()}[name]
            models[name]["images"].append(_saved(painted[at], run, f"{name}-{at}"))
            models[name]["found"].append(list(found))
            for tag in wanted:
                score = groups.setdefault(_group(tag), {each: [0, 0] for each in NAMES})[name]
                score[0] += tag in found
                score[1] += 1
    comet = [painting.paint(world.plan(5, at, concept_share=1.0)) for at in range(of_concept)]
    content = {
        "prompts": [
            {"prompt": ", ".join(wanted), "seed": at, "wanted": wanted, "groups": {tag: _group(tag) for tag in wanted}}
            for at, wanted in enumerate(asked)
        ],
        "models": models,
        "groups": groups,
        "concept": {
            "name": CONCEPT,
            "tags": ["purple_star", "hollow_style"],
            "chance": 0.125,
            "base": [1, of_concept],
            "finetuned": [of_concept, of_concept],
            "control": [0, of_concept],
            "images": {
                name: [_saved(image, run, f"concept-{name}-{at}") for at, image in enumerate(comet)] for name in NAMES
            },
            "truth": [_saved(image, run, f"truth-{at}") for at, image in enumerate(comet)],
        },
        "goals": [
            {"what": "the base paints colours and shapes", "least": 0.8, "value": 0.5, "met": False},
            {"what": "the new concept is learnt", "least": 0.7, "value": 1.0, "met": True},
            {"what": "minutes that all of it took", "most": 15, "value": 12.5, "met": True},
        ],
    }
    write(run, content)
    return content


def write(run: Path, content: dict[str, Any]) -> None:
    """Write RUN/adherence.json."""
    (run / "adherence.json").write_text(json.dumps(content), encoding="utf-8")


def _group(tag: str) -> str:
    return "others" if tag in ("solo", "smile") else world.group_of(tag)


def _saved(image: Image.Image, run: Path, name: str) -> str:
    image.save(run / "images" / f"{name}.png")
    return f"images/{name}.png"
