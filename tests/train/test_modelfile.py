"""Models of a few thousand numbers in every layout that the trade has, and in every wrong one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableCascadeUNet
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

from sote.cluster.errors import CheckpointError, WeightsError
from sote.train import checkpoint, modelfile, models, names, shapes, standins

Tensors = dict[str, torch.Tensor]
# Heads 64 wide, as shapes alone tell
PRIOR: dict[str, Any] = standins.PRIOR_CONFIG | {
    "num_attention_heads": (1, 1),
    "clip_text_in_channels": 64,
    "clip_text_pooled_in_channels": 64,
}
DECODER: dict[str, Any] = standins.DECODER_CONFIG | {
    "block_out_channels": (16, 32, 64, 64),
    "num_attention_heads": (0, 0, 1, 1),
    "clip_text_pooled_in_channels": 64,
}
TEXT: dict[str, Any] = standins.TEXT_CONFIG | {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 1,
    "projection_dim": 64,
}


def _random(sizes: shapes.Shapes, seed: int) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    counter = torch.tensor(3)
    return {
        name: counter.clone() if name.endswith("tracked") else torch.randn(size, generator=random) / 8
        for name, size in sizes.items()
    }


UNET = _random(shapes.unet_shapes(PRIOR), 1)
STAGE_B = _random(shapes.unet_shapes(DECODER), 2)
WORDS = _random(shapes.text_shapes(TEXT), 3)
STAGE_A = _random(shapes.vqgan_shapes(standins.VQGAN_CONFIG), 4)


def _original(unet: Tensors) -> Tensors:
    return names.convert(unet, names.unet_to_original(unet), join=torch.cat)


def _comfy(unet: Tensors, text: Tensors | None = WORDS) -> Tensors:
    made = names.convert(unet, names.unet_to_comfyui(unet), join=torch.cat)
    return made | (names.convert(text, names.text_to_comfyui(text), join=torch.cat) if text else {})


def _split(unet: Tensors) -> Tensors:
    """As ComfyUI saves what it has loaded."""
    made = {}
    for name, tensor in unet.items():
        name = name.replace(".attention.to_out.0.", ".attention.attn.out_proj.")
        made[names.COMFY_UNET + name.replace(".attention.to_", ".attention.attn.to_")] = tensor
    return made


def _same(source: modelfile.Source, wanted: Tensors) -> bool:
    found = dict(source.tensors())
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def _write(path: Path, tensors: Tensors, **metadata: str) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata or None)
    return str(path)


def _comfyui(folder: Path) -> str:
    extra = {"vae.encoder.backbone.0.0.weight": torch.ones(2), "vae.previewer.blocks.0.weight": torch.ones(2)}
    extra |= {"clip_l_vision.vision_model.embeddings.class_embedding": torch.ones(2)}
    extra |= {"text_encoder.clip_g.logit_scale": torch.tensor(4.6)}
    extra |= {names.COMFY_TEXT + "text_model.embeddings.position_ids": torch.arange(77)[None]}
    return _write(folder / "main.safetensors", _comfy(UNET) | extra)


def _comfyui_split(folder: Path) -> str:
    return _write(folder / "main.safetensors", _split(UNET) | _comfy({}, WORDS))


def _comfyui_old(folder: Path) -> str:
    """The projection outside of the transformer, transposed."""
    tensors = _comfy(UNET)
    turned = tensors.pop(names.COMFY_TEXT + "text_projection.weight").T
    return _write(folder / "main.safetensors", tensors | {names.COMFY_OLD_PROJECTION: turned})


def _kohya(folder: Path) -> str:
    _write(folder / "mine_text_model.safetensors", WORDS)
    return _write(folder / "mine.safetensors", _original(UNET))


def _onetrainer(folder: Path) -> str:
    _write(folder / "text_encoder.safetensors", WORDS)
    _write(folder / "stage_c.safetensors", _original(UNET))
    return str(folder)


def _sdnext(folder: Path) -> str:
    _write(folder / "mine_text_encoder.safetensors", WORDS)
    (folder / "mine.json").write_text(json.dumps(PRIOR))
    return _write(folder / "mine.safetensors", UNET)


def _pipeline(folder: Path) -> str:
    for name, tensors, config in (("prior", UNET, PRIOR), ("text_encoder", WORDS, TEXT)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        _write(folder / name / f"{stem}.safetensors", tensors)
    return str(folder)


def _variant(folder: Path) -> str:
    _pipeline(folder)
    path = folder / "prior/diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.bf16.safetensors"))
    return str(folder / "prior")


def _cut(folder: Path) -> str:
    """As diffusers cuts what is above 10 GB."""
    _pipeline(folder)
    path = folder / "prior/diffusion_pytorch_model.safetensors"
    path.unlink()
    for part in (0, 1):
        some = {name: tensor for at, (name, tensor) in enumerate(UNET.items()) if at % 2 == part}
        _write(path.with_name(f"diffusion_pytorch_model-0000{part + 1}-of-00002.safetensors"), some)
    return str(folder)


LAYOUTS = (_pipeline, _variant, _cut, _comfyui, _comfyui_split, _comfyui_old, _kohya, _onetrainer, _sdnext)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_prior_is_the_same_in_every_layout(layout: Callable[[Path], str], tmp_path: Path) -> None:
    found = modelfile.prior(layout(tmp_path), field="model.prior")
    assert _same(found.unet, UNET)
    assert _same(found.text_encoder, WORDS)
    assert found.unet.shapes == shapes.unet_shapes(PRIOR)
    assert found.text_encoder.config["num_attention_heads"] == 1
    assert [list(found.unet.config[key]) for key in ("block_out_channels", "num_attention_heads")] == [[64, 64], [1, 1]]


def test_a_decoder_is_the_same_in_every_layout_and_brings_its_stage_a(tmp_path: Path) -> None:
    stage_a = names.convert(STAGE_A, names.vqgan_to_original(STAGE_A, prefix=names.COMFY_VQGAN), join=torch.cat)
    original = names.convert(STAGE_A, names.vqgan_to_original(STAGE_A), join=torch.cat)
    comfy = _write(tmp_path / "decoder.safetensors", _comfy(STAGE_B) | stage_a)
    (tmp_path / "originals").mkdir()
    alone = _write(tmp_path / "originals/stage_b.safetensors", _original(STAGE_B))
    _write(tmp_path / "originals/stage_a.safetensors", original)
    for reference, has_text in ((comfy, True), (alone, False)):
        found = modelfile.decoder(reference, field="model.decoder")
        assert _same(found.unet, STAGE_B)
        assert found.vqgan is not None
        assert _same(found.vqgan, STAGE_A)
        assert found.vqgan.config["scale_factor"] == 0.43
        assert found.vqgan.read("down_blocks.3.1.num_batches_tracked").dtype == torch.int64
        assert (found.text_encoder is not None) == has_text
    assert _same(modelfile.vqgan(comfy, field="export.decoder"), STAGE_A)
    assert _same(modelfile.vqgan(str(tmp_path / "originals"), field="export.decoder"), STAGE_A)


def test_the_models_are_those_of_diffusers_and_transformers(tiny: Path) -> None:
    found = modelfile.prior(str(tiny / "prior"), field="model.prior")
    unet = models.unet_model(found.unet, dtype=torch.float32, device="cpu")
    theirs = StableCascadeUNet.from_pretrained(tiny / "prior/prior")
    assert unet.config.num_attention_heads == (2, 2)
    assert all(torch.equal(tensor, unet.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    text = models.text_model(found.text_encoder, dtype=torch.float32, device="cpu")
    tokens = torch.arange(77)[None] * 600 + 49407 - 76 * 600
    wanted = CLIPTextModelWithProjection.from_pretrained(tiny / "prior/text_encoder")(tokens, output_hidden_states=True)
    got = text(tokens, output_hidden_states=True)
    torch.testing.assert_close(got.text_embeds, wanted.text_embeds)
    torch.testing.assert_close(got.hidden_states[-1], wanted.hidden_states[-1])
    assert not text.training
    half = models.unet_model(found.unet, dtype=torch.bfloat16, device="cpu")
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}


def test_stage_a_paints_what_diffusers_own_loading_paints(tiny: Path) -> None:
    source = modelfile.vqgan(str(tiny / "decoder"), field="model.decoder")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = models.vqgan_model(source, dtype=torch.float32, device="cpu")
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    theirs = PaellaVQModel.from_pretrained(tiny / "decoder/vqgan")
    torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample)


def test_clips_own_tokenizer_needs_no_folder(tiny: Path) -> None:
    ours, theirs = models.tokenizer(None), models.tokenizer(tiny / "prior/tokenizer")
    texts = ["a red  Circle, 日本 héllo don't", "", "word " * 100]
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": 77}
    assert ours(texts, **options).input_ids == theirs(texts, **options).input_ids
    assert ours(texts, **options).attention_mask == theirs(texts, **options).attention_mask
    assert ours.model_max_length == 77


def test_the_config_in_the_metadata_is_taken_before_what_shapes_say(tmp_path: Path) -> None:
    said = json.dumps(PRIOR | {"num_attention_heads": [2, 2]})
    text = json.dumps(TEXT | {"num_attention_heads": 4})
    file = _write(tmp_path / "main.safetensors", _comfy(UNET), **{"config": said, "config.text_encoder": text})
    found = modelfile.prior(file, field="model.prior")
    assert found.unet.config["num_attention_heads"] == [2, 2]
    assert found.text_encoder.config["num_attention_heads"] == 4


def test_the_newest_checkpoint_of_a_run_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = tmp_path / "run/checkpoints/step-7"
    step.mkdir(parents=True)
    _write(step / "prior.safetensors", UNET, config=json.dumps(PRIOR | {"num_attention_heads": [2, 2]}))
    _write(step / "ema_prior.safetensors", {name: 0 * tensor for name, tensor in UNET.items()})
    _write(step / "text_encoder.safetensors", WORDS, config=json.dumps(TEXT))
    _write(step / "optimizer.safetensors", {"prior.clf.1.bias/row": torch.zeros(2)})
    monkeypatch.setattr(checkpoint, "newest", lambda folder, **_: checkpoint.Checkpoint(folder / "step-7", None))  # type: ignore[arg-type]
    for reference in (tmp_path / "run", step):
        found = modelfile.prior(str(reference), field="model.prior")
        assert _same(found.unet, UNET)
        assert _same(found.text_encoder, WORDS)
        assert found.unet.config["num_attention_heads"] == [2, 2]
    with pytest.raises(WeightsError, match=r"model\.decoder: this is the prior \(Stage C\); Stage B is missing"):
        modelfile.decoder(str(tmp_path / "run"), field="model.decoder")


def test_a_run_without_a_checkpoint_or_with_adapters_only_is_said(
    tmp_path: Path,
) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    step = tmp_path / "step-7"
    step.mkdir()
    with pytest.raises(CheckpointError, match=r"model\.prior: is a run without a checkpoint yet"):
        modelfile.prior(str(tmp_path / "run"), field="model.prior")
    _write(step / "lora.safetensors", {"prior.down_blocks.0.2.attention.to_q.lora_A.weight": torch.ones(2, 2)})
    with pytest.raises(WeightsError, match=r"model\.prior: these are adapters of a LoRA run"):
        modelfile.prior(str(step), field="model.prior")


def test_the_text_encoder_may_be_named_and_must_fit(tmp_path: Path) -> None:
    file = _write(tmp_path / "mine.safetensors", _original(UNET))
    with pytest.raises(WeightsError, match=r"has no text encoder; put mine_text_model\.safetensors beside it"):
        modelfile.prior(file, field="model.prior")
    words = _write(tmp_path / "words.safetensors", WORDS)
    assert _same(modelfile.prior(file, field="model.prior", text_encoder=words).text_encoder, WORDS)
    wide = _random(shapes.text_shapes(TEXT | {"hidden_size": 128}), 5)
    other = _write(tmp_path / "other.safetensors", wide)
    with pytest.raises(WeightsError, match="the prior takes text of width 64, this text encoder gives 128"):
        modelfile.prior(file, field="model.prior", text_encoder=other)


def test_the_text_encoder_of_a_whole_clip_is_taken(tmp_path: Path) -> None:
    """As Stability's own tools take it from laion's repository."""
    file = _write(tmp_path / "mine.safetensors", _original(UNET))
    vision = {"vision_model.embeddings.class_embedding": torch.ones(2), "visual_projection.weight": torch.ones(2)}
    (tmp_path / "clip").mkdir()
    _write(tmp_path / "clip/model.safetensors", WORDS | vision | {"logit_scale": torch.tensor(4.6)})
    text = {key: value for key, value in TEXT.items() if key != "projection_dim"}
    (tmp_path / "clip/config.json").write_text(json.dumps({"projection_dim": 64, "text_config": text}))
    found = modelfile.prior(file, field="model.prior", text_encoder=str(tmp_path / "clip")).text_encoder
    assert _same(found, WORDS)
    assert found.config["projection_dim"] == 64


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (_comfy(STAGE_B), r"this is Stage B, the decoder; Stage C is missing"),
        (_original(STAGE_B), r"this is Stage B, the decoder; Stage C is missing"),
        (STAGE_A, r"this is Stage A, the vqgan; Stage C is missing"),
        (WORDS, r"this is the text encoder; Stage C is missing"),
        ({"backbone.0.0.weight": torch.ones(1)}, r"this is the EfficientNet encoder; Stage C is missing"),
        ({"lora_unet_x.lora_down.weight": torch.ones(1)}, r"this is adapters \(LoRA\)"),
        # keys of an SDXL checkpoint
        (
            {
                "model.diffusion_model.input_blocks.0.0.weight": torch.ones(1),
                "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": torch.ones(1),
                "first_stage_model.decoder.conv_in.weight": torch.ones(1),
            },
            r"this is no model of Stable Cascade; Stage C is missing",
        ),
    ],
    ids=["comfyui decoder", "original decoder", "vqgan", "text", "encoder", "lora", "sdxl"],
)
def test_another_model_is_said_to_be_what_it_is(tensors: Tensors, words: str, tmp_path: Path) -> None:
    file = _write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(WeightsError, match=rf"x\.safetensors: model\.prior: {words}"):
        modelfile.prior(file, field="model.prior")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"up_blocks.1.3.channelwise.2.gamma": None},
            r"tensor up_blocks\.1\.3\.channelwise\.2\.gamma is missing \(1 in",
        ),
        ({"clip_txt_pooled_mapper.weight": None}, r"tensor clip_txt_pooled_mapper\.weight is missing"),
        ({"clip_extra.weight": torch.ones(1)}, r"tensor clip_extra\.weight is not of this model"),
        ({"clf.1.bias": torch.ones(3)}, r"tensor clf\.1\.bias has shape \(3,\), should have \(16,\)"),
        ({"clf.1.bias": torch.ones(16, dtype=torch.int64)}, r"tensor clf\.1\.bias is of type I64, should be F16"),
        ({"down_blocks.0.2.attention.attn.in_proj_bias": torch.ones(192)}, r"to_\w\.bias lies in it twice"),
    ],
    ids=["missing", "missing that sizes", "extra", "misshapen", "whole numbers", "twice"],
)
def test_tensors_that_are_not_of_one_model_are_named(change: Any, words: str, tmp_path: Path) -> None:
    tensors: Any = UNET | change
    file = _write(tmp_path / "x.safetensors", {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(WeightsError, match=words):
        modelfile.prior(file, field="model.prior")


def test_a_config_of_another_size_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = Path(_pipeline(tmp_path))
    path = folder / "prior/config.json"
    for change, words in (
        (
            {"down_num_layers_per_block": [2, 5]},
            r"down_num_layers_per_block is \[2, 5\], in the weights it is \[2, 3\]",
        ),
        ({"conditioning_dim": 32}, "conditioning_dim is 32, in the weights it is 64"),
    ):
        path.write_text(json.dumps(PRIOR | change))
        with pytest.raises(WeightsError, match=rf"the config is of another model .* than the weights .*: {words}"):
            modelfile.prior(str(folder), field="model.prior")
    path.write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(WeightsError, match="its config is not one of"):
        modelfile.prior(str(folder), field="model.prior")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_found_while_reading(value: float, tmp_path: Path) -> None:
    tensors = UNET | {"clf.1.bias": torch.tensor([value] * 16)}
    _write(tmp_path / "text_encoder.safetensors", WORDS)
    found = modelfile.prior(_write(tmp_path / "x.safetensors", tensors), field="model.prior")
    with pytest.raises(WeightsError, match=r"tensor clf\.1\.bias has numbers that are not finite"):
        models.unet_model(found.unet, dtype=torch.float32, device="cpu")


def test_a_file_cut_short_is_found_before_and_while_it_is_read(tmp_path: Path) -> None:
    _write(tmp_path / "text_encoder.safetensors", WORDS)
    path = Path(_write(tmp_path / "x.safetensors", UNET))
    found = modelfile.prior(str(path), field="model.prior")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="has become shorter while it was read"):
        list(found.unet.tensors())
    with pytest.raises(WeightsError, match=r"x\.safetensors: is \d+ bytes long, its header says"):
        modelfile.prior(str(path), field="model.prior")


def test_a_folder_of_several_is_asked_about_and_one_of_others_is_named(tmp_path: Path, tiny: Path) -> None:
    for name in ("stage_c", "stage_c_bf16"):
        _write(tmp_path / f"{name}.safetensors", _original(UNET))
    with pytest.raises(WeightsError, match=r"which file is meant of stage_c\.safetensors, stage_c_bf16\.safetensors"):
        modelfile.prior(str(tmp_path), field="model.prior")
    with pytest.raises(WeightsError, match=r"decoder: model\.prior: this is Stage B, the decoder; Stage C is missing"):
        modelfile.prior(str(tiny / "decoder"), field="model.prior")
    with pytest.raises(WeightsError, match="holds no model of Stable Cascade"):
        modelfile.prior(str(tiny / "prior/tokenizer"), field="model.prior")
    cut = tmp_path / "cut"
    shutil.copytree(_cut_folder(tmp_path), cut)
    next(cut.glob("prior/*-00002-of*")).unlink()
    with pytest.raises(WeightsError, match="1 of 2 parts of the weights are here"):
        modelfile.prior(str(cut), field="model.prior")


def _cut_folder(folder: Path) -> Path:
    (folder / "whole").mkdir()
    return Path(_cut(folder / "whole"))


def test_weights_are_read_as_they_are_stored(tmp_path: Path) -> None:
    _write(tmp_path / "text_encoder.safetensors", WORDS)
    half = {name: tensor.bfloat16() for name, tensor in _original(UNET).items()}
    found = modelfile.prior(_write(tmp_path / "x.safetensors", half), field="model.prior")
    name = "down_blocks.0.2.attention.to_k.weight"
    assert torch.equal(found.unet.read(name), UNET[name].bfloat16())
    assert load_file(found.unet.path).keys() == half.keys()
