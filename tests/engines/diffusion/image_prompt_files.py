"""Small random files of the kinds that image prompts need, in the published layouts.

They fit the golden checkpoints: contexts of 64 (``tiny-a``) and 192 (``tiny-sdxl``). Widths that the
published files have for the picture's encoder (1024 to 1664) are 64 here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, PATCHES, FACE = 64, 257, 512
PROJECTIONS = {"clip_vitl": 768, "clip_h": 1024, "clip_g": 1280}
SD15, SDXL = 64, 192
EVA_PROJECTED, EVA_PLACES, EVA_LAYERS = 48, 16, 21
#: What the cross attentions of a U-Net are wide, as IP-Adapter numbers them: encoder, decoder, middle.
LAYERS = {
    SD15: [32, 32, 64, 64, 128, 128, *[128] * 3, *[64] * 3, *[32] * 3, 128],
    SDXL: [*[64] * 4, *[96] * 4, *[96] * 6, *[64] * 6, *[96] * 2],
}

State = dict[str, Tensor]


def save_pickle(state: Any, path: Path) -> None:
    """In torch's older form, which the webui's own check of pickles reads too."""
    torch.save(state, path, _use_new_zipfile_serialization=False)


class Random:
    """Weights from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def values(self, *shape: int, spread: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * spread

    def linear(self, name: str, after: int, before: int, *, bias: bool = True) -> State:
        state = {f"{name}.weight": self.values(after, before, spread=before**-0.5)}
        return {**state, f"{name}.bias": self.values(after, spread=0.05)} if bias else state

    def norm(self, name: str, width: int) -> State:
        weight = 1 + self.values(width, spread=0.1)
        return {f"{name}.weight": weight, f"{name}.bias": self.values(width, spread=0.05)}


def clip_vision(projection: int, seed: int, layers: int = 3) -> State:
    random, inner = Random(seed), 96
    own = "vision_model"
    state = {
        f"{own}.embeddings.class_embedding": random.values(HIDDEN),
        f"{own}.embeddings.patch_embedding.weight": random.values(HIDDEN, 3, 14, 14, spread=0.05),
        f"{own}.embeddings.position_embedding.weight": random.values(PATCHES, HIDDEN, spread=0.3),
        f"{own}.embeddings.position_ids": torch.arange(PATCHES)[None],
        **random.norm(f"{own}.pre_layrnorm", HIDDEN),
        **random.norm(f"{own}.post_layernorm", HIDDEN),
        **random.linear("visual_projection", projection, HIDDEN, bias=False),
    }
    for layer in range(layers):
        name = f"{own}.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= random.linear(f"{name}.self_attn.{part}", HIDDEN, HIDDEN)
        state |= random.linear(f"{name}.mlp.fc1", inner, HIDDEN) | random.linear(
            f"{name}.mlp.fc2", HIDDEN, inner
        )
        state |= random.norm(f"{name}.layer_norm1", HIDDEN) | random.norm(f"{name}.layer_norm2", HIDDEN)
    return state


def _layers(random: Random, context: int) -> State:
    state: State = {}
    for place, width in enumerate(LAYERS[context]):
        for part in ("to_k_ip", "to_v_ip"):
            state |= random.linear(f"{2 * place + 1}.{part}", width, context, bias=False)
    return state


def _resampler(random: Random, width: int, heads: int, seen: int, after: int, name: str = "") -> State:
    state = random.linear(f"{name}proj_in", width, seen) | random.linear(f"{name}proj_out", after, width)
    state |= random.norm(f"{name}norm_out", after)
    for layer in range(4):
        own = f"{name}layers.{layer}"
        state |= random.norm(f"{own}.0.norm1", width) | random.norm(f"{own}.0.norm2", width)
        state |= random.linear(f"{own}.0.to_q", 64 * heads, width, bias=False)
        state |= random.linear(f"{own}.0.to_kv", 128 * heads, width, bias=False)
        state |= random.linear(f"{own}.0.to_out", width, 64 * heads, bias=False)
        state |= random.norm(f"{own}.1.0", width)
        state |= random.linear(f"{own}.1.1", 4 * width, width, bias=False)
        state |= random.linear(f"{own}.1.3", width, 4 * width, bias=False)
    return state


def _plain(random: Random, context: int, embedded: int) -> State:
    return random.linear("proj", 4 * context, embedded) | random.norm("norm", context)


def _plus(random: Random, context: int, heads: int, seen: int = HIDDEN) -> State:
    return {
        "latents": random.values(1, 16, HIDDEN, spread=HIDDEN**-0.5),
        **_resampler(random, HIDDEN, heads, seen, context),
    }


def _full(random: Random, context: int) -> State:
    state = random.linear("proj.0", HIDDEN, HIDDEN) | random.linear("proj.2", context, HIDDEN)
    return state | random.norm("proj.3", context)


def _face(random: Random, context: int, tokens: int) -> State:
    state = random.linear("proj.0", 2 * FACE, FACE) | random.linear("proj.2", context * tokens, 2 * FACE)
    return state | random.norm("norm", context)


def _face_plus(random: Random, context: int) -> State:
    resampler = _resampler(random, context, context // 64, HIDDEN, context, "perceiver_resampler.")
    return _face(random, context, 4) | resampler


def _pulid(random: Random, context: int) -> State:
    state = _mapping(random, "body", FACE + EVA_PROJECTED, 5 * context)
    for number in range(5):
        state |= _mapping(random, f"mapping_{number}", HIDDEN, context)
        state |= _mapping(random, f"mapping_patch_{number}", HIDDEN, context)
    return state


def _mapping(random: Random, name: str, before: int, after: int) -> State:
    state = random.linear(f"{name}.0", HIDDEN, before) | random.norm(f"{name}.1", HIDDEN)
    state |= random.linear(f"{name}.3", HIDDEN, HIDDEN) | random.norm(f"{name}.4", HIDDEN)
    return state | random.linear(f"{name}.6", after, HIDDEN)


#: By file name: the context, and what makes tokens of a picture.
MODELS: dict[str, tuple[int, Callable[[Random], State]]] = {
    "ip-adapter_sd15": (SD15, lambda random: _plain(random, SD15, PROJECTIONS["clip_h"])),
    "ip-adapter_sd15_light": (SD15, lambda random: _plain(random, SD15, PROJECTIONS["clip_h"])),
    "ip-adapter-plus_sd15": (SD15, lambda random: _plus(random, SD15, 12)),
    "ip-adapter-full-face_sd15": (SD15, lambda random: _full(random, SD15)),
    "ip-adapter-faceid_sd15": (SD15, lambda random: _face(random, SD15, 4)),
    "ip-adapter-faceid-plus_sd15": (SD15, lambda random: _face_plus(random, SD15)),
    "ip-adapter-faceid-plusv2_sd15": (SD15, lambda random: _face_plus(random, SD15)),
    "ip-adapter-faceid-portrait_sd15": (SD15, lambda random: _face(random, SD15, 16)),
    "ip-adapter_sdxl": (SDXL, lambda random: _plain(random, SDXL, PROJECTIONS["clip_g"])),
    "ip-adapter-plus_sdxl_vit-h": (SDXL, lambda random: _plus(random, SDXL, 20)),
    "ip-adapter-faceid_sdxl": (SDXL, lambda random: _face(random, SDXL, 4)),
    "ip-adapter-faceid-plusv2_sdxl": (SDXL, lambda random: _face_plus(random, SDXL)),
    "ip-adapter_pulid_sdxl_fp16": (SDXL, lambda random: _pulid(random, SDXL)),
    "ip-adapter_instant_id_sdxl": (SDXL, lambda random: _plus(random, SDXL, 20, FACE)),
}
STYLE = "t2iadapter_style_sd14v1"


def write_model(folder: Path, name: str) -> Path:
    """An IP-Adapter of :data:`MODELS`, or the style adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == STYLE:
        save_pickle(style_adapter(), folder / f"{name}.pth")
        return folder / f"{name}.pth"
    context, make = MODELS[name]
    random = Random(sum(name.encode()))
    projection, layers = make(random), _layers(random, context)
    if "faceid" in name or "light" in name:  # published as pickles of two dicts
        if "faceid" in name:
            layers |= {"0.to_q_lora.down.weight": random.values(2, 32)}
        save_pickle({"image_proj": projection, "ip_adapter": layers}, folder / f"{name}.bin")
        return folder / f"{name}.bin"
    state = _prefixed("image_proj", projection) | _prefixed("ip_adapter", layers)
    save_file(state, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def _prefixed(name: str, state: Mapping[str, Tensor]) -> State:
    return {f"{name}.{key}": value for key, value in state.items()}


def style_adapter(width: int = HIDDEN, context: int = SD15, tokens: int = 8) -> State:
    random = Random(22)
    state = {
        "style_embedding": random.values(1, tokens, width, spread=width**-0.5),
        "proj": random.values(width, context, spread=width**-0.5),
        **random.norm("ln_pre", width),
        **random.norm("ln_post", width),
    }
    for layer in range(3):
        own = f"transformer_layes.{layer}"
        state[f"{own}.attn.in_proj_weight"] = random.values(3 * width, width, spread=width**-0.5)
        state[f"{own}.attn.in_proj_bias"] = random.values(3 * width, spread=0.05)
        state |= random.linear(f"{own}.attn.out_proj", width, width)
        state |= random.norm(f"{own}.ln_1", width) | random.norm(f"{own}.ln_2", width)
        state |= random.linear(f"{own}.mlp.c_fc", 4 * width, width)
        state |= random.linear(f"{own}.mlp.c_proj", width, 4 * width)
    return state


def eva_clip() -> State:
    """Of pictures of 56 px: one head of 64, and the turns of 4 x 4 patches as the published file has them."""
    random, inner = Random(51), 96
    angles = torch.outer(torch.arange(4) * 4.0, 10000 ** (-torch.arange(0, 32, 2) / 32)).repeat_interleave(
        2, 1
    )
    turns = torch.cat([angles[:, None].expand(4, 4, 32), angles[None].expand(4, 4, 32)], dim=2).reshape(
        -1, 64
    )
    tables = {"freqs_cos": turns.cos(), "freqs_sin": turns.sin()}
    state = {
        "cls_token": random.values(1, 1, HIDDEN),
        "pos_embed": random.values(1, 1 + EVA_PLACES, HIDDEN, spread=0.5),
        "patch_embed.proj.weight": random.values(HIDDEN, 3, 14, 14, spread=0.05),
        "patch_embed.proj.bias": random.values(HIDDEN, spread=0.05),
        **{f"rope.{name}": table for name, table in tables.items()},
        **random.norm("norm", HIDDEN),
        **random.linear("head", EVA_PROJECTED, HIDDEN),
    }
    for layer in range(EVA_LAYERS):
        own = f"blocks.{layer}"
        for part in ("norm1", "norm2", "attn.inner_attn_ln"):
            state |= random.norm(f"{own}.{part}", HIDDEN)
        for part in ("q", "k", "v"):
            state |= random.linear(f"{own}.attn.{part}_proj", HIDDEN, HIDDEN, bias=False)
        state |= {f"{own}.attn.{part}_bias": random.values(HIDDEN, spread=0.05) for part in ("q", "v")}
        state |= {f"{own}.attn.rope.{name}": table.clone() for name, table in tables.items()}
        state |= random.linear(f"{own}.attn.proj", HIDDEN, HIDDEN)
        state |= random.linear(f"{own}.mlp.w1", inner, HIDDEN) | random.linear(f"{own}.mlp.w2", inner, HIDDEN)
        state |= random.norm(f"{own}.mlp.ffn_ln", inner) | random.linear(f"{own}.mlp.w3", HIDDEN, inner)
    others = {"logit_scale": torch.ones(()), "text.ln_final.bias": torch.ones(HIDDEN)}
    return {**_prefixed("visual", state), **others}


def write_clip_vision(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, projection) in enumerate(PROJECTIONS.items(), start=31):
        save_pickle(clip_vision(projection, seed), folder / f"{name}.pth")


def write_constants(folder: Path) -> None:
    """What the extension ships for the negative prompt of the plus kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(41)
    shapes: dict[str, Any] = {
        "clip_vision_h_uc": (1, PATCHES, HIDDEN),
        "clip_vision_vith_uc": (1, 16, SDXL),
    }
    for name, shape in shapes.items():
        save_pickle({"uc": random.values(*shape).half()}, folder / f"{name}.data")
