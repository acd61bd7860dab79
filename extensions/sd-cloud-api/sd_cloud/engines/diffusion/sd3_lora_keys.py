"""Which layers of Stable Diffusion 3's transformer an entry of a LoRA file is for.

Files by kohya's scripts name the layers of the reference code (``joint_blocks_0_x_block_attn_qkv``), where
query, key and value are one. Of files by diffusers, webui 1.10.1 finds the attention of the picture's
side only (its ``diffusers_weight_mapping``), and so does this: the same file makes the same picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import nn

QUERY_KEY_VALUE = re.compile(r"transformer_transformer_blocks_(\d+)_attn_to_[qkv]")
OUTSIDE = {
    "x_embedder_proj": "pos_embed.proj",
    "t_embedder_mlp_0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder_mlp_2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder_mlp_0": "time_text_embed.text_embedder.linear_1",
    "y_embedder_mlp_2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}
IN_BLOCKS = {
    "x_block_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block_attn_proj": ("attn.to_out.0",),
    "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block_attn2_proj": ("attn2.to_out.0",),
    "x_block_mlp_fc1": ("ff.net.0.proj",),
    "x_block_mlp_fc2": ("ff.net.2",),
    "x_block_adaLN_modulation_1": ("norm1.linear",),
    "context_block_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block_attn_proj": ("attn.to_add_out",),
    "context_block_mlp_fc1": ("ff_context.net.0.proj",),
    "context_block_mlp_fc2": ("ff_context.net.2",),
    "context_block_adaLN_modulation_1": ("norm1_context.linear",),
}
#: diffusers has the scale before the shift there, the reference code the shift before the scale.
SCALE_FIRST = ("final_layer_adaLN_modulation_1", "context_block_adaLN_modulation_1")


def sd3_layers(transformer: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, ...], bool]]:
    """Flat names in files, the layers that each is for, and whether its halves are the other way round."""
    modules = dict(transformer.named_modules())
    blocks = sorted(
        {int(name.split(".")[1]) for name in modules if re.match(r"transformer_blocks\.\d", name)}
    )
    for name, place in OUTSIDE.items():
        yield f"unet_{name}", (modules[place],), name in SCALE_FIRST
    for block in blocks:
        base = f"transformer_blocks.{block}."
        for name, places in IN_BLOCKS.items():
            found = tuple(modules[base + place] for place in places if base + place in modules)
            if len(found) == len(places):
                turned = block == blocks[-1] and name in SCALE_FIRST
                yield f"unet_joint_blocks_{block}_{name}", found, turned
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            flat = f"{base}attn.{part}".replace(".", "_")
            yield f"transformer_{flat}", (modules[f"{base}attn.{part}"],), False


def together(names: Iterable[str]) -> list[list[str]]:
    """Query, key and value of a block change when all three of them do: in the webui they are one layer."""
    single: list[list[str]] = []
    attention: dict[str, list[str]] = {}
    for name in names:
        part = QUERY_KEY_VALUE.fullmatch(name)
        if part is None:
            single.append([name])
        else:
            attention.setdefault(part[1], []).append(name)
    return [*single, *(names for names in attention.values() if len(names) == 3)]
