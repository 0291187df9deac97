import json
import math
import os
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, ViTForImageClassification, ViTImageProcessorPil

from sote.cluster.errors import RunFailed, WeightsError
from sote.data import painting, scenes, score_files, standins
from sote.data.inputs import aesthetic_input, quality_input
from sote.data.recipe import ScorePart
from sote.data.score import Scorer
from sote.data.score_files import HEAD_FILE, QualityHead, aesthetic_size, quality_side

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [painting.paint(scenes.plan(3, index), scale=0.25) for index in range(5)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, images: list[Image.Image]) -> Folders:
    folder = tmp_path_factory.mktemp("models")
    standins.make_aesthetic(folder / "aesthetic", images, seed=5)
    standins.make_quality(folder / "quality_clip", folder / "quality_head", images, seed=5)
    return {name: folder / name for name in ("aesthetic", "quality_clip", "quality_head")}


@pytest.fixture(scope="module")
def scorer(models: Folders) -> Scorer:
    return Scorer(**models, device="cpu")


def changed(models: Folders, name: str, folder: Path) -> Folders:
    """The models with a copy of one of them, to be changed."""
    copytree(models[name], folder / name)
    return {**models, name: folder / name}


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def batch_of(images: list[Image.Image], models: Folders) -> dict[str, NDArray[Any]]:
    width, height = aesthetic_size(models["aesthetic"])
    side = quality_side(models["quality_clip"])
    return {
        "aesthetic_input": np.stack([aesthetic_input(image, width=width, height=height) for image in images]),
        "quality_input": np.stack([quality_input(image, side=side) for image in images]),
        "sound": np.ones(len(images), bool),
        "row": np.arange(len(images)),
    }


def test_the_sizes_are_those_of_the_folders(models: Folders) -> None:
    assert aesthetic_size(models["aesthetic"]) == (standins.AESTHETIC_SIDE, standins.AESTHETIC_SIDE)
    assert quality_side(models["quality_clip"]) == standins.QUALITY_SIDE


def test_the_aesthetic_score_is_what_transformers_own_preparation_and_softmax_give(
    scorer: Scorer, models: Folders, images: list[Image.Image]
) -> None:
    folder = models["aesthetic"]
    prepared = ViTImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    with torch.inference_mode():
        chances_BL = ViTForImageClassification.from_pretrained(folder)(**prepared).logits.softmax(dim=1)
    batch = batch_of(images, models)
    np.testing.assert_allclose(scorer(batch)["aesthetic_score"], chances_BL[:, 0].numpy(), atol=2e-3)
    side = aesthetic_size(folder)
    batch["aesthetic_input"] = np.stack([image.resize(side, Image.Resampling.BILINEAR) for image in images])
    np.testing.assert_allclose(scorer(batch)["aesthetic_score"], chances_BL[:, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [(300, 181), (181, 300), (97, 333), (64, 64), (31, 40)])
def test_both_inputs_are_within_a_level_of_what_transformers_own_processors_make(
    models: Folders, images: list[Image.Image], size: tuple[int, int]
) -> None:
    image, cpu = images[0].resize(size), torch.device("cpu")
    side = standins.QUALITY_SIDE
    clip = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    theirs = clip(image, return_tensors="pt")["pixel_values"]
    ours = score_files.quality_preparation(models["quality_clip"])(quality_input(image, side=side)[None], cpu)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.01 / 255 / min(score_files.CLIP_STD))
    theirs = ViTImageProcessorPil.from_pretrained(models["aesthetic"])(image, return_tensors="pt")["pixel_values"]
    width, height = aesthetic_size(models["aesthetic"])
    squashed = aesthetic_input(image, width=width, height=height)
    ours = score_files.aesthetic_preparation(models["aesthetic"])(squashed[None], cpu)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.01 / 255 / min(standins.AESTHETIC_STD))


