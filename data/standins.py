"""Stand-ins for the pretrained models of curation: the same file layouts, classes and names in miniature, from a seed.

They open with the very code that opens the real files. The tagger knows the drawn scenes (`standin_tagger`); the others
have random weights, the two scorers and the encoder set so that their numbers spread over scenes as real ones do.

Kind: actor.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from PIL import Image
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from sote.cluster import storage
from sote.data import painting, scenes, standin_reader, standin_tagger
from sote.data.encode import FILE as ENCODER_FILE
from sote.data.encode import MEAN, STD, EfficientNetEncoder, Plan, stage_of
from sote.data.inputs import aesthetic_input, encoder_input, quality_input
from sote.data.score_files import CLIP_FILES, CLIP_MEAN, CLIP_STD, HEAD_FILE, Preparation, QualityHead
from sote.data.standin_files import published, seeded, write_json, write_safetensors

SAMPLES, SAMPLE_SIDE = 32, 256  # scenes that the scorers and the encoder are set on; pixels of the longer side
READER_SEED = 3  # added to the seed, of the reader
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


def make(folder: Path, *, seed: int = 0) -> None:
    """Write folder/{tagger,aesthetic,quality_clip,quality_head,reader,encoder}. Same seed, same weights."""
    samples = _samples(seed)
    standin_tagger.make(folder / "tagger", seed=seed)
    make_aesthetic(folder / "aesthetic", samples, seed=seed)
    make_quality(folder / "quality_clip", folder / "quality_head", samples, seed=seed)
    standin_reader.make(folder / "reader", seed=seed + READER_SEED)
    make_encoder(folder / "encoder", samples, seed=seed)


def make_aesthetic(folder: Path, samples: list[Image.Image], *, seed: int) -> None:
    """A ViTForImageClassification folder with aesthetic-shadow-v2's labels and preparation."""
    config = aesthetic_config()
    model = seeded(lambda: ViTForImageClassification(ViTConfig.from_dict(config)), seed=seed)
    prepare = Preparation(AESTHETIC_SIDE, AESTHETIC_SIDE, 1 / 255, AESTHETIC_MEAN, AESTHETIC_STD)
    pixels = np.stack([aesthetic_input(image, width=prepare.width, height=prepare.height) for image in samples])
    with torch.inference_mode():
        features_BF = model.vit(pixel_values=prepare(pixels, torch.device("cpu"))).last_hidden_state[:, 0]
        difference = model.classifier.weight[0] - model.classifier.weight[1]
        gain, offset = _spread(features_BF @ difference, *AESTHETIC_LOGITS)
        model.classifier.weight.mul_(gain)
        model.classifier.bias.copy_(torch.tensor([offset / 2, -offset / 2]))
    write_safetensors(folder / "model.safetensors", published(model, VIT_NAMES))
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", aesthetic_preparation())


def make_quality(clip_folder: Path, head_folder: Path, samples: list[Image.Image], *, seed: int) -> None:
    """An open_clip folder, and the quality head in the form of the published aes-B32-v0.pth."""
    model_config: dict[str, Any] = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": QUALITY_SIDE, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    prepare_config = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    clip = seeded(lambda: CLIP(**model_config), seed=seed + 1)
    config, weights = CLIP_FILES
    write_json(clip_folder / config, {"model_cfg": model_config, "preprocess_cfg": prepare_config})
    write_safetensors(clip_folder / weights, published(clip))

    head = seeded(lambda: QualityHead(model_config["embed_dim"], 256, 128), seed=seed + 2)
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
    net = seeded(lambda: EfficientNetEncoder(plan), seed=seed + 4)
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
    write_safetensors(folder / ENCODER_FILE, published(net))


def aesthetic_config() -> dict[str, Any]:
    """config.json of the aesthetic scorer with the published fields; label2id has strings, as there."""
    return {
        "architectures": ["ViTForImageClassification"],
        "attention_probs_dropout_prob": 0.0,
        "encoder_stride": 16,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 48,
        "id2label": {"0": "hq", "1": "lq"},
        "image_size": AESTHETIC_SIDE,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "label2id": {"hq": "0", "lq": "1"},
        "layer_norm_eps": 1e-12,
        "model_type": "vit",
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": 32,
        "problem_type": "single_label_classification",
        "qkv_bias": True,
        "torch_dtype": "float32",
        "transformers_version": "4.37.2",
    }


def aesthetic_preparation() -> dict[str, Any]:
    """preprocessor_config.json of the aesthetic scorer with the published one's fields."""
    return {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": AESTHETIC_MEAN,
        "image_processor_type": "ViTImageProcessor",
        "image_std": AESTHETIC_STD,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": AESTHETIC_SIDE, "width": AESTHETIC_SIDE},
    }


def _samples(seed: int) -> list[Image.Image]:
    found = []
    for index in range(SAMPLES):
        scene = scenes.plan(seed + SAMPLE_SEED, index)
        found.append(painting.paint(scene, scale=SAMPLE_SIDE / max(scene.width, scene.height)))
    return found


def _spread(logits_B: torch.Tensor, mean: float, spread: float) -> tuple[float, float]:
    """Gain and offset that bring these logits to this mean and spread."""
    gain = spread / float(logits_B.std())
    return gain, mean - gain * float(logits_B.mean())
