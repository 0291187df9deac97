"""Stand-ins for the pretrained models of curation: the same file layouts, classes and names in miniature, from a seed.

They open with the very code that opens the real files. The tagger knows the drawn scenes (`standin_tagger`); the others
have random weights, the two scorers and the encoder set so that their numbers spread over scenes as real ones do.

Kind: actor.
"""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from sote.cluster import storage
from sote.data import painting, scenes, standin_tagger
from sote.data.encode import FILE as ENCODER_FILE
from sote.data.encode import MEAN, STD, EfficientNetEncoder, Plan, stage_of
from sote.data.inputs import aesthetic_input, encoder_input, quality_input
from sote.data.score import (
    CLIP_FILES,
    CLIP_MEAN,
    CLIP_STD,
    HEAD_FILE,
    Preparation,
    QualityHead,
)

SAMPLES, SAMPLE_SIDE = 32, 256  # scenes that the scorers and the encoder are set on; pixels of the longer side
SAMPLE_SEED = 9_001  # added to the seed: other scenes than those that the seed draws
# Mean and spread of the logits over scenes: so that every word, from the lowest to the highest, is met.
AESTHETIC_LOGITS, QUALITY_LOGITS = (0.3, 1.8), (1.0, 3.0)
# aesthetic-shadow-v2's preprocessor_config.json, but for the size
AESTHETIC_MEAN = (0.65463551, 0.60715182, 0.61108185)
AESTHETIC_STD = (0.32903292, 0.32726001, 0.31909652)
AESTHETIC_SIDE, QUALITY_SIDE = 128, 64  # pixels; 1024 and 224 in the published ones

# Names of tensors in the published files, by the names inside of transformers 5: patterns, tried in order.
VIT_NAMES = (
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
LLAVA_NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_tower\.", "vision_tower.vision_model."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
)


def make(folder: Path, *, seed: int = 0) -> None:
    """Write folder/{tagger,aesthetic,quality_clip,quality_head,reader,encoder}. Same seed, same weights."""
    samples = _samples(seed)
    standin_tagger.make(folder / "tagger", seed=seed)
    make_aesthetic(folder / "aesthetic", samples, seed=seed)
    make_quality(folder / "quality_clip", folder / "quality_head", samples, seed=seed)
    make_reader(folder / "reader", seed=seed)
    make_encoder(folder / "encoder", samples, seed=seed)


def make_aesthetic(folder: Path, samples: list[Image.Image], *, seed: int) -> None:
    """A ViTForImageClassification folder with aesthetic-shadow-v2's labels and preparation."""
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=AESTHETIC_SIDE,
        patch_size=32,
        id2label={0: "hq", 1: "lq"},
        label2id={"hq": 0, "lq": 1},
    )
    model = _seeded(lambda: ViTForImageClassification(config), seed=seed)
    prepare = Preparation(AESTHETIC_SIDE, AESTHETIC_SIDE, 1 / 255, AESTHETIC_MEAN, AESTHETIC_STD)
    pixels = np.stack([aesthetic_input(image, width=prepare.width, height=prepare.height) for image in samples])
    with torch.inference_mode():
        features_BF = model.vit(pixel_values=prepare(pixels, torch.device("cpu"))).last_hidden_state[:, 0]
        difference = model.classifier.weight[0] - model.classifier.weight[1]
        gain, offset = _spread(features_BF @ difference, *AESTHETIC_LOGITS)
        model.classifier.weight.mul_(gain)
        model.classifier.bias.copy_(torch.tensor([offset / 2, -offset / 2]))
    _write_model(folder, model, VIT_NAMES)
    _write_json(
        folder / "preprocessor_config.json",
        {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": AESTHETIC_MEAN,
            "image_processor_type": "ViTImageProcessor",
            "image_std": AESTHETIC_STD,
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": AESTHETIC_SIDE, "width": AESTHETIC_SIDE},
        },
    )


def make_quality(clip_folder: Path, head_folder: Path, samples: list[Image.Image], *, seed: int) -> None:
    """An open_clip folder, and the quality head in the form of the published aes-B32-v0.pth."""
    model_config: dict[str, Any] = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": QUALITY_SIDE, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    prepare_config = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    clip = _seeded(lambda: CLIP(**model_config), seed=seed + 1)
    config, weights = CLIP_FILES
    _write_json(clip_folder / config, {"model_cfg": model_config, "preprocess_cfg": prepare_config})
    storage.write_bytes(clip_folder / weights, _safetensors(clip))

    head = _seeded(lambda: QualityHead(model_config["embed_dim"], 256, 128), seed=seed + 2)
    prepare = Preparation(QUALITY_SIDE, QUALITY_SIDE, 1 / 255, CLIP_MEAN, CLIP_STD)
    pixels = np.stack([quality_input(image, side=prepare.width) for image in samples])
    with torch.inference_mode():
        features_BF = nn.functional.normalize(clip.visual(prepare(pixels, torch.device("cpu"))), dim=1)
        # features of a random tower lie close together: the first layer looks at how they differ from their mean
        head.fc1.weight.div_(features_BF.std(dim=0).mean())
        head.fc1.bias.copy_(-head.fc1.weight @ features_BF.mean(dim=0))
        gain, offset = _spread(head(features_BF), *QUALITY_LOGITS)
        head.fc3.weight.mul_(gain)
        head.fc3.bias.mul_(gain).add_(offset)
    data = io.BytesIO()
    torch.save(head.state_dict(), data)
    storage.write_bytes(head_folder / HEAD_FILE, data.getvalue())