def test_the_quality_score_is_the_heads_formula_on_open_clips_own_features(
    scorer: Scorer, models: Folders, images: list[Image.Image]
) -> None:
    clip, prepare = open_clip.create_model_from_pretrained(f"local-dir:{models['quality_clip']}", return_transform=True)
    head = torch.load(models["quality_head"] / HEAD_FILE, weights_only=True)
    square = [image.crop((0, 0, 180, 180)) for image in images]  # no crop, so that no rounding of its offset differs
    batch, side = batch_of(square, models), (standins.QUALITY_SIDE, standins.QUALITY_SIDE)
    batch["quality_input"] = np.stack([image.resize(side, Image.Resampling.BICUBIC) for image in square])
    ours = scorer(batch)
    for at, image in enumerate(square):
        with torch.inference_mode():
            features = clip.encode_image(prepare(image)[None])
        hidden = features / features.norm()
        for layer in ("fc1", "fc2"):
            hidden = torch.relu(hidden @ head[f"{layer}.weight"].T + head[f"{layer}.bias"])
        logit = float(hidden @ head["fc3.weight"].T + head["fc3.bias"])
        assert ours["quality_logit"][at] == pytest.approx(logit, abs=1e-4)
        assert ours["quality_score"][at] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)


@pytest.mark.parametrize("sound", [(1, 1, 1, 1, 1), (1, 0, 1, 0, 1), (0, 0, 0, 1, 0)])
def test_a_batch_scores_like_its_rows_alone(
    scorer: Scorer, models: Folders, images: list[Image.Image], sound: tuple[int, ...]
) -> None:
    batch = batch_of(images, models)
    batch["sound"] = np.array(sound, bool)
    for name in ("aesthetic_input", "quality_input"):
        batch[name][~batch["sound"]] = 0  # as the pass fills them up
    together = scorer(batch)
    for at in np.flatnonzero(sound):
        alone = scorer({name: values[at : at + 1] for name, values in batch.items()})
        for name in ("aesthetic_score", "quality_score"):
            assert alone[name][0] == pytest.approx(together[name][at], abs=1e-5)


def test_features_have_norm_one_per_row_and_not_over_the_batch(
    scorer: Scorer, models: Folders, images: list[Image.Image]
) -> None:
    # waifu-diffusion/aesthetic divides by the norm of the whole array, which is right for one row only
    pixels = batch_of(images, models)["quality_input"]
    tower, width = score_files.load_tower(models["quality_clip"])
    head = score_files.load_head(models["quality_head"], features=width)
    prepared = score_files.quality_preparation(models["quality_clip"])(pixels, torch.device("cpu"))
    with torch.inference_mode():
        features = tower.eval()(prepared)
        per_row = head(features / features.norm(dim=1, keepdim=True)).numpy()
        over_the_batch = head(features / features.norm()).numpy()
    ours = scorer.quality_logits(pixels)
    np.testing.assert_allclose(ours, per_row, atol=1e-4)
    assert np.abs(ours - over_the_batch).min() > 0.1


def test_bfloat16_towers_pass_the_gate_and_say_how_far_they_are_off(
    scorer: Scorer, models: Folders, images: list[Image.Image]
) -> None:
    assert scorer.facts == {
        "stage": "score",
        "device": "cpu",
        "engine": "torch",
        "dtype": "float32",
        "compile": False,
        "max_difference": 0.0,
    }
    narrow = Scorer(**models, part=ScorePart(dtype="bfloat16", max_difference=0.1), device="cpu")
    assert narrow.facts["dtype"] == "bfloat16"
    assert 0 < float(narrow.facts["max_difference"]) <= 0.1
    batch = batch_of(images, models)
    exact, rounded = scorer(batch), narrow(batch)
    for at in range(len(images)):
        alone = narrow({name: values[at : at + 1] for name, values in batch.items()})
        for name in ("aesthetic_score", "quality_score"):
            assert alone[name][0] == rounded[name][at]  # in 16 bits, too: the same number of rows always runs
    for name in ("aesthetic_score", "quality_score"):
        assert rounded[name].dtype == np.float32
        assert 0 < np.abs(rounded[name] - exact[name]).max() < 0.2


