import json
from pathlib import Path

import pyarrow as pa
import pytest

from sote.cluster import recipe as recipes
from sote.cluster import storage
from sote.cluster.errors import RunFolderError
from sote.cluster.logs import Metrics
from sote.data import schema
from sote.data.recipe import CurateRecipe
from sote.train import card
from sote.train.recipe import TrainRecipe
from tests.conftest import Command

SOURCES = [
    {"name": "boards", "kind": "image board", "path": "boards"},
    {"name": "pixiv", "kind": "pixiv", "path": "pixiv"},
    {"name": "anime wallpaper", "kind": "wallpaper", "path": "wallpapers"},
]
# kind, step, seconds: an hour of work after the first start, half an hour after the second
LINES = [("start", 0, 0), ("step", 1, 1800), ("step", 2, 3600)]
LINES += [("start", 0, 10_000), ("step", 2, 10_900), ("step", 3, 11_800), ("sample", 3, 20_000)]


@pytest.fixture
def curated(tmp_path: Path) -> Path:
    """A curate run: six picked rows, two of them best, and one that is not picked."""
    folder = tmp_path / "curated"
    folder.mkdir()
    recipe = CurateRecipe.model_validate({
        "run": str(folder),
        "sources": SOURCES,
        "select": {"sets": {"final": {"best": True}}},
        "latents": {"resolution": 1024},
    })  # fmt: skip
    (folder / "recipe.toml").write_text(recipes.dumps(recipe))
    rows = []
    for number, (source, word) in enumerate(
        [("boards", "newest")] * 3 + [("boards", "mid"), ("pixiv", "mid"), ("anime wallpaper", None), ("boards", "mid")]
    ):
        words = {"aesthetic": "very aesthetic", "quality": "best quality", "date": word, "rating": "general"}
        row = dict.fromkeys(schema.CATALOGUE.names) | {"id": f"{number:064x}", "source": source, "words": words}
        row |= {
            "pick": number < 6,
            "repeat": 5 if number < 2 else int(number < 6),
            "width": 1280,
            "height": 600 + number,
        }
        rows.append(row | {"sets": ["final"] if number < 2 else None})
    storage.write_table(folder / "catalogue.parquet", pa.Table.from_pylist(rows, schema=schema.CATALOGUE))
    return folder


def trained(run: Path, curated: Path, *, workers: int = 8, **tables: dict[str, object]) -> Path:
    """The run folder of a training of 42 images, which was started twice."""
    values: dict[str, dict[str, object]] = {
        "data": {"curated": str(curated), "compression": 32},
        "text": {"tokens": 227},
        "optimizer": {"text_encoder_learning_rate": 4e-6},
        "length": {"epochs": 3},
    }
    recipe = TrainRecipe.model_validate({"run": str(run)} | values | tables)
    with storage.open_run(recipe, verb="train", command="sote train r.toml") as folder:
        metrics = Metrics(folder.metrics)
        for kind, step, seconds in LINES:
            facts = {"workers": workers, "device": "NVIDIA A100"} if kind == "start" else {"step": step}
            seen = {"images_seen": 14 * step} if kind == "step" else {}
            metrics.write(kind=kind, time=seconds, **facts, **seen)
    return run


def test_a_card_has_the_seeds_tables_with_the_numbers_of_the_run(curated: Path, tmp_path: Path) -> None:
    text = card.write(trained(tmp_path / "base", curated)).read_text()
    rows = """
| amp | bf16 |
| weights | fp32 |
| save weights | fp16 |
| resolution | 1024x1024 |
| effective batch size | 128 |
| unet learning rate | 1e-5 |
| te learning rate | 4e-6 |
| optimizer | Adafactor |
| images | 14 |
| epochs | 3 |
| steps | 3 |"""
    assert rows in text
    assert text.startswith("---\nlicense: other\nlicense_name: fair-ai-public-license-1.0-sd\nbase_model:\n")
    assert "- stabilityai/stable-cascade-prior\npipeline_tag: text-to-image\ntags:\n- stable-cascade\n" in text
    assert "GPU used: 8x NVIDIA A100\n" in text
    assert "Compression: 32 as trained (32 to 64)" in text
    assert "Positives: `newest, extremely aesthetic, best quality,`" in text
    assert "Negatives: `very displeasing, worst quality, oldest,`" in text
    assert "Stability AI Non-Commercial Research Community License" in text


def test_the_dataset_is_counted_by_date_word_for_boards_and_by_source_for_the_rest(
    curated: Path, tmp_path: Path
) -> None:
    text = card.write(trained(tmp_path / "base", curated)).read_text()
    table = """
| newest | 3 |
| mid | 1 |
| pixiv | 1 |
| anime wallpaper | 1 |
| Total | 6 images |"""
    assert table in text
    assert "- Smallest size is 1280x600 / 768,000 pixels\n" in text
    assert "- 2 very high quality images are seen 5 times in an epoch\n" in text
    assert "- which makes the total image count 14\n" in text


