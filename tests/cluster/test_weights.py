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
