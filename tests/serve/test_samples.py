"""Sample pictures from snapshots of a training."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from sote.cluster.errors import WeightsError
from sote.serve import samples
from sote.serve.samples import Painter
from sote.train import checkpoint, lora, modelfile
from sote.train.recipe import LoraPart, TrainRecipe

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a blue square"]


@pytest.fixture
def recipe(weights: Path, tmp_path: Path) -> Callable[..., TrainRecipe]:
    """Makes recipes on the stand-ins that ask for two small samples."""

    def make(**tables: Any) -> TrainRecipe:
        values: dict[str, Any] = {
            "run": str(tmp_path / "run"),
            "data": {"curated": str(tmp_path)},
            "model": {"prior": str(weights / "prior"), "decoder": str(weights / "decoder")},
            "export": {"decoder": str(weights / "decoder"), "name": "sample"},
            "length": {"max_steps": 1},
            "samples": {"prompts": PROMPTS, "width": 256, "height": 384, "steps": 4, "seed": 5},
        }
        return TrainRecipe.model_validate(values | tables)

    return make


def written(folder: Path, name: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    """A file of a snapshot as training writes it."""
    folder.mkdir(exist_ok=True)
    says = {"format": "pt", "config": json.dumps(config), "compression": "32", "text_mask": "masked"}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, metadata=says)
    return folder


def of(what: str, weights: Path, *, factor: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a stand-in in bfloat16, moved as if trained, and its config."""
    reference = str(weights / ("decoder" if what == "decoder" else "prior"))
    if what == "decoder":
        source = modelfile.decoder(reference, field="x").unet
    else:
        found = modelfile.prior(reference, field="x")
        source = found.unet if what == "prior" else found.text_encoder
    return {name: (factor * tensor).bfloat16() for name, tensor in source.tensors()}, source.config


def paint(recipe: TrainRecipe, snapshot: Path) -> list[Image.Image]:
    painter = samples.painter(recipe)
    assert painter is not None
    found = painter(snapshot)
    assert [(each.prompt, each.seed) for each in found] == [(PROMPTS[0], 5), (PROMPTS[1], 6)]
    return [Image.open(io.BytesIO(each.data)) for each in found]


def test_a_recipe_without_samples_has_no_painter(recipe: Callable[..., TrainRecipe]) -> None:
    assert samples.painter(recipe(samples=None)) is None


def test_a_snapshot_of_stage_c_paints_each_prompt_with_its_seed(
    recipe: Callable[..., TrainRecipe], weights: Path, tmp_path: Path
) -> None:
    made = recipe()
    one, other = (
        written(tmp_path / str(factor), "prior.safetensors", *of("prior", weights, factor=factor))
        for factor in (1.0, 1.05)
    )
    first = paint(made, one)
    assert [picture.size for picture in first] == [(256, 384)] * 2
    assert first[0].info["parameters"].startswith("a red circle")
    assert first[0].tobytes() == paint(made, one)[0].tobytes()
    assert first[0].tobytes() != paint(made, other)[0].tobytes()


def test_a_trained_text_encoder_is_taken_from_the_snapshot_and_a_frozen_one_from_the_base(
    recipe: Callable[..., TrainRecipe], weights: Path, tmp_path: Path
) -> None:
    made = recipe()
    snapshot = written(tmp_path / "s", "prior.safetensors", *of("prior", weights, factor=1.0))
    tensors, config = of("text encoder", weights, factor=2.0)
    frozen = samples.prior_weights(made, snapshot, device=CPU)
    written(snapshot, "text_encoder.safetensors", tensors, config)
    trained = samples.prior_weights(made, snapshot, device=CPU)
    name = "text_projection.weight"
    scale = trained.text_encoder.state_dict()[name] / frozen.text_encoder.state_dict()[name]
    torch.testing.assert_close(scale, torch.full_like(scale, 2.0), rtol=0.01, atol=0)


def test_a_snapshot_of_stage_b_is_painted_with_the_prior_that_the_recipe_names(
    recipe: Callable[..., TrainRecipe], weights: Path, tmp_path: Path
) -> None:
    named = {"stage": "decoder", "prior": str(weights / "prior"), "decoder": str(weights / "decoder")}
    made = recipe(model=named)
    snapshot = written(tmp_path / "s", "decoder.safetensors", *of("decoder", weights, factor=0.5))
    found = samples.decoder_weights(made, snapshot, device=CPU)
    base = samples.decoder_weights(made, tmp_path / "nothing", device=CPU)
    name = "clf.1.weight"
    torch.testing.assert_close(found.unet.state_dict()[name], (0.5 * base.unet.state_dict()[name]).bfloat16().float())
    assert len(paint(made, snapshot)) == 2


def test_adapters_are_added_to_their_base(recipe: Callable[..., TrainRecipe], weights: Path, tmp_path: Path) -> None:
    part = LoraPart(rank=2, alpha=4.0, targets=("to_q",))
    made = recipe(lora=part.model_dump())
    base = modelfile.prior(str(weights / "prior"), field="x").unet
    layer = next(name.removesuffix(".weight") for name in base.shapes if name.endswith("to_q.weight"))
    out, into = base.shapes[f"{layer}.weight"]
    down, up = torch.randn(2, into), torch.randn(out, 2)
    adapters = {f"prior.{layer}.lora_A.default.weight": down, f"prior.{layer}.lora_B.default.weight": up}
    snapshot = written(tmp_path / "s", checkpoint.LORA, adapters, base.config)
    found = samples.prior_weights(made, snapshot, device=CPU).unet.state_dict()[f"{layer}.weight"]
    torch.testing.assert_close(found, base.read(f"{layer}.weight").float() + 2.0 * up @ down)
    assert lora.plain(f"{layer}.lora_A.default.weight") == f"{layer}.lora_A.weight"


def test_a_decoder_without_stage_a_is_refused_in_one_line(
    recipe: Callable[..., TrainRecipe], weights: Path, tmp_path: Path
) -> None:
    bare = written(tmp_path / "bare", "decoder.safetensors", *of("decoder", weights, factor=1.0))
    made = recipe(export={"decoder": str(bare)})
    with pytest.raises(WeightsError, match=r"export\.decoder: has no Stage A"):
        samples.decoder_weights(made, tmp_path / "nothing", device=CPU)


def test_a_painter_can_be_sent_to_another_process(recipe: Callable[..., TrainRecipe]) -> None:
    import pickle

    painter = samples.painter(recipe())
    assert isinstance(painter, Painter)
    assert pickle.loads(pickle.dumps(painter)) == painter