def test_what_captioned_and_for_how_long_comes_from_the_curate_runs_records(curated: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "base", curated)
    text = card.write(run).read_text()
    assert "Thresholds: general 0.35, character 0.50\n" in text
    assert "Used for captioning" not in text
    metrics = Metrics(curated / "metrics.jsonl")
    for device in ("Intel(R) Arc(TM) A770", "Intel(R) Arc(TM) A770", "NVIDIA A100"):
        metrics.write(kind="engine", stage="tag", device=device)
    times = {"start": "2024-05-01T00:00:00+00:00", "end": "2024-05-15T14:00:00+00:00"}
    record = {"verbs": {"curate": times | {"continued": 0}}}
    (curated / "run.json").write_text(json.dumps(record))
    text = card.write(run).read_text()
    assert "Used for captioning: Intel(R) Arc(TM) A770, NVIDIA A100\n" in text
    assert "Hours of the whole curation, measured: 350\n" in text
    record["verbs"]["curate"]["continued"] = 1
    (curated / "run.json").write_text(json.dumps(record))
    assert "Hours of the whole curation" not in card.write(run).read_text()


def test_tag_format_and_scales_are_those_of_the_caption_profile(curated: Path, tmp_path: Path) -> None:
    text = card.write(trained(tmp_path / "base", curated)).read_text()
    order = "aesthetic tags, quality tags, date tags, custom tags, rating tags, character, series, rest of the tags"
    assert order in text
    for line in (
        "newest : 2022 to 2024",
        "oldest : 2005 to 2010",
        "score > 0.90 : extremely aesthetic",
        "rest of them : very displeasing",
        "score > 0.980 : best quality",
        "score > 0.025 : low quality",
        "explicit nsfw",
        "pixiv: art by artist,",
        "wallpaper: date, anime wallpaper,",
    ):
        assert f"- {line}\n" in text
    assert "visual novel" not in text  # no source of this dataset is one
    assert "SmilingWolf/wd-swinv2-tagger-v3" in text
    assert "Disty0/aesthetic-shadow-v2" in text


def test_hours_are_measured_from_each_start_to_its_last_line_over_all_workers(curated: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "base", curated)
    (stage,) = card.read(run)
    assert "GPU hours, measured: 12\n" in card.write(run).read_text()
    assert stage.device_hours == 8 * 1.5
    assert card.device_hours([]) == 0.0


def test_a_run_that_went_on_from_another_shows_both(curated: Path, tmp_path: Path) -> None:
    base = trained(tmp_path / "base", curated)
    final = trained(
        tmp_path / "final",
        curated,
        model={"prior": str(base)},
        data={"curated": str(curated), "set": "final", "compression": 32},
        optimizer={"prior_learning_rate": 4e-6, "decay": "cosine", "decay_steps": 400, "decay_to": 0.1},
    )
    text = card.write(final).read_text()
    first, second = text.split("### Base")[1].split("### Final")
    assert "| unet learning rate | 1e-5 |" in first
    assert "| unet learning rate | 4e-6 |" in second
    assert "| te learning rate | none |" in second
    assert "learning rate decay" not in first
    assert "| learning rate decay | cosine, over 400 steps to step 500, down to 0.1 of the rate |" in second
    assert "| images | 2 |" in second.split("## Dataset")[0]
    assert "Final was trained on the set `final`: 2" in text
    assert "84 images in all" in text
    assert "base_model:\n- stabilityai/stable-cascade-prior" in text


def test_exports_are_named_with_the_hash_that_civitai_shows(curated: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "base", curated)
    folder = run / "export" / "comfyui"
    folder.mkdir(parents=True)
    digest = "c891d98d86" + "0" * 54
    (folder / "export.json").write_text(json.dumps({"files": {"sote_main.safetensors": digest}}))
    assert "| export/comfyui/sote_main.safetensors | C891D98D86 |" in card.write(run).read_text()


def test_a_card_without_its_curate_run_says_so(curated: Path, tmp_path: Path) -> None:
    text = card.write(trained(tmp_path / "base", tmp_path / "gone")).read_text()
    assert "The curate run gone was not there when this card was written." in text
    assert str(tmp_path) not in text


def test_what_has_not_been_trained_has_no_card(curated: Path, tmp_path: Path, sote: Command) -> None:
    for run in (curated, tmp_path / "none"):
        code, _, error = sote("card", str(run))
        assert code == 2
        assert error == f"sote: {run}: not the run folder of a training; name one that `sote train` has written\n"
    recipe = TrainRecipe.model_validate(
        {"run": str(tmp_path / "new"), "data": {"curated": str(curated)}, "length": {"epochs": 1}}
    )
    with storage.open_run(recipe, verb="train", command="sote train r.toml"):
        pass
    with pytest.raises(RunFolderError, match="has not made a step of training yet"):
        card.write(tmp_path / "new")


def test_the_verb_prints_where_the_card_is(curated: Path, tmp_path: Path, sote: Command) -> None:
    run = trained(tmp_path / "base", curated)
    assert sote("card", str(run)) == (0, f"{run / 'card.md'}\n", "")
