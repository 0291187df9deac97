import numpy as np
import pytest
import torch
from diffusers import StableCascadeUNet

from sote.train import names, shapes, standins


def _unet(kind: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = standins.PRIOR_CONFIG if kind == "prior" else standins.DECODER_CONFIG
    return StableCascadeUNet(**config).state_dict()


@pytest.mark.parametrize("kind", ["prior", "decoder"])
def test_a_unet_goes_to_each_layout_and_back_without_a_change(kind: str) -> None:
    state = _unet(kind)
    for there in (names.unet_to_original, names.unet_to_comfyui):
        other = names.convert(state, there(state), join=torch.cat)
        back = names.convert(other, names.unet_to_diffusers(other), join=torch.cat)
        assert names.model_of(other) == kind
        assert names.layout_of(other) != "diffusers"
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_attention_is_joined_as_query_key_value_along_the_rows() -> None:
    state = _unet("prior")
    original = names.convert(state, names.unet_to_original(state), join=torch.cat)
    at = "down_blocks.0.2.attention"
    joined = original[f"{at}.attn.in_proj_weight"]
    assert joined.shape == (192, 64)
    assert torch.equal(joined[64:128], state[f"{at}.to_k.weight"])
    assert torch.equal(original[f"{at}.attn.out_proj.bias"], state[f"{at}.to_out.0.bias"])


def test_the_names_are_those_of_the_published_files() -> None:
    # Keys that ComfyUI v0.3.64 model_detection.py looks for
    prior, decoder = _unet("prior"), _unet("decoder")
    of_prior = {entry.name for entry in names.unet_to_comfyui(prior)}
    of_decoder = {entry.name for entry in names.unet_to_comfyui(decoder)}
    assert "model.diffusion_model.clip_txt_mapper.weight" in of_prior
    assert "model.diffusion_model.clip_txt_pooled_mapper.weight" in of_prior
    assert {"model.diffusion_model.clf.1.weight", "model.diffusion_model.clip_mapper.weight"} <= of_decoder
    assert "model.diffusion_model.down_blocks.1.0.channelwise.0.weight" in of_decoder
    assert not any("to_q" in name or "to_out" in name or "clip_txt" in name for name in of_decoder)


def test_split_attention_as_comfyui_saves_it_is_read() -> None:
    state = _unet("prior")
    split = {}
    for name, tensor in state.items():
        renamed = name.replace(".attention.to_out.0.", ".attention.attn.out_proj.")
        renamed = renamed.replace(".attention.to_", ".attention.attn.to_")
        split[names.COMFY_UNET + renamed] = tensor
    back = names.convert(split, names.unet_to_diffusers(split), join=torch.cat)
    assert back.keys() == state.keys()


def test_the_published_size_has_the_published_number_of_tensors() -> None:
    types = (shapes.RES, shapes.TIME, shapes.ATTENTION)
    with torch.device("meta"):
        model = StableCascadeUNet(
            block_types_per_layer=(types, types),
            clip_text_in_channels=1280,
            clip_image_in_channels=768,
            switch_level=(False,),
        )
    # Stability-AI/StableCascade stage_c.safetensors: 1,294 tensors, 1,550 with split attention; 3,589,103,632 numbers
    assert len(model.state_dict()) == 1550
    assert len(names.unet_to_original(model.state_dict())) == 1294
    assert sum(tensor.numel() for tensor in model.parameters()) == 3_589_103_632


def test_stage_a_and_the_text_encoder_go_there_and_back() -> None:
    vqgan = {"vquantizer.embedding.weight": np.zeros((2, 4)), "in_block.1.bias": np.ones(2)}
    there = names.convert(vqgan, names.vqgan_to_original(vqgan, prefix=names.COMFY_VQGAN), join=np.concatenate)
    assert "vae.vquantizer.codebook.weight" in there
    assert names.convert(there, names.vqgan_to_diffusers(there), join=np.concatenate).keys() == vqgan.keys()
    text = {"text_projection.weight": np.eye(2), "text_model.embeddings.position_ids": np.zeros(3)}
    comfy = names.convert(text, names.text_to_comfyui(text), join=np.concatenate)
    assert list(comfy) == ["text_encoder.clip_g.transformer.text_projection.weight"]
    assert list(names.convert(comfy, names.text_to_transformers(comfy), join=np.concatenate)) == [
        "text_projection.weight"
    ]


def test_an_old_comfyui_projection_is_turned() -> None:
    old = {names.COMFY_OLD_PROJECTION: np.arange(6).reshape(2, 3), names.COMFY_TEXT + "text_model.x": np.zeros(1)}
    back = names.convert(old, names.text_to_transformers(old), join=np.concatenate)
    assert back["text_projection.weight"].shape == (3, 2)


def test_all_models_of_a_checkpoint_are_found_with_their_prefixes() -> None:
    unet = [names.COMFY_UNET + name for name in _unet("prior")]
    text = [names.COMFY_TEXT + name for name in ("text_projection.weight", "text_model.final_layer_norm.weight")]
    extra = ["vae.encoder.backbone.0.0.weight", "vae.previewer.blocks.0.weight"]
    assert names.parts([*unet, *text, *extra]) == {
        "prior": names.COMFY_UNET,
        "text encoder": names.COMFY_TEXT,
        "encoder": names.COMFY_ENCODER,
        "previewer": names.COMFY_PREVIEWER,
    }
    assert names.parts([f"module.{name}" for name in _unet("decoder")]) == {"decoder": "module."}


def test_what_is_none_of_ours_is_nothing() -> None:
    sdxl = ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"]
    clip_l = ["text_model.final_layer_norm.weight", "text_model.embeddings.token_embedding.weight"]
    assert names.model_of(sdxl) is names.model_of(clip_l) is names.model_of([]) is None
    assert names.model_of(["lora_unet_clf_1.lora_down.weight"]) == "adapters"
