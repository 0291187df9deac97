"""Low-rank adapters on Stage C: attach them, keep them by name, merge them, write them as kohya and ComfyUI read them.

An adapter of a linear layer W adds alpha / rank * up @ down to it: down is [rank,inputs], up is [outputs,rank] and
starts as zeros. Only adapters learn. In memory peft holds them, under names that say `lora_A.default`; everywhere else
they have plain names, `<layer>.lora_A.weight` (down) and `<layer>.lora_B.weight` (up), which are those of peft's files.

kohya's names: Kohya sd-scripts' branch stable-cascade networks/lora.py (Apache-2.0) and ComfyUI v0.3.64 comfy/lora.py,
read for the names alone: `lora_unet_` and the path of the module in Stability's layout, with q, k and v apart.

Kind: actor.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sote.cluster.errors import CheckpointError, RecipeError
from sote.train.recipe import LoraPart
from sote.train.unet import CascadeUNet

DOWN, UP = "lora_A", "lora_B"  # peft's names
ADAPTER = "default"  # peft's name of the only adapter
KOHYA = "lora_unet_"
NEAR = 3  # so many near names are shown for a target that is no layer's


def attach(unet: CascadeUNet, part: LoraPart, *, seed: int = 0) -> tuple[str, ...]:
    """Put an adapter on each layer that `part.targets` name, freeze the rest; returns the layers' names.

    Adapters are float32 whatever the layers are; equal seeds give equal ones. Raises RecipeError for a target that is
    the end of no linear layer's name.
    """
    from peft import LoraConfig, inject_adapter_in_model  # imports transformers: half a minute that exports can spare

    names = targeted(unet, part.targets)
    unet.requires_grad_(False)
    config = LoraConfig(
        r=part.rank,
        lora_alpha=part.alpha,  # type: ignore[arg-type]  # kept and used as it is
        lora_dropout=part.dropout,
        target_modules=list(names),
    )
    inject_adapter_in_model(config, unet, adapter_name=ADAPTER)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in unet.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()
        if is_adapter(name) and f".{DOWN}." in name:  # peft draws from the global generator
            drawn = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=random)
            parameter.data.copy_(drawn)
    return names


def targeted(unet: CascadeUNet, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the linear layers that end with one of the targets, in the UNet's order."""
    names = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(_ends(name, target) for name in names):
            # Without the place of the block: what a target is likely to be
            ends = sorted({re.sub(r"^(down|up)_blocks\.\d+\.\d+\.(attention\.)?", "", name) for name in names})
            near = difflib.get_close_matches(target, ends, n=NEAR, cutoff=0.5) or ends
            raise RecipeError(f"lora.targets: no linear layer's name ends with {target!r}; there are {', '.join(near)}")
    return tuple(name for name in names if any(_ends(name, target) for target in targets))


def is_adapter(parameter: str) -> bool:
    """Whether the name of a parameter is one of an adapter."""
    return f".{DOWN}." in parameter or f".{UP}." in parameter


def plain(parameter: str) -> str:
    """The plain name of a parameter of a UNet with adapters: of an adapter's, or of the layer's below it."""
    return re.sub(rf"\.({DOWN}|{UP})\.{ADAPTER}\.", r".\1.", parameter).replace(".base_layer.", ".")


def tensors(unet: CascadeUNet) -> dict[str, Tensor]:
    """All adapters by plain name."""
    return {plain(name): parameter.detach() for name, parameter in unet.named_parameters() if is_adapter(name)}


@torch.no_grad()
def load(unet: CascadeUNet, adapters: Mapping[str, Tensor]) -> None:
    """Put `adapters`, by plain name, into a UNet that has some. Raises CheckpointError unless they are the same."""
    own = tensors(unet)
    for name in sorted(own.keys() | adapters.keys()):
        wanted, found = (tuple(some[name].shape) if name in some else None for some in (own, adapters))
        if wanted != found:
            raise CheckpointError(
                f"lora: tensor {name} is {found or 'missing'} in the file and {wanted or 'missing'} by the recipe's "
                f"[lora]; rank and targets must be those that it was trained with"
            )
        own[name].copy_(adapters[name])


def layers(adapters: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the layers that have an adapter, from tensors by plain name. Raises CheckpointError for half a one."""
    found = dict.fromkeys(name.rpartition(f".{DOWN}.")[0] or name.rpartition(f".{UP}.")[0] for name in adapters)
    for layer in found:
        for part in (DOWN, UP):
            if f"{layer}.{part}.weight" not in adapters:
                raise CheckpointError(f"lora: tensor {layer}.{part}.weight is missing; an adapter is {DOWN} and {UP}")
    return tuple(found)


def merged(weight: Tensor, *, name: str, adapters: Mapping[str, Tensor], alpha: float) -> Tensor:
    """The tensor `name` of a UNet with its adapter added, if it has one: computed in float32, in the weight's dtype.

    `name` is that of the weight, `<layer>.weight`, as in diffusers' files; `adapters` are by plain name.
    """
    layer = name.removesuffix(".weight")
    if layer == name or f"{layer}.{DOWN}.weight" not in adapters:
        return weight
    down, up = (adapters[f"{layer}.{part}.weight"].to(weight.device, torch.float32) for part in (DOWN, UP))
    return (weight.float() + alpha / len(down) * (up @ down)).to(weight.dtype)


def kohya_entries(adapters: Mapping[str, Tensor], *, alpha: float) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a file that kohya's scripts and ComfyUI read, from adapters by plain name, layer by layer.

    For each layer `lora_unet_<path>.alpha` (one number), `.lora_down.weight` and `.lora_up.weight`, in the adapters'
    dtype. Nothing is reshaped or scaled: readers multiply by alpha / rank themselves.
    """
    for layer in layers(adapters):
        base, down = kohya_name(layer), adapters[f"{layer}.{DOWN}.weight"]
        yield f"{base}.alpha", torch.tensor(alpha, dtype=down.dtype)
        yield f"{base}.lora_down.weight", down
        yield f"{base}.lora_up.weight", adapters[f"{layer}.{UP}.weight"]


def kohya_name(layer: str) -> str:
    """`down_blocks.0.2.attention.to_q` -> `lora_unet_down_blocks_0_2_attention_attn_to_q`."""
    original = re.sub(r"\.attention\.to_([qkv])$", r".attention.attn.to_\1", layer)
    original = re.sub(r"\.attention\.to_out\.0$", ".attention.attn.out_proj", original)
    return KOHYA + original.replace(".", "_")


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
