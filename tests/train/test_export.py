import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableCascadeCombinedPipeline,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sote.cluster import storage
from sote.cluster.errors import CheckpointError, RunFolderError, UserError, WeightsError
from sote.train import export, modelfile, names
from sote.train.checkpoint import State
from sote.train.recipe import CheckpointPart, TrainRecipe
from sote.train.source import Source
from sote.train.tensorfile import Planned
from sote.train.writer import File, Snapshot, Writer

Make = Callable[..., TrainRecipe]
STATE = State(
    step=7,
    updates=7,
    epoch=0,
    images_seen=28,
    seed=0,
    workers=1,
    recipe="cd" * 32,
    compression=32.0,
    encoder_sha256="ab" * 32,
    text_mask="masked",
    text_tokens=152,
    base="stable-cascade-prior",
    recent_losses=(),
    bad_steps=0,
    loss_buckets=None,
)
LAYER = "down_blocks.0.2.attention.to_k"


def _copied(source: Source) -> File:
    """A module of a checkpoint as training writes it."""
    tensors = [Planned(name, "F32", shape, partial(source.read, name)) for name, shape in source.shapes.items()]
    return File(tensors, {"format": "pt", "config": json.dumps(source.config)})


def _given(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> File:
    made = [Planned(name, "F32", tuple(it.shape), partial(torch.clone, it)) for name, it in tensors.items()]
    return File(made, metadata or {"format": "pt"})


def _run(recipe: TrainRecipe, files: dict[str, File]) -> Path:
    """A run folder with one checkpoint."""
    with storage.open_run(recipe, verb="train", command="sote train") as folder, Writer(CheckpointPart()) as writing:
        writing.save(Snapshot(folder.checkpoints / "step-7", files, STATE))
    return folder.root


def _of_prior(tiny: Path) -> dict[str, File]:
    found = modelfile.prior(str(tiny / "prior"), field="model.prior")
    return {"prior.safetensors": _copied(found.unet), "text_encoder.safetensors": _copied(found.text_encoder)}


@pytest.fixture
def trained(recipe: Make, tiny: Path, tmp_path: Path) -> Path:
    """A run folder with a checkpoint of the untrained prior."""
    return _run(recipe(export={"name": "tiny", "encoder": str(_encoder(tmp_path))}), _of_prior(tiny))


@pytest.fixture
def of_stage_b(recipe: Make, tiny: Path) -> Path:
    """The same of a run that trained Stage B."""
    made = recipe(
        model={"stage": "decoder", "decoder": str(tiny / "decoder")},
        optimizer={"text_encoder_learning_rate": None},
        export={"name": "tiny", "decoder": None},
    )
    found = modelfile.decoder(str(tiny / "decoder"), field="model.decoder")
    return _run(made, {"decoder.safetensors": _copied(found.unet)})


@pytest.fixture
def of_adapters(recipe: Make) -> Path:
    """The same of a LoRA run with an adapter on one layer."""
    made = recipe(
        lora={"rank": 2, "alpha": 6.0},
        optimizer={"text_encoder_learning_rate": None},
        export={"name": "tiny", "dtype": "float32"},
    )
    return _run(made, {"lora.safetensors": _given(ADAPTERS)})


ADAPTERS = {
    f"{LAYER}.lora_A.weight": torch.randn(2, 64, generator=torch.Generator().manual_seed(0)),
    f"{LAYER}.lora_B.weight": torch.randn(64, 2, generator=torch.Generator().manual_seed(1)),
}


def _encoder(folder: Path) -> Path:
    """A file with two tensors of the EfficientNet encoder: one with numbers, and a counter."""
    path = folder / "effnet_encoder.safetensors"
    counter = torch.tensor(3, dtype=torch.int64)
    save_file({"backbone.0.0.weight": torch.ones(2, 3), "backbone.0.1.num_batches_tracked": counter}, path)
    return path


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


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
    # SD.Next reads the config beside the file, and gives it to this loader
    theirs = StableCascadeUNet.from_single_file(str(files[0]), config=str(tmp_path / "out/tiny.json"))
    back = names.convert(unet, names.unet_to_diffusers(unet), join=torch.cat)
    assert all(torch.equal(tensor, back[name].float()) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("form", ["diffusers", "comfyui", "unet"])
def test_an_export_of_any_form_is_loaded_as_what_was_trained(
    form: export.Form, trained: Path, tiny: Path, tmp_path: Path
) -> None:
    files = export.export(trained, tmp_path / "out", form, dtype="float32")
    started = modelfile.prior(str(tiny / "prior"), field="f")
    reference = tmp_path / "out/prior" if form == "diffusers" else files[0]
    found = modelfile.prior(str(reference), field="model.prior")
    for ours, theirs in ((found.unet, started.unet), (found.text_encoder, started.text_encoder)):
        assert ours.shapes == theirs.shapes
        assert all(torch.equal(tensor, theirs.read(name)) for name, tensor in ours.tensors())
    # the stand-in's heads are 32 and 10 wide, which no shape tells: the files do
    assert list(found.unet.config["num_attention_heads"]) == [2, 2]
    assert found.text_encoder.config["num_attention_heads"] == 4
    if form == "comfyui":
        decoder = modelfile.decoder(str(files[1]), field="model.decoder")
        assert list(decoder.unet.config["num_attention_heads"]) == [0, 0, 2, 2]
        assert decoder.vqgan is not None
        assert decoder.vqgan.config["bottleneck_blocks"] == 2


def test_the_type_may_be_chosen(trained: Path, tmp_path: Path) -> None:
    for chosen, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32), (None, torch.float16)):
        file = export.export(trained, tmp_path / "out", "unet", dtype=chosen)[0]  # type: ignore[arg-type]
        assert {tensor.dtype for tensor in load_file(file).values()} == {dtype}


