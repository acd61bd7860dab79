"""A tiny Stable Diffusion 3 in the layout of the real files, with random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

SHARED = Path(__file__).resolve().parents[4] / "shared"
LAYOUTS = SHARED / "reference" / "checkpoint-layouts"

LAST_BLOCK = 23
#: Gains that keep velocities near 1, as trained ones are: above it, pictures hang on the last bits.
CALM = 0.4
KEPT = {"joint_blocks": 1, "encoder.layers": 3, "encoder.block": 2}

Tensors = dict[str, torch.Tensor]

_UNET = {1536: 128, 4608: 384, 9216: 768, 3072: 256, 6144: 512, 2048: 128, 36864: 256}
_VAE = {128: 32, 256: 64, 512: 96}
_CLIP = {768: 64, 3072: 128, 1280: 64, 5120: 128}


def _sizes(context: int) -> Mapping[str, Mapping[int, int]]:
    """What each size of the real file becomes, by part; ``context`` is the width that prompts have."""
    heads = max(context // 64, 1)
    return {
        "model.diffusion_model.": {**_UNET, 4096: context},
        "first_stage_model.": _VAE,
        "text_encoders.clip_l.": _CLIP,
        "text_encoders.clip_g.": _CLIP,
        "text_encoders.t5xxl.": {4096: context, 10240: 96, 64: heads},
    }


def tiny_sd3(
    *,
    version: str = "3",
    t5: bool = False,
    clips: bool = True,
    seed: int = 0,
    context: int = 160,
) -> Tensors:
    """Two joint blocks, CLIPs of three layers, T5 of two; ``version`` may be ``3.5-large``
    or ``3.5-medium``."""
    layout = json.loads((LAYOUTS / "sd3-medium-incl-clips-t5xxl.json").read_text())
    random = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    for key, (shape, _) in layout.items():
        if ("t5xxl" in key and not t5) or (".clip_" in key and not clips):
            continue
        name = _shortened(key)
        if name is None:
            continue
        sizes = next(table for prefix, table in _sizes(context).items() if key.startswith(prefix))
        made[name] = _weights(name, [sizes.get(side, side) for side in shape], random)
    if t5:
        base = "text_encoders.t5xxl.transformer."
        made[f"{base}encoder.embed_tokens.weight"] = made[f"{base}shared.weight"]
    if version != "3":
        made |= _norms_of_35()
    if version == "3.5-medium":
        made |= _second_attention(made, random)
    return made


def _shortened(key: str) -> str | None:
    block = re.search(r"(joint_blocks|encoder\.layers|encoder\.block)\.(\d+)\.", key)
    if block is None:
        return key
    number = int(block[2])
    if block[1] == "joint_blocks" and number == LAST_BLOCK:
        return key.replace(f".{LAST_BLOCK}.", ".1.", 1)
    return key if number < KEPT[block[1]] else None


def _weights(name: str, shape: list[int], random: torch.Generator) -> torch.Tensor:
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape).half()
    if name.endswith("bias"):
        return torch.zeros(shape).half()
    fan_in = 1
    for side in shape[1:]:
        fan_in *= side
    spread = 1.0 if "embedding.weight" in name or "pos_embed" in name else 1.5
    if name.startswith("model.diffusion_model."):
        spread *= CALM
    scale = spread / max(fan_in, 1) ** 0.5 if len(shape) > 1 and "embed" not in name else 0.3 * spread
    return (torch.randn(shape, generator=random) * scale).half()


def _norms_of_35() -> Tensors:
    """Of queries and keys, everywhere."""
    return {
        f"model.diffusion_model.joint_blocks.{block}.{side}.attn.{norm}.weight": torch.ones(64).half()
        for block in (0, 1)
        for side in ("x_block", "context_block")
        for norm in ("ln_q", "ln_k")
    }


def _second_attention(made: Tensors, random: torch.Generator) -> Tensors:
    """Of 3.5 medium, in the first block."""
    found: Tensors = {}
    base = "model.diffusion_model.joint_blocks.0.x_block."
    for part in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias"):
        like = made[f"{base}attn.{part}"]
        found[f"{base}attn2.{part}"] = (torch.randn(like.shape, generator=random) * 0.1).half()
    for norm in ("ln_q", "ln_k"):
        found[f"{base}attn2.{norm}.weight"] = torch.ones(64).half()
    for part, shape in (("weight", (9 * 128, 128)), ("bias", (9 * 128,))):
        found[f"{base}adaLN_modulation.1.{part}"] = (torch.randn(shape, generator=random) * 0.1).half()
    return found


def written(path: Path, tensors: Tensors) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)
    return path