def test_towers_too_far_from_float32_end_the_run_in_one_line(models: Folders) -> None:
    part = ScorePart(dtype="bfloat16", max_difference=1e-9)
    with pytest.raises(RunFailed, match=r"score: bfloat16 on cpu: differs by \S+ from float32 .* \(1e-09\)") as error:
        Scorer(**models, part=part, device="cpu")
    assert "\n" not in str(error.value)


def test_compiling_without_a_compiler_ends_in_one_line(models: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(RunFailed, match=r"score\.compile: torch\.compile needs a C\+\+ compiler, there is no /nowhere"):
        Scorer(**models, part=ScorePart(compile=True), device="cpu")


def test_a_batch_that_does_not_fit_the_memory_is_halved_and_scores_the_same(
    scorer: Scorer, models: Folders, images: list[Image.Image]
) -> None:
    class Small(Scorer):
        """A device whose memory holds two rows of the aesthetic scorer."""

        most = 0

        def aesthetic_logits(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
            if len(pixels_BHWC) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.most = max(self.most, len(pixels_BHWC))
            return super().aesthetic_logits(pixels_BHWC)

    small, batch = Small(**models, device="cpu"), batch_of(images, models)
    exact, halved = scorer(batch), small(batch)
    assert small.most == 2
    for name in ("aesthetic_score", "quality_score"):
        np.testing.assert_allclose(halved[name], exact[name], atol=1e-5)


def test_the_score_follows_the_label_hq_wherever_it_stands(
    scorer: Scorer, models: Folders, images: list[Image.Image], tmp_path: Path
) -> None:
    other = changed(models, "aesthetic", tmp_path)
    edit(other["aesthetic"] / "config.json", id2label={"0": "lq", "1": "hq"}, label2id={"lq": 0, "hq": 1})
    batch = batch_of(images, models)
    swapped = Scorer(**other, device="cpu")(batch)
    np.testing.assert_allclose(swapped["aesthetic_score"], 1 - scorer(batch)["aesthetic_score"], atol=1e-6)


def test_rows_that_are_not_sound_have_no_score_and_no_error(
    scorer: Scorer, models: Folders, images: list[Image.Image]
) -> None:
    batch = batch_of(images, models)
    batch["sound"][1] = False
    out = scorer(batch)
    for name in ("aesthetic_score", "aesthetic_logit", "quality_score", "quality_logit"):
        assert out[name].dtype == np.float32
        assert list(np.isnan(out[name])) == [False, True, False, False, False]
    assert list(out["score_error"]) == [None] * 5
    assert "aesthetic_input" not in out
    assert "quality_input" not in out
    assert list(out["row"]) == [0, 1, 2, 3, 4]


def test_a_score_that_is_not_finite_is_the_rows_error(
    models: Folders, images: list[Image.Image], tmp_path: Path
) -> None:
    broken = changed(models, "aesthetic", tmp_path)
    file = broken["aesthetic"] / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.bias"] = torch.full((2,), float("nan"))
    save_file(tensors, file, {"format": "pt"})
    batch = batch_of(images, models)
    batch["sound"][0] = False
    out = Scorer(**broken, device="cpu")(batch)
    assert list(out["score_error"]) == [None] + ["score: not finite"] * 4
    assert np.isnan(out["quality_score"]).all()


def test_the_head_may_be_a_folder_a_pth_or_safetensors(
    scorer: Scorer, models: Folders, images: list[Image.Image], tmp_path: Path
) -> None:
    pth = models["quality_head"] / HEAD_FILE
    save_file(torch.load(pth, weights_only=True), tmp_path / "head.safetensors")
    batch = batch_of(images, models)
    expected = scorer(batch)["quality_score"]
    for path in (pth, tmp_path / "head.safetensors"):
        np.testing.assert_array_equal(
            Scorer(**{**models, "quality_head": path}, device="cpu")(batch)["quality_score"], expected
        )


def test_the_published_head_has_164353_numbers() -> None:
    # hakurei/waifu-diffusion-v1-4 models/aes-B32-v0.pth
    assert sum(parameter.numel() for parameter in QualityHead(512, 256, 128).parameters()) == 164_353


class Payload:
    """What a pickle could do when it is opened: here, make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_head_that_would_run_code_is_refused_and_runs_none(models: Folders, tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "made by the pickle"), tmp_path / "head.pth")
    with pytest.raises(WeightsError, match=r"head\.pth: cannot be read as a file of tensors"):
        Scorer(**{**models, "quality_head": tmp_path / "head.pth"}, device="cpu")
    assert not (tmp_path / "made by the pickle").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            QualityHead(512, 256, 128).state_dict(),
            r"fc1\.weight has shape \(256, 512\), expected \(256, 64\)",
        ),
        ({"fc1.weight": torch.zeros(4, 64)}, "is not the quality head: expected tensors fc1, fc2, fc3"),
        ({"layers.0.weight": torch.zeros(4, 64)}, "is not the quality head"),
        ([torch.zeros(3)], "should hold tensors by name"),
        (
            {**QualityHead(64, 8, 4).state_dict(), "fc3.bias": torch.tensor([float("inf")])},
            r"fc3\.bias holds numbers that are not finite",
        ),
    ],
)
def test_another_head_is_refused(models: Folders, tmp_path: Path, tensors: Any, message: str) -> None:
    torch.save(tensors, tmp_path / "head.pth")
    with pytest.raises(WeightsError, match=message):
        Scorer(**{**models, "quality_head": tmp_path / "head.pth"}, device="cpu")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "expected two labels of which one is 'hq'"),
        ("config.json", {"id2label": {"0": "hq", "1": "mq", "2": "lq"}}, "expected two labels"),
        ("config.json", {"image_size": 64}, "size is .* expected 64x64"),
        ("config.json", {"num_hidden_layers": 3}, "missing keys in its weights"),
        ("config.json", {"hidden_size": 96}, "is not a ViTForImageClassification folder"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 128}}, "expected 128x128"),
        ("preprocessor_config.json", {"resample": 3}, "resample is 3, pictures are resized with 2"),
        ("preprocessor_config.json", {"image_mean": None}, "image_mean is None, expected three numbers"),
    ],
)
def test_an_aesthetic_folder_that_does_not_fit_is_refused(
    models: Folders, tmp_path: Path, file: str, values: dict[str, Any], message: str
) -> None:
    other = changed(models, "aesthetic", tmp_path)
    edit(other["aesthetic"] / file, **values)
    with pytest.raises(WeightsError, match=message) as error:
        Scorer(**other, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("quick", [False, None])
def test_clip_without_quickgelu_is_refused(models: Folders, tmp_path: Path, quick: bool | None) -> None:
    other = changed(models, "quality_clip", tmp_path)
    path = other["quality_clip"] / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = quick
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="quick_gelu is not true"):
        Scorer(**other, device="cpu")


def test_quickgelu_is_what_the_tower_computes_with(models: Folders) -> None:
    tower, features = score_files.load_tower(models["quality_clip"])
    assert features == 64
    activations = {type(module).__name__ for module in tower.modules() if "GELU" in type(module).__name__}
    assert activations == {"QuickGELU"}


def test_a_missing_file_is_named(models: Folders, tmp_path: Path) -> None:
    other = changed(models, "quality_clip", tmp_path)
    (other["quality_clip"] / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"quality_clip: has no open_clip_model\.safetensors"):
        quality_side(other["quality_clip"])
    with pytest.raises(WeightsError, match="no such folder"):
        aesthetic_size(tmp_path / "nowhere")
    (other["quality_clip"] / "open_clip_model.safetensors").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="is not an open_clip folder"):
        Scorer(**other, device="cpu")