def test_the_metadata_says_where_the_weights_come_from(trained: Path, tmp_path: Path) -> None:
    prior, decoder = export.export(trained, tmp_path / "out", "comfyui")
    found = _metadata(prior)
    wanted = {
        "format": "pt",
        "recipe": "cd" * 32,
        "base": "stable-cascade-prior",
        "compression": "32",
        "text_mask": "masked",
        "text_tokens": "152",
        "step": "7",
        "images_seen": "28",
        "licence": "Fair AI Public License 1.0-SD",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-cascade",
        "modelspec.implementation": "https://github.com/Stability-AI/StableCascade",
        "modelspec.title": "tiny: Stage C",
        "modelspec.license": "Fair AI Public License 1.0-SD",
        "modelspec.hash_sha256": f"0x{hashlib.sha256(_parts(prior)[1]).hexdigest()}",
    }
    assert wanted == {key: found[key] for key in wanted}
    assert found["modelspec.date"].startswith("20")
    assert json.loads(found["config"])["block_out_channels"] == [64, 64]
    assert json.loads(found["config.text_encoder"])["hidden_size"] == 40
    # Stage B was not trained here, and its file does not say so
    beside = _metadata(decoder)
    assert not {"step", "images_seen", "recipe"} & beside.keys()
    assert beside["modelspec.title"] == "tiny: Stage B"


