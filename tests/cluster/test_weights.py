from pathlib import Path

import pytest

from sote.cluster import weights
from sote.cluster.errors import WeightsError


@pytest.mark.parametrize("known", weights.KNOWN, ids=lambda known: known.key)
def test_a_missing_weight_says_which_file_where_from_which_licence_and_how_to_fetch_it(
    known: weights.Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as raised:
        weights.locate(known.key, field="tag.tagger")
    line = str(raised.value)
    assert "\n" not in line
    for part in ("tag.tagger", known.files[0], known.repo, known.licence, f"hf download {known.repo}"):
        assert part in line


def test_weights_in_the_cache_are_found_as_file_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for known in (weights.BY_KEY["aes-b32-v0"], weights.BY_KEY["stable-cascade-prior"]):
        commit = known.revision or "0" * 40
        repo = tmp_path / f"models--{known.repo.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        for name in known.files:
            path = repo / "snapshots" / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        found = weights.locate(known.key, field="f")
        snapshot = repo / "snapshots" / commit
        assert found == (snapshot / known.files[0] if len(known.files) == 1 else snapshot)


def test_a_local_path_is_taken_and_an_unknown_name_lists_the_keys(tmp_path: Path) -> None:
    assert weights.locate(str(tmp_path), field="f") == tmp_path
    with pytest.raises(WeightsError, match=r"f: 'nothing'.*wd-swinv2-tagger-v3"):
        weights.locate("nothing", field="f")


def cached(folder: Path, known: weights.Weights, files: tuple[str, ...]) -> None:
    """Put `files` of a repository into the cache `folder`, as the hub's client lays them down."""
    repo = folder / f"models--{known.repo.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text("0" * 40)
    for name in files:
        path = repo / "snapshots" / ("0" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


FAMILY = ("swinv2", "vit", "convnext", "vit-large", "eva02-large")


@pytest.mark.parametrize("key", [f"wd-{name}-tagger-v3" for name in FAMILY])
def test_a_tagger_is_whole_in_either_layout_unless_the_engine_needs_one(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    known = weights.BY_KEY[key]
    cached(tmp_path, known, weights.TAGGER_TORCH)
    for engine in ("auto", "torch"):
        found = weights.locate(key, field="tag.tagger", layouts=weights.tagger_layouts(engine))
        assert (found / "model.safetensors").exists()
    assert weights.locate(key, field="tag.tagger") == weights.present(known)
    with pytest.raises(
        WeightsError, match=rf"tag\.tagger: model\.onnx of {key} .*`hf download .* model\.onnx selected"
    ):
        weights.locate(key, field="tag.tagger", layouts=weights.tagger_layouts("cuda"))


def test_a_tagger_for_torch_names_the_files_that_torch_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    key = "wd-swinv2-tagger-v3"
    cached(tmp_path, weights.BY_KEY[key], weights.TAGGER_ONNX)
    assert weights.locate(key, field="f", layouts=weights.tagger_layouts("auto")).is_dir()
    with pytest.raises(
        WeightsError, match=r"f: model\.safetensors of .*`hf download .* model\.safetensors config\.json "
    ):
        weights.locate(key, field="f", layouts=weights.tagger_layouts("torch"))
