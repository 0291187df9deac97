"""A reader in miniature: a LlavaForConditionalGeneration folder as llava-hf/llava-1.5-7b-hf is published.

Its weights are random: what it says of a picture is no sentence, and is refused and counted as any such answer is.

Kind: actor.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import LlavaConfig, LlavaForConditionalGeneration

from sote.cluster import storage
from sote.data.score_files import CLIP_MEAN, CLIP_STD
from sote.data.standin_files import published, seeded, write_json, write_shards

SIDE, PATCH = 56, 14  # pixels; the published one has 336 and 14
SHARDS = 2  # the published one has 3
# Names in the published files, by the names inside of transformers 5.
NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_tower\.", "vision_tower.vision_model."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
)
SPECIAL = ("<unk>", "<s>", "</s>")


def make(folder: Path, *, seed: int) -> None:
    """Write the folder: weights in shards, configs, tokenizer and preparation."""
    tokenizer = _tokenizer()
    numbers = tokenizer.get_vocab()
    image, pad = numbers["<image>"], numbers["<pad>"]
    config = _config(image, pad, len(numbers))
    model = seeded(lambda: LlavaForConditionalGeneration(LlavaConfig.from_dict(config)), seed=seed)
    halves = {name: tensor.half() for name, tensor in published(model, NAMES).items()}  # published in float16
    write_shards(folder, halves, count=SHARDS)
    write_json(folder / "config.json", config)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": pad}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
    storage.write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(image, pad))
    write_json(folder / "added_tokens.json", {"<image>": image, "<pad>": pad})
    write_json(folder / "preprocessor_config.json", _preparation())
    write_json(
        folder / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": PATCH,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )


def _config(image: int, pad: int, vocab_size: int) -> dict[str, Any]:
    """config.json with the published one's fields; what that leaves to LLaMA's defaults is small here."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": image,
        "model_type": "llava",
        "pad_token_id": pad,
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 32,
            "intermediate_size": 64,
            "max_position_embeddings": 512,
            "model_type": "llama",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": vocab_size,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.0",
        "vision_config": {
            "hidden_size": 32,
            "image_size": SIDE,
            "intermediate_size": 64,
            "model_type": "clip_vision_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "patch_size": PATCH,
            "projection_dim": 32,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def _preparation() -> dict[str, Any]:
    return {
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": CLIP_STD,
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIDE},
    }


def _tokenizer() -> Tokenizer:
    """LLaMA's tokenizer without merges: special tokens, the 256 bytes, printable ASCII, then <image> and <pad>."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocabulary, [], unk_token=SPECIAL[0], fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*SPECIAL, "<image>", "<pad>")]
    )
    return tokenizer


def _tokenizer_config(image: int, pad: int) -> dict[str, Any]:
    """tokenizer_config.json as it is published, with the numbers of this vocabulary."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>", image: "<image>", pad: "<pad>"}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(number): {"content": token, **flags} for number, token in tokens.items()},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
