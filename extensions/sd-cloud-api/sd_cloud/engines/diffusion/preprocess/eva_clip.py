"""EVA-02-CLIP's vision transformer (Sun et al., arXiv 2303.15389): what PuLID sees of a face.

Names are those of the published file, ``visual.`` taken off. Positions turn queries and keys (Su et al.,
arXiv 2104.09864) by tables that the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.clip_vision import MEAN, SPREAD
from sd_cloud.engines.diffusion.preprocess.loading import Bench, Part
from sd_cloud.engines.diffusion.preprocess.onnx_network import Numbers

HEAD = 64
EPSILON = 1e-6
SEEN_BEFORE = (4, 8, 12, 16, 20)
OWN = "visual."


@dataclass(frozen=True)
class Looks:
    """``hidden``: [1, 1 + patches, width] before each layer of ``SEEN_BEFORE``; ``projected``: of length 1,
    [1, width of the space shared with texts]."""

    hidden: tuple[Tensor, ...]
    projected: Tensor


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.inner_attn_ln, self.proj = nn.LayerNorm(width, eps=EPSILON), nn.Linear(width, width)

    def forward(self, x: Tensor, turn: Part) -> Tensor:
        heads = (*x.shape[:2], -1, HEAD)
        query, key, value = (
            one.reshape(heads).transpose(1, 2)
            for one in (self.q_proj(x) + self.q_bias, self.k_proj(x), self.v_proj(x) + self.v_bias)
        )
        query, key = (_turned(one, turn) for one in (query, key))
        made = functional.scaled_dot_product_attention(query, key, value)
        return torch.as_tensor(self.proj(self.inner_attn_ln(made.transpose(1, 2).reshape(x.shape))))


def _turned(x: Tensor, turn: Part) -> Tensor:
    """[1, heads, places, 64]: each pair of numbers by its angle, but for the first place, which is none."""
    first, rest = x[:, :, :1], x[:, :, 1:]
    across = torch.stack((-rest[..., 1::2], rest[..., ::2]), dim=-1).flatten(-2)
    return torch.cat([first, rest * turn.freqs_cos + across * turn.freqs_sin], dim=2)


class Gated(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
        self.ffn_ln = nn.LayerNorm(inner, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.w3(self.ffn_ln(functional.silu(self.w1(x)) * self.w2(x))))


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=EPSILON) for _ in range(2))
        self.attn, self.mlp = Attention(width), Gated(width, inner)

    def forward(self, x: Tensor, turn: Part) -> Tensor:
        x = x + self.attn(self.norm1(x), turn)
        return torch.as_tensor(x + self.mlp(self.norm2(x)))


class EvaVision(nn.Module):
    """As wide, deep and fine as its tensors say. Takes normalised RGB pixels [1, 3, side, side]."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        places = state["pos_embed"].shape[1]
        self.side = patch * int((places - 1) ** 0.5)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places, width))
        self.patch_embed = Part()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.rope = Part()
        for table in ("freqs_cos", "freqs_sin"):
            self.rope.register_buffer(table, torch.zeros(places - 1, HEAD))
        depth = len({found[1] for key in state if (found := re.match(r"blocks\.(\d+)\.", key))})
        inner = state["blocks.0.mlp.w1.weight"].shape[0]
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.head = nn.Linear(width, state["head.weight"].shape[0])

    def forward(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token, x], dim=1) + self.pos_embed
        hidden = []
        for number, block in enumerate(self.blocks):
            if number in SEEN_BEFORE:
                hidden.append(x)
            x = block(x, self.rope)
        return tuple(hidden), self.head(self.norm(x)[:, 0])


def look(bench: Bench, image: Numbers, file: str) -> Looks:
    """What the network of one of the bench's files sees of RGB in 0..1, [H, W, 3]."""
    net = bench.net_of_shape(EvaVision, _image_part, file=file)
    with torch.inference_mode():
        pixels = functional.interpolate(bench.pixels(image), (net.side, net.side), mode="bicubic")
        mean, spread = (torch.from_numpy(one).to(pixels).reshape(1, 3, 1, 1) for one in (MEAN, SPREAD))
        hidden, seen = net((pixels - mean) / spread)
        seen = seen / torch.linalg.vector_norm(seen, dim=1, keepdim=True)
    return Looks(tuple(one.clone().cpu() for one in hidden), seen.clone().cpu())


def _image_part(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the text encoder, and without the blocks' copies of the tables of turns."""
    own = {key.removeprefix(OWN): value for key, value in state.items() if key.startswith(OWN)}
    return {key: value for key, value in own.items() if ".attn.rope." not in key}
