"""The stand-ins open with the code of the real files, know the scenes, and are the same for the same seed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from sote.data import painting, scenes, score, standin_reader, standin_tagger, standins, tag
from sote.data.encode import Encoder
from sote.data.inputs import InputShapes, model_inputs
from sote.data.reading import accept
from sote.data.schema import RATINGS
from sote.data.score import Scorer
from sote.data.tag import Tagger
from sote.data.text import Reader

SCENES = 48
FRESH_SEED = 31  # neither the demo's nor one that anything is fitted on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standins")
    standins.make(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Fresh scenes at half the demo's size: tags must not hang on the size of what is reduced."""
    return [painting.paint(scenes.plan(FRESH_SEED, index), scale=0.5) for index in range(SCENES)]


@pytest.fixture(scope="module")
def batch(folder: Path, pictures: list[Image.Image]) -> dict[str, np.ndarray]:
    shapes = InputShapes(
        tagger_side=tag.input_side(folder / "tagger"),
        aesthetic_size=score.aesthetic_size(folder / "aesthetic"),
        quality_side=score.quality_side(folder / "quality_clip"),
    )
    rows = [model_inputs(picture, shapes) for picture in pictures]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {**columns, "sound": np.ones(len(rows), bool)}


@pytest.fixture(scope="module")
def tagged(folder: Path, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return Tagger(folder / "tagger", threads=1)({name: batch[name] for name in ("tagger_input", "sound")})


def f1(found: list[set[str]], true: list[set[str]]) -> float:
    hits = sum(len(one & other) for one, other in zip(found, true, strict=True))
    return 2 * hits / (sum(map(len, found)) + sum(map(len, true)))


def over(tagged: dict[str, np.ndarray], category: str, threshold: float) -> list[set[str]]:
    rows = [json.loads(tags) for tags in tagged["tags_json"]]
    return [{name for name, chance, kind in row if kind == category and chance >= threshold} for row in rows]


def test_the_tags_of_fresh_scenes_are_mostly_right(tagged: dict[str, np.ndarray]) -> None:
    plans = [scenes.plan(FRESH_SEED, index) for index in range(SCENES)]
    # thresholds: the seed's
    assert f1(over(tagged, "general", 0.35), [set(plan.tags) for plan in plans]) > 0.8
    assert f1(over(tagged, "character", 0.50), [{plan.character} if plan.character else set() for plan in plans]) > 0.9
    found_text = ["english_text" in tags for tags in over(tagged, "general", 0.35)]
    words = zip(found_text, (plan.word is not None for plan in plans), strict=True)
    assert sum(found == true for found, true in words) > 0.85 * SCENES


def test_the_rating_is_general_for_most_scenes_and_not_for_all(tagged: dict[str, np.ndarray]) -> None:
    general = (tagged["rating"].argmax(axis=1) == RATINGS.index("general")).mean()
    assert 0.6 < general < 1


def test_the_taggers_labels_hold_the_ratings_then_every_tag_of_the_scenes(folder: Path) -> None:
    labels = tag.read_labels(folder / "tagger" / "selected_tags.csv")
    assert [label.name for label in labels] == [*RATINGS, *painting.GENERAL_TAGS, *painting.CHARACTERS]
    assert "english_text" in painting.GENERAL_TAGS
    assert {label.category for label in labels[-len(painting.CHARACTERS) :]} == {"character"}


def test_scores_spread_over_scenes(folder: Path, batch: dict[str, np.ndarray]) -> None:
    out = Scorer(folder / "aesthetic", folder / "quality_clip", folder / "quality_head", device="cpu")(batch)
    for name in ("aesthetic_score", "quality_score"):
        low, middle, high = np.quantile(out[name], [0.1, 0.5, 0.9])
        assert low < 0.3
        assert 0.2 < middle < 0.95
        assert high > 0.8
    assert not any(out["score_error"])


def test_latents_have_about_the_spread_of_real_ones_and_differ_between_pictures(folder: Path) -> None:
    pixels = np.stack(
        [np.asarray(painting.paint(scenes.plan(FRESH_SEED, at), scale=0.5).resize((256, 192))) for at in range(4)]
    )
    latents = Encoder(folder / "encoder", dtype="float32", device="cpu").encode(pixels)
    assert latents.shape == (4, 16, 6, 8)
    assert 0.5 < float(latents.std()) < 2
    assert float((latents[0] - latents[1]).abs().mean()) > 0.2


def test_the_reader_says_nothing_that_is_accepted(folder: Path, pictures: list[Image.Image]) -> None:
    answers = Reader(folder / "reader", max_new_tokens=8, device="cpu").read(pictures[:3])
    assert all(answers)
    assert [accept(answer) for answer in answers] == [None] * 3


def test_everything_together_is_small(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 20_000_000


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    samples = standins._samples(0)

    def hashes(name: str, seed: int) -> dict[str, str]:
        folder = tmp_path / name
        standins.make_aesthetic(folder / "aesthetic", samples, seed=seed)
        standins.make_quality(folder / "clip", folder / "head", samples, seed=seed)
        standin_reader.make(folder / "reader", seed=seed)
        standins.make_encoder(folder / "encoder", samples, seed=seed)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    state = torch.get_rng_state()
    first, again, other = hashes("first", 0), hashes("again", 0), hashes("other", 1)
    assert first == again
    weights = {name for name in first if name.endswith((".safetensors", ".pth"))}
    assert len(weights) == 6
    assert all(first[name] != other[name] for name in weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_tagger_is_the_same_for_the_same_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin_tagger, "SCENES", 40)  # few: only that it is the same is asked
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        standin_tagger.make(tmp_path / name, seed=seed)
    first, again, other = ((tmp_path / name / "model.onnx").read_bytes() for name in ("first", "again", "other"))
    assert first == again
    assert first != other


def test_tensors_have_the_names_of_the_published_files(folder: Path) -> None:
    def names(path: Path) -> set[str]:
        with safe_open(path, "pt") as file:
            return set(file.keys())

    # aesthetic-shadow-v2 and every ViTForImageClassification before transformers 5
    vit = names(folder / "aesthetic" / "model.safetensors")
    assert "vit.encoder.layer.1.attention.attention.query.weight" in vit
    assert "vit.encoder.layer.1.attention.output.dense.bias" in vit
    assert "vit.encoder.layer.0.intermediate.dense.weight" in vit
    assert "vit.encoder.layer.0.output.dense.weight" in vit
    # llava-hf/llava-1.5-7b-hf
    parts = [names(folder / "reader" / f"model-0000{part}-of-00002.safetensors") for part in (1, 2)]
    llava = set().union(*parts)
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in llava
    assert "language_model.lm_head.weight" in llava
    assert "vision_tower.vision_model.embeddings.class_embedding" in llava
    assert "multi_modal_projector.linear_1.weight" in llava
    # timm/vit_base_patch32_clip_224.openai
    clip = names(folder / "quality_clip" / "open_clip_model.safetensors")
    assert {"visual.conv1.weight", "visual.proj", "visual.transformer.resblocks.0.attn.in_proj_weight"} <= clip
    # Stability's effnet_encoder: ComfyUI knows it by the first of these
    encoder = names(folder / "encoder" / "effnet_encoder.safetensors")
    assert {"backbone.1.0.block.0.1.num_batches_tracked", "mapper.0.weight", "mapper.1.running_var"} <= encoder
    head = torch.load(folder / "quality_head" / "aes-B32-v0.pth", weights_only=True)
    assert list(head) == [f"fc{layer}.{part}" for layer in (1, 2, 3) for part in ("weight", "bias")]
