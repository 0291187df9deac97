"""The published models that have a key: their configs, so that a run can be planned before the files are here.

Source: stabilityai/stable-cascade and stable-cascade-prior, Disty0/sotediffusion-wuerstchen3 and -decoder: config.json
of prior, decoder and text_encoder (the values of diffusers' scripts/convert_stable_cascade.py and ..._lite.py).

Kind: pure.
"""

from typing import Any, Final

from sote.train.shapes import ATTENTION, RES, TIME

Config = dict[str, Any]

PRIOR: Final[Config] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 1,
    "conditioning_dim": 2048,
    "block_out_channels": (2048, 2048),
    "num_attention_heads": (32, 32),
    "down_num_layers_per_block": (8, 24),
    "up_num_layers_per_block": (24, 8),
    "down_blocks_repeat_mappers": (1, 1),
    "up_blocks_repeat_mappers": (1, 1),
    "block_types_per_layer": ((RES, TIME, ATTENTION), (RES, TIME, ATTENTION)),
    "clip_text_in_channels": 1280,
    "clip_text_pooled_in_channels": 1280,
    "clip_image_in_channels": 768,
    "dropout": (0.1, 0.1),
    "timestep_conditioning_type": ("sca", "crp"),
    "switch_level": (False,),
}
PRIOR_LITE: Final[Config] = PRIOR | {
    "conditioning_dim": 1536,
    "block_out_channels": (1536, 1536),
    "num_attention_heads": (24, 24),
    "down_num_layers_per_block": (4, 12),
    "up_num_layers_per_block": (12, 4),
}
DECODER: Final[Config] = {
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "conditioning_dim": 1280,
    "block_out_channels": (320, 640, 1280, 1280),
    "num_attention_heads": (0, 0, 20, 20),
    "down_num_layers_per_block": (2, 6, 28, 6),
    "up_num_layers_per_block": (6, 28, 6, 2),
    "down_blocks_repeat_mappers": (1, 1, 1, 1),
    "up_blocks_repeat_mappers": (3, 3, 2, 2),
    "block_types_per_layer": ((RES, TIME), (RES, TIME), (RES, TIME, ATTENTION), (RES, TIME, ATTENTION)),
    "clip_text_in_channels": None,
    "clip_text_pooled_in_channels": 1280,
    "clip_image_in_channels": None,
    "effnet_in_channels": 16,
    "pixel_mapper_in_channels": 3,
    "dropout": (0.0, 0.0, 0.1, 0.1),
    "timestep_conditioning_type": ("sca",),
    "switch_level": None,
}
DECODER_LITE: Final[Config] = DECODER | {
    "block_out_channels": (320, 576, 1152, 1152),
    "num_attention_heads": (0, 9, 18, 18),
    "down_num_layers_per_block": (2, 4, 14, 4),
    "up_num_layers_per_block": (4, 14, 4, 2),
    "up_blocks_repeat_mappers": (2, 2, 2, 2),
}
TEXT: Final[Config] = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "max_position_embeddings": 77,
    "projection_dim": 1280,
}
# key of cluster/weights.py -> the UNet's config; each of them comes with the text encoder TEXT
UNETS: Final[dict[str, Config]] = {
    "stable-cascade-prior": PRIOR,
    "stable-cascade-decoder": DECODER,
    "sotediffusion-wuerstchen3": PRIOR,
    "sotediffusion-wuerstchen3-decoder": DECODER,
}
