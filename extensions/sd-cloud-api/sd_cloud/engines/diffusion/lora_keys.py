"""Which layer of a model an entry of a LoRA file is for.

Files name layers in one of three ways: kohya's (``lora_unet_down_blocks_0_…``, after diffusers),
the same after the LDM names (``lora_unet_input_blocks_1_1_…``, all SDXL files), and diffusers' own
with dots (``unet.down_blocks.0.….lora_A.weight``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from sd_cloud.engines.diffusion.layout import Family
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.sd3 import Sd3Model
from sd_cloud.engines.diffusion.sd3_lora_keys import sd3_layers

RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
PARTS = re.compile(
    r"\.(?:lora_linear_layer\.|lora\.)?"
    r"(lora_[AB]\.(?:default\.)?weight|(?:up|down)\.weight|[^.]+(?:\.weight)?)$"
)
PART_NAMES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    "down.weight": "lora_down.weight",
    "up.weight": "lora_up.weight",
}


TEXT_PREFIXES: dict[Family, tuple[tuple[str, ...], ...]] = {
    "sd1": (("te", "te1", "text_encoder"),),
    "sd2": (("te", "text_encoder"),),
    "sdxl": (("te1", "text_encoder"), ("te2", "text_encoder_2")),
    "sdxl-refiner": (("text_encoder_2",),),
    "sd3": (("te1",), ("te2",)),
}
"""What a family's text encoders are called in files; the webui does not find them elsewhere."""


@dataclass(frozen=True)
class Layer:
    """A layer with weights, or several that are one in files, their outputs one after the other.

    ``of_text``: it belongs to a text encoder. ``turned``: the halves of its outputs are the other way round
    in files.
    """

    modules: tuple[nn.Module, ...]
    of_text: bool
    turned: bool = False


def layers_by_name(model: Model) -> dict[str, Layer]:
    """Every layer of a model that a file can change, by each flat name it goes under."""
    table: dict[str, Layer] = {}
    if isinstance(model, Sd3Model):
        for name, modules, turned in sd3_layers(model.unet.transformer):
            table[name] = Layer(modules, False, turned)
    else:
        _add_unet(table, model)
    for number, encoder in enumerate(model.text):
        for name, module in encoder.model.named_modules():
            if isinstance(getattr(module, "weight", None), nn.Parameter):
                layer = Layer((module,), True)
                flat = "text_model_" + name.replace(".", "_")
                for prefix in TEXT_PREFIXES[model.layout.family][number]:
                    table[f"{prefix}_{flat}"] = layer
    return table


def _add_unet(table: dict[str, Layer], model: Model) -> None:
    per_level = int(model.layout.unet["layers_per_block"])
    for name, module in model.unet.named_modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            layer = Layer((module,), False)
            flat = name.replace(".", "_")
            table[f"unet_{flat}"] = layer
            table[f"unet_{ldm_name(flat, per_level, table)}"] = layer


def ldm_name(flat: str, per_level: int, known: dict[str, Layer]) -> str:
    """The LDM name of a diffusers U-Net layer, both with underscores."""
    stride = per_level + 1
    if found := re.fullmatch(r"(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", flat):
        side, level, kind, number, rest = found.groups()
        place = int(level) * stride + int(number) + (1 if side == "down" else 0)
        block = "input_blocks" if side == "down" else "output_blocks"
        return f"{block}_{place}_{_inner(kind, rest)}"
    if found := re.fullmatch(r"mid_block_(attentions|resnets)_(\d+)_(.+)", flat):
        kind, number, rest = found.groups()
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block_{place}_{_inner(kind, rest)[2:]}"
    if found := re.fullmatch(r"down_blocks_(\d+)_downsamplers_0_conv", flat):
        return f"input_blocks_{(int(found[1]) + 1) * stride}_0_op"
    if found := re.fullmatch(r"up_blocks_(\d+)_upsamplers_0_conv", flat):
        attends = any(name.startswith(f"unet_up_blocks_{found[1]}_attentions_") for name in known)
        return f"output_blocks_{int(found[1]) * stride + per_level}_{2 if attends else 1}_conv"
    if found := re.fullmatch(r"(time|class)_embedding_linear_([12])", flat):
        return ("time_embed_" if found[1] == "time" else "label_emb_0_") + str(int(found[2]) * 2 - 2)
    return {"conv_in": "input_blocks_0_0", "conv_out": "out_2", "conv_norm_out": "out_0"}.get(flat, flat)


def _inner(kind: str, rest: str) -> str:
    return f"1_{rest}" if kind == "attentions" else f"0_{RESNET.get(rest, rest)}"


def split_key(key: str) -> tuple[str, str]:
    """An entry's key as the flat name of its layer and the part it holds (``lora_up.weight``, …)."""
    if re.match(r"(lora|lycoris|oft|locon)_", key):
        name, _, part = key.partition(".")
        name = re.sub(r"^(lora|lycoris|oft|locon)_", "", name)
        return name, PART_NAMES.get(part, part)
    key = key.removeprefix("base_model.model.")
    # The oldest diffusers files: ….attn1.processor.to_q_lora.up.weight
    key = re.sub(r"\.processor\.(\w+)_lora\.", lambda found: f".{found[1]}.", key).replace(
        ".to_out.up", ".to_out.0.up"
    )
    key = key.replace(".to_out.down", ".to_out.0.down")
    found = PARTS.search(key)
    if found is None:
        return key, ""
    return key[: found.start()].replace(".", "_"), PART_NAMES.get(found[1], found[1])


def find_layer(name: str, table: dict[str, Layer]) -> Layer | None:
    found = table.get(name)
    if found is None and name.startswith("text_encoder") and "text_model" not in name:
        head, _, rest = name.partition("_encoder_layers_")
        found = table.get(f"{head}_text_model_encoder_layers_{rest}")
    return found
