import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sote.cluster.errors import SoteError
from sote.data.encode import FILE, EfficientNetEncoder, Encoder, Plan, stage_of
from sote.data.vqgan import VqganEncoder
from sote.train import decoder, task
from sote.train.batches import Micro
from sote.train.recipe import TrainRecipe

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "", "blue square, " * 40]
Recipe = Callable[..., TrainRecipe]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of the published form in miniature."""
    widths, strides = (4, 4, 8, 8, 12, 12, 16), (1, 2, 2, 2, 1, 2)
    stages = [
        stage_of(widths[at], expand=2, stride=stride, width_out=widths[at + 1], blocks=1, squeeze=at > 2)
        for at, stride in enumerate(strides)
    ]
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / FILE
    save_file(EfficientNetEncoder(Plan(4, tuple(stages), 24)).state_dict(), path)
    return path


def micro(**given: Any) -> Micro:
    """Three images of 128 x 192 pixels, of Stage C unless `given` says more."""
    random = torch.Generator().manual_seed(1)
    values: dict[str, Any] = {
        "index": 0,
        "latents_BCHW": torch.randn(3, 16, 4, 6, generator=random),
        "pixels_BHWC": None,
        "encoder_latents_BCHW": None,
        "encoder_scale": 0.7,
        "keep_B": torch.tensor([True, False, True]),
        "noise_BCHW": torch.randn(3, 16, 4, 6, generator=random),
        "time_B": torch.tensor([0.1, 0.5, 0.9]),
        "captions": CAPTIONS,
        "seed": 5,
    }
    return Micro(**(values | given))


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (3, 128, 192, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def of_stage_b(recipe: Recipe, tiny: Path, encoder: Path, **tables: dict[str, object]) -> TrainRecipe:
    values = {"model": {"stage": "decoder", "decoder": str(tiny / "decoder")}, "data": {"encoder": str(encoder)}}
    return recipe(**{name: values.get(name, {}) | tables.get(name, {}) for name in values | tables})


def grown(made: task.Task, of: Micro) -> dict[str, torch.Tensor]:
    """Gradients of one micro-batch."""
    torch.manual_seed(of.seed)
    loss, _ = made.model.train()(*made.feed(of, CPU), torch.ones(3))
    loss.backward()
    return {name: tensor.grad for name, tensor in made.model.named_parameters() if tensor.grad is not None}


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_what_learns_is_float32_and_what_is_frozen_has_the_arithmetics_type(
    recipe: Recipe, precision: str, dtype: torch.dtype
) -> None:
    rates = {"text_encoder_learning_rate": None}
    made = task.make(recipe(workers={"precision": precision}, optimizer=rates), device=CPU)
    types = {name.split(".")[0]: (one.dtype, one.requires_grad) for name, one in made.model.named_parameters()}
    assert types == {"prior": (torch.float32, True), "text_encoder": (dtype, False)}
    both = task.make(recipe(workers={"precision": precision}), device=CPU)
    assert {(one.dtype, one.requires_grad) for one in both.model.parameters()} == {(torch.float32, True)}


def test_the_priors_parts_are_kept_and_come_from_their_sources(recipe: Recipe) -> None:
    made = task.make(recipe(), device=CPU)
    assert made.modules == ("prior", "text_encoder")
    for module in made.modules:
        held = made.model.get_submodule(module).state_dict()
        assert held.keys() == made.sources[module].shapes.keys()
        assert all(torch.equal(held[name], made.sources[module].read(name).float()) for name in held)


@pytest.mark.parametrize(("tokens", "windows"), [(77, 1), (152, 2), (227, 3)])
def test_captions_become_windows_of_the_recipes_length(recipe: Recipe, tokens: int, windows: int) -> None:
    made = task.make(recipe(text={"tokens": tokens}), device=CPU)
    latents, noise, time, found, mask = made.feed(micro(), CPU)
    assert found.shape == mask.shape == (3, windows, 77)
    assert (latents.dtype, noise.dtype, time.dtype) == (torch.float32,) * 3
    assert len(made.model.eval()(latents, noise, time, found, mask, torch.ones(3))[1]) == 3


def test_pictures_are_encoded_where_there_are_no_latents(recipe: Recipe, encoder: Path) -> None:
    made = task.make(recipe(data={"encode": True, "encoder": str(encoder)}), device=CPU)
    found = made.feed(micro(latents_BCHW=None, pixels_BHWC=pictures()), CPU)[0]
    expected = Encoder(encoder, dtype="float32", device="cpu").encode(pictures().numpy())
    assert torch.equal(found, expected)
    assert found.shape == (3, 16, 4, 6)


def test_recomputation_changes_no_gradient(recipe: Recipe) -> None:
    gradients = [
        grown(task.make(recipe(model={"gradient_checkpointing": share}), device=CPU), micro())
        for share in (0.0, 0.4, 1.0)
    ]
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        assert all(torch.equal(gradients[0][name], other[name]) for name in other)


def test_with_adapters_nothing_else_learns(recipe: Recipe) -> None:
    rates = {"text_encoder_learning_rate": None}
    made = task.make(recipe(lora={"rank": 4}, optimizer=rates), device=CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learnt = grown(made, micro())
    assert learnt
    for name, tensor in made.model.named_parameters():
        is_adapter = ".lora_" in name
        assert (name in learnt) == tensor.requires_grad == is_adapter
        assert tensor.dtype == (torch.float32 if is_adapter else torch.bfloat16)


def test_stage_b_learns_from_kept_latents(recipe: Recipe, tiny: Path, encoder: Path) -> None:
    made = task.make(of_stage_b(recipe, tiny, encoder), device=CPU)
    assert made.modules == ("decoder",)
    assert made.sources.keys() == {"decoder"}
    vq, noise, seen = torch.randn(3, 4, 32, 48), torch.randn(3, 4, 32, 48), torch.randn(3, 16, 4, 6)
    of = micro(latents_BCHW=vq, noise_BCHW=noise, encoder_latents_BCHW=seen, encoder_scale=1.0)
    inputs = made.feed(of, CPU)
    assert torch.equal(inputs[0], vq)
    assert torch.equal(inputs[5], seen)
    assert inputs[3].shape == (3, 1, 77)
    learnt = grown(made, of)
    assert learnt
    assert all(name.startswith("decoder.") and tensor.dtype == torch.float32 for name, tensor in learnt.items())


def test_stage_b_encodes_pictures_with_both_encoders(recipe: Recipe, tiny: Path, encoder: Path) -> None:
    made = task.make(of_stage_b(recipe, tiny, encoder), device=CPU)
    of = micro(latents_BCHW=None, pixels_BHWC=pictures(), noise_BCHW=torch.randn(3, 4, 32, 48))
    vq, *_, seen, keep = made.feed(of, CPU)
    stage_a = VqganEncoder(tiny / "decoder", dtype="float32", device="cpu")
    torch.testing.assert_close(vq, stage_a.encode(pictures().numpy()))
    shown = decoder.encoder_input(pictures(), scale=0.7)
    whole = Encoder(encoder, dtype="float32", device="cpu").encode(shown.numpy())
    assert whole.shape == (3, 16, 2, 4)
    torch.testing.assert_close(seen[keep], whole[keep])
    assert not seen[~keep].any()
    assert made.model(*made.feed(of, CPU), torch.ones(3))[1].isfinite().all()


def test_stage_b_with_nothing_shown_needs_no_encoder_at_all(recipe: Recipe, tiny: Path, encoder: Path) -> None:
    made = task.make(of_stage_b(recipe, tiny, encoder), device=CPU)
    of = micro(latents_BCHW=torch.zeros(3, 4, 32, 48), pixels_BHWC=pictures(), keep_B=torch.zeros(3, dtype=torch.bool))
    assert not made.feed(of, CPU)[5].any()


def test_a_micro_batch_without_latents_and_pictures_is_refused(recipe: Recipe) -> None:
    with pytest.raises(SoteError, match="neither latents nor pictures"):
        task.make(recipe(), device=CPU).feed(micro(latents_BCHW=None), CPU)


def without(tiny: Path, folder: Path, *, leave_out: str) -> Path:
    """The stand-in decoder without one of its folders."""
    shutil.copytree(tiny / "decoder", folder, ignore=shutil.ignore_patterns(leave_out))
    index = json.loads((folder / "model_index.json").read_text())
    index.pop(leave_out)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_decoder_without_text_encoder_needs_one_in_the_recipe(
    recipe: Recipe, tiny: Path, encoder: Path, tmp_path: Path
) -> None:
    folder = without(tiny, tmp_path / "decoder", leave_out="text_encoder")
    bare = of_stage_b(recipe, tiny, encoder, model={"decoder": str(folder)})
    with pytest.raises(SoteError, match=r"model\.text_encoder"):
        task.make(bare, device=CPU)
    named = {"decoder": str(folder), "text_encoder": str(tiny / "prior" / "text_encoder")}
    task.make(of_stage_b(recipe, tiny, encoder, model=named), device=CPU)


def test_a_decoder_without_stage_a_says_so_when_pictures_come(
    recipe: Recipe, tiny: Path, encoder: Path, tmp_path: Path
) -> None:
    folder = without(tiny, tmp_path / "decoder", leave_out="vqgan")
    made = task.make(of_stage_b(recipe, tiny, encoder, model={"decoder": str(folder)}), device=CPU)
    with pytest.raises(SoteError, match="no Stage A"):
        made.feed(micro(latents_BCHW=None, pixels_BHWC=pictures()), CPU)


@pytest.mark.parametrize("table", [{"data": {"encode": True}}, {"model": {"stage": "decoder"}}])
def test_a_missing_encoder_is_found_before_any_model_is_loaded(
    recipe: Recipe, tiny: Path, tmp_path: Path, table: dict[str, dict[str, object]]
) -> None:
    data = table.get("data", {}) | {"encoder": str(tmp_path / "none.safetensors")}
    model = table.get("model", {}) | {"prior": str(tmp_path / "none"), "decoder": str(tmp_path / "none")}
    with pytest.raises(SoteError, match=r"data\.encoder"):
        task.make(recipe(data=data, model=model), device=CPU)
