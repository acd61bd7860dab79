"""T2I-Adapter's style adapter (Mou et al., arXiv 2302.08453, section 3.3): a picture as words at the
prompt's end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from sd_cloud.engines.diffusion.preprocess.embedding import Embedding
from sd_cloud.engines.diffusion.text_encoders import assign
from sd_cloud.errors import BadRequest, CheckpointBroken

HEADS = 8
MARK = "style_embedding"
NAMES = (
    ("transformer_layes.", "layers."),
    (".attn.", ".self_attn."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".mlp.c_fc.", ".linear1."),
    (".mlp.c_proj.", ".linear2."),
)
"""The file's names, and those of torch's own layers."""


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class StyleNet(nn.Module):
    """[1, patches, width] to [1, tokens, width of the prompt]."""

    def __init__(self, width: int, context: int, tokens: int, layers: int) -> None:
        super().__init__()
        self.style_embedding = nn.Parameter(torch.empty(1, tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                *(width, HEADS, 4 * width),
                dropout=0.0,
                activation=quick_gelu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, context))

    def forward(self, patches: Tensor) -> Tensor:
        x = self.ln_pre(torch.cat([patches, self.style_embedding], dim=1))
        for layer in self.layers:
            x = layer(x)
        tokens = self.ln_post(x[:, -self.style_embedding.shape[1] :])
        return torch.as_tensor(tokens @ self.proj)


@dataclass(eq=False)
class StyleAdapter:
    """A loaded style adapter."""

    name: str
    net: StyleNet
    bound: bool = False

    @torch.inference_mode()
    def words(self, of: Embedding, field: str) -> Tensor:
        """[1, tokens, width of the prompt]. Raises BadRequest for a preprocessor of another kind."""
        width = self.net.style_embedding.shape[2]
        if of.seen is None or of.seen.last.shape[-1] != width:
            raise BadRequest(
                f"{self.name} takes {width} numbers for each patch of a picture: send 'clip_vision'",
                field=f"{field}.module",
            )
        return torch.as_tensor(self.net(of.seen.last.to(self.net.proj)).cpu())


def load_style_adapter(
    state: Mapping[str, Tensor], path: Path, unet: UNet2DConditionModel, *, device: torch.device, field: str
) -> StyleAdapter:
    """Raises CheckpointBroken, and BadRequest for another family's."""
    own = {_renamed(key): value for key, value in state.items()}
    layers = {found[1] for key in own if (found := re.match(r"layers\.(\d+)\.", key))}
    try:
        _, tokens, width = own[MARK].shape
        context = int(own["proj"].shape[1])
        with torch.device("meta"):
            net = StyleNet(width, context, tokens, len(layers))
    except (KeyError, ValueError, AssertionError) as error:
        raise CheckpointBroken(f"{path.name}: its style adapter is incomplete or damaged: {error}") from error
    if context != unet.config["cross_attention_dim"]:
        raise BadRequest(
            f"{path.name} is made for checkpoints of another family: it makes words of {context} numbers, "
            f"the checkpoint's have {unet.config['cross_attention_dim']}",
            field=field,
        )
    assign(net, own, path.name, "style adapter", torch.float32)
    return StyleAdapter(path.stem, net.eval().requires_grad_(False).to(device))


def _renamed(key: str) -> str:
    key = key.removeprefix("adapter.")
    for old, new in NAMES:
        key = key.replace(old, new)
    return key