def make_reader(folder: Path, *, seed: int) -> None:
    """A LlavaForConditionalGeneration folder with tokenizer and preparation. Its random answers say nothing."""
    tokenizer = _tokenizer()
    image, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<pad>"))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            projection_dim=32,
        ),
        text_config=LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
        ),
        image_token_index=image,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    config.pad_token_id = pad
    model = _seeded(lambda: LlavaForConditionalGeneration(config), seed=seed + 3)
    _write_model(folder, model, LLAVA_NAMES)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": pad}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
    tokenizer.save_pretrained(folder)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(image, pad))
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    _write_json(
        folder / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )


def make_encoder(folder: Path, samples: list[Image.Image], *, seed: int) -> None:
    """effnet_encoder.safetensors; its batch norms are set on scenes, so that latents have mean 0 and spread 1."""
    plan = Plan(
        stem=8,
        stages=(
            stage_of(8, expand=1, stride=1, width_out=8, blocks=1, squeeze=False),
            stage_of(8, expand=2, stride=2, width_out=12, blocks=2, squeeze=False),
            stage_of(12, expand=2, stride=2, width_out=16, blocks=1, squeeze=False),
            stage_of(16, expand=2, stride=2, width_out=24, blocks=2, squeeze=True),
            stage_of(24, expand=2, stride=1, width_out=24, blocks=1, squeeze=True),
            stage_of(24, expand=2, stride=2, width_out=32, blocks=2, squeeze=True),
        ),
        head=64,
    )
    net = _seeded(lambda: EfficientNetEncoder(plan), seed=seed + 4)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    pixels = np.stack(
        [encoder_input(image, box=(0, 0, *image.size), width=SAMPLE_SIDE, height=SAMPLE_SIDE) for image in samples]
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean over what passes in training mode
    with torch.inference_mode():
        net.train()
        net((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std)
    storage.write_bytes(folder / ENCODER_FILE, _safetensors(net))


def _samples(seed: int) -> list[Image.Image]:
    found = []
    for index in range(SAMPLES):
        scene = scenes.plan(seed + SAMPLE_SEED, index)
        found.append(painting.paint(scene, scale=SAMPLE_SIDE / max(scene.width, scene.height)))
    return found


def _seeded(build: Callable[[], Any], *, seed: int) -> Any:
    """A module in eval mode with weights from `seed` that keep the size of what passes; torch's own state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for tensor in module.parameters():
                if tensor.ndim >= 2:
                    tensor.normal_(std=float(np.prod(tensor.shape[1:])) ** -0.5)
    return module.eval()


def _spread(logits_B: torch.Tensor, mean: float, spread: float) -> tuple[float, float]:
    """Gain and offset that bring these logits to this mean and spread."""
    gain = spread / float(logits_B.std())
    return gain, mean - gain * float(logits_B.mean())


def _write_model(folder: Path, model: Any, names: tuple[tuple[str, str], ...]) -> None:
    """config.json and model.safetensors of a transformers model, with the published files' names.

    Not by save_pretrained: that imports whatever trainers are installed, and deepspeed greets on the terminal.
    """
    model.config.architectures = [type(model).__name__]
    storage.write_text(folder / "config.json", model.config.to_json_string())
    storage.write_bytes(folder / "model.safetensors", _safetensors(model, names))


def _safetensors(module: nn.Module, names: tuple[tuple[str, str], ...] = ()) -> bytes:
    tensors = {}
    for name, tensor in module.state_dict().items():
        for pattern, published in names:
            name = re.sub(pattern, published, name)
        tensors[name] = tensor.contiguous()
    return save(tensors, {"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    storage.write_text(path, json.dumps(value, indent=2) + "\n")


def _tokenizer() -> Any:
    """LLaMA's tokenizer without merges: special tokens, the 256 bytes, printable ASCII, then <image> and <pad>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    tokenizer = LlamaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], add_bos_token=True
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    return tokenizer


def _tokenizer_config(image: int, pad: int) -> dict[str, Any]:
    """tokenizer_config.json as llava-hf/llava-1.5-7b-hf has it, with the numbers of this vocabulary."""
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
