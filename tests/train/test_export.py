import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableCascadeCombinedPipeline, StableCascadeDecoderPipeline, StableCascadePriorPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sote.cluster import storage
from sote.cluster.errors import CheckpointError, RunFolderError, UserError
from sote.train import checkpoint, export, names, worker
from sote.train.checkpoint import Origin, State
from sote.train.recipe import TrainRecipe

Make = Callable[..., TrainRecipe]
STATE = State(7, 0, 28, 0, "cd" * 32, 32.0, "ab" * 32, "masked")


def _save(recipe: TrainRecipe, folder: storage.RunFolder) -> None:
    """A run folder with a checkpoint of the untrained model, as training leaves it."""
    run = worker.prepare(recipe, folder=folder, origin=Origin("cd" * 32, 32.0, "ab" * 32))
    for tensor in run.model.parameters():
        tensor.grad = torch.zeros_like(tensor)
    run.adafactor.step()
    checkpoint.save(folder.checkpoints, STATE, model=run.model, adafactor=run.adafactor, keep=1)


@pytest.fixture
def trained(recipe: Make, tmp_path: Path) -> Path:
    """A run folder with one checkpoint."""
    made = recipe(export={"name": "tiny", "encoder": str(_encoder(tmp_path))})
    with storage.open_run(made, verb="train", command="sote train") as folder:
        _save(made, folder)
    return folder.root


def _encoder(folder: Path) -> Path:
    """A file with two tensors of the EfficientNet encoder: one with numbers, and a counter."""
    path = folder / "effnet_encoder.safetensors"
    counter = torch.tensor(3, dtype=torch.int64)
    save_file({"backbone.0.0.weight": torch.ones(2, 3), "backbone.0.1.num_batches_tracked": counter}, path)
    return path


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_the_diffusers_form_loads_by_its_pipelines_and_paints(trained: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = export.export(trained, out, "diffusers")
    prior = StableCascadePriorPipeline.from_pretrained(out / "prior")
    decoder = StableCascadeDecoderPipeline.from_pretrained(out / "decoder")
    started = load_file(tiny / "prior/prior/diffusion_pytorch_model.safetensors")
    for name, tensor in prior.prior.state_dict().items():
        assert torch.equal(tensor, started[name].half().float())
    assert decoder.vqgan.config.scale_factor == 0.43
    for pipeline in (prior, decoder):
        pipeline.set_progress_bar_config(disable=True)
    latents = prior("red circle", height=256, width=256, num_inference_steps=2).image_embeddings
    image = decoder(latents, prompt="red circle", num_inference_steps=2, guidance_scale=0, output_type="np").images[0]
    assert image.std() > 0.01
    assert {tensor.dtype for path in files for tensor in load_file(path).values()} <= {torch.float16, torch.int64}
    combined = StableCascadeCombinedPipeline.from_pretrained(out / "decoder")
    assert torch.equal(combined.prior_prior.clf[1].weight, prior.prior.clf[1].weight)


def test_the_comfyui_form_has_the_names_that_comfyui_looks_for(trained: Path, tiny: Path, tmp_path: Path) -> None:
    main, decoder = (load_file(path) for path in export.export(trained, tmp_path / "out", "comfyui"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "export.json",
        "tiny_decoder.safetensors",
        "tiny_main.safetensors",
    ]
    # Keys that ComfyUI v0.3.64 model_detection.py and sd.py look for
    assert {"model.diffusion_model.clip_txt_mapper.weight", "model.diffusion_model.clf.1.weight"} <= main.keys()
    assert "text_encoder.clip_g.transformer.text_model.encoder.layers.1.mlp.fc1.weight" in main
    assert "vae.encoder.backbone.0.0.weight" in main
    assert {"model.diffusion_model.clip_mapper.weight", "vae.vquantizer.codebook.weight"} <= decoder.keys()
    counter = main["vae.encoder.backbone.0.1.num_batches_tracked"]
    assert (counter.dtype, int(counter)) == (torch.int64, 3)
    started = load_file(tiny / "prior/prior/diffusion_pytorch_model.safetensors")
    back = names.convert(main, names.unet_to_diffusers(main), join=torch.cat)
    assert back.keys() == started.keys()
    assert all(torch.equal(back[name], started[name].half()) for name in started)
    assert all(".attention.to_" not in name for name in main)


def test_the_unet_form_is_kohyas_pair_of_files(trained: Path, tmp_path: Path) -> None:
    files = export.export(trained, tmp_path / "out", "unet")
    assert [path.name for path in files] == ["tiny.safetensors", "tiny_text_model.safetensors"]
    unet, text = (load_file(path) for path in files)
    assert names.layout_of(unet) == "original"
    assert "down_blocks.0.2.attention.attn.in_proj_weight" in unet
    assert "text_projection.weight" in text


def test_the_metadata_says_where_the_weights_come_from(trained: Path, tmp_path: Path) -> None:
    found = _metadata(export.export(trained, tmp_path / "out", "unet")[0])
    wanted = {"format": "pt", "modelspec.architecture": "stable-cascade", "recipe": "cd" * 32, "compression": "32"}
    assert wanted | {"text_mask": "masked", "step": "7", "images_seen": "28"} == {
        key: found[key] for key in [*wanted, "text_mask", "step", "images_seen"]
    }


def test_an_export_is_recorded_with_digests_and_may_be_replaced_by_another(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.export(trained, out, "comfyui")
    (file, _) = export.export(trained, out, "unet")
    record = json.loads((out / "export.json").read_text())
    assert record["files"]["tiny.safetensors"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert not list(out.glob("*_main*"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_with_something_else_is_left_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something that is not an export of ours"):
        export.export(trained, tmp_path / "out", "unet")
    assert (tmp_path / "out/thesis.txt").read_text() == "dear"


def test_what_was_not_trained_cannot_be_exported(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not the run folder of a training"):
        export.export(tmp_path, tmp_path / "out", "unet")
    shutil.rmtree(trained / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        export.export(trained, tmp_path / "out", "unet")


def test_numbers_that_fp16_cannot_hold_are_refused_by_tensor(trained: Path, tmp_path: Path) -> None:
    folder = trained / "checkpoints/step-7"
    tensors = load_file(folder / "prior.safetensors")
    tensors["clf.1.bias"][0] = 7e4  # fp16 ends at 65504
    save_file(tensors, folder / "prior.safetensors")
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    state["sha256"]["prior.safetensors"] = hashlib.sha256((folder / "prior.safetensors").read_bytes()).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"clf\.1\.bias: has numbers that F16 cannot hold"):
        export.export(trained, tmp_path / "out", "unet")
    assert not (tmp_path / "out").exists()


def test_the_file_is_laid_out_as_the_safetensors_library_does_it(trained: Path, tmp_path: Path) -> None:
    path = export.export(trained, tmp_path / "out", "unet")[0]
    save_file(load_file(path), tmp_path / "theirs.safetensors", metadata=_metadata(path))

    def parts(file: Path) -> tuple[dict[str, Any], bytes]:
        data = file.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        return json.loads(data[8 : 8 + length]), data[8 + length :]

    assert parts(path) == parts(tmp_path / "theirs.safetensors")