def test_a_run_of_stage_b_gives_the_decoders_half_alone(of_stage_b: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = export.export(of_stage_b, out, "diffusers")
    assert sorted(str(path.relative_to(out)) for path in files) == [
        "decoder/decoder/diffusion_pytorch_model.safetensors",
        "decoder/text_encoder/model.safetensors",
        "decoder/vqgan/diffusion_pytorch_model.safetensors",
    ]
    decoder = StableCascadeDecoderPipeline.from_pretrained(out / "decoder")
    assert decoder.vqgan.config.scale_factor == 0.43
    assert f"- {tiny / 'prior'}" in (out / "decoder/README.md").read_text()
    assert _metadata(files[0])["step"] == "7"
    (file,) = export.export(of_stage_b, out, "comfyui")
    assert file.name == "tiny_decoder.safetensors"
    assert modelfile.decoder(str(file), field="f").vqgan is not None
    (file,) = export.export(of_stage_b, out, "unet")
    assert "clip_mapper.weight" in load_file(file)


def test_adapters_are_exported_under_kohyas_names(of_adapters: Path, tmp_path: Path) -> None:
    (file,) = export.export(of_adapters, tmp_path / "out", "lora")
    found, base = load_file(file), "lora_unet_down_blocks_0_2_attention_attn_to_k"
    assert found.keys() == {f"{base}.alpha", f"{base}.lora_down.weight", f"{base}.lora_up.weight"}
    assert found[f"{base}.alpha"].item() == 6
    assert torch.equal(found[f"{base}.lora_up.weight"], ADAPTERS[f"{LAYER}.lora_B.weight"])
    said = _metadata(file)
    assert said["modelspec.architecture"] == "stable-cascade/lora"
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("2", "6")
    with pytest.raises(WeightsError, match=r"this is adapters \(LoRA\).*; Stage C is missing"):
        modelfile.prior(str(file), field="model.prior")


def test_adapters_are_added_to_their_base_in_the_other_forms(of_adapters: Path, tiny: Path, tmp_path: Path) -> None:
    file = export.export(of_adapters, tmp_path / "out", "unet")[0]
    found = modelfile.prior(str(file), field="f").unet
    base = modelfile.prior(str(tiny / "prior"), field="f").unet
    for name, tensor in found.tensors():
        if name == f"{LAYER}.weight":
            added = 6 / 2 * ADAPTERS[f"{LAYER}.lora_B.weight"] @ ADAPTERS[f"{LAYER}.lora_A.weight"]
            torch.testing.assert_close(tensor, base.read(name) + added)
        else:
            assert torch.equal(tensor, base.read(name))


def test_the_command_takes_the_type_of_weights_and_of_nothing_else(
    trained: Path, tmp_path: Path, sote: Callable[..., tuple[int, str, str]]
) -> None:
    words = ("export", str(trained), str(tmp_path / "out"), "--dtype", "bfloat16", "--format")
    code, out, _ = sote(*words, "unet")
    assert code == 0
    assert {tensor.dtype for tensor in load_file(out.splitlines()[0]).values()} == {torch.bfloat16}
    code, _, said = sote(*words, "webdataset")
    assert (code, said) == (
        2,
        "sote: --dtype bfloat16: a dataset has no type; name a --format of weights, or leave it out\n",
    )


def test_a_run_without_adapters_has_no_lora_form(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--format lora: this run trained whole weights"):
        export.export(trained, tmp_path / "out", "lora")
    assert not (tmp_path / "out").exists()


def test_running_means_are_exported_where_the_recipe_says_so(recipe: Make, tiny: Path, tmp_path: Path) -> None:
    made = recipe(
        export={"name": "tiny", "ema": True, "dtype": "float32"}, ema={}, optimizer={"text_encoder_learning_rate": None}
    )
    files = _of_prior(tiny)
    source = modelfile.prior(str(tiny / "prior"), field="f").unet
    means = {name: torch.full(shape, 0.5) for name, shape in source.shapes.items()}
    files["ema_prior.safetensors"] = _given(means, files["prior.safetensors"].metadata)
    run = _run(made, files)
    unet, text = export.export(run, tmp_path / "out", "unet")
    assert all(bool((tensor == 0.5).all()) for tensor in load_file(unet).values())
    assert load_file(text).keys() == load_file(tiny / "prior/text_encoder/model.safetensors").keys()  # it was frozen
    shutil.rmtree(run / "checkpoints")
    _rewrite(run, _of_prior(tiny))
    with pytest.raises(CheckpointError, match=r"ema_prior\.safetensors: export\.ema: there is no running mean yet"):
        export.export(run, tmp_path / "out", "unet")


def _rewrite(run: Path, files: dict[str, File]) -> None:
    with Writer(CheckpointPart()) as writing:
        writing.save(Snapshot(run / "checkpoints/step-7", files, STATE))


def test_an_export_is_recorded_with_digests_and_may_be_replaced_by_another(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.export(trained, out, "comfyui")
    (file, _) = export.export(trained, out, "unet")
    record = json.loads((out / "export.json").read_text())
    assert record["files"]["tiny.safetensors"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["dtype"] == "float16"
    assert not list(out.glob("*_main*"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    again = file.read_bytes()
    assert export.export(trained, out, "unet")[0].read_bytes() == again


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


def test_a_decoder_without_stage_a_is_said(recipe: Make, tiny: Path, tmp_path: Path) -> None:
    alone = tmp_path / "decoder_alone.safetensors"
    config = (tiny / "decoder/decoder/config.json").read_text()
    save_file(load_file(tiny / "decoder/decoder/diffusion_pytorch_model.safetensors"), alone, {"config": config})
    run = _run(recipe(export={"decoder": str(alone)}), _of_prior(tiny))
    with pytest.raises(WeightsError, match=r"decoder_alone\.safetensors: export\.decoder: has no Stage A beside it"):
        export.export(run, tmp_path / "out", "comfyui")


def test_numbers_that_fp16_cannot_hold_are_refused_by_tensor(recipe: Make, tiny: Path, tmp_path: Path) -> None:
    files = _of_prior(tiny)
    large = {"clf.1.bias": torch.full((16,), 7e4)}  # fp16 ends at 65504
    kept = [it for it in files["prior.safetensors"].tensors if it.name not in large]
    files["prior.safetensors"] = File([*kept, *_given(large).tensors], files["prior.safetensors"].metadata)
    run = _run(recipe(), files)
    with pytest.raises(CheckpointError, match=r"clf\.1\.bias: has numbers that F16 cannot hold"):
        export.export(run, tmp_path / "out", "unet")
    assert not (tmp_path / "out").exists()
    assert export.export(run, tmp_path / "out", "unet", dtype="bfloat16")


def test_the_file_is_laid_out_as_the_safetensors_library_does_it(trained: Path, tmp_path: Path) -> None:
    path = export.export(trained, tmp_path / "out", "unet")[0]
    save_file(load_file(path), tmp_path / "theirs.safetensors", metadata=_metadata(path))
    assert _parts(path) == _parts(tmp_path / "theirs.safetensors")
