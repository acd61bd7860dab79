"""ControlNet Union (ProMax): one ControlNet for several kinds of map, told which by the request.

xinsir6, ControlNetPlus. As sd-webui-controlnet has it (``controlnet_core/controlnet_union.py``): one
map and at most one type a unit, and the attention sees the map alone; diffusers'
``ControlNetUnionModel`` lets it see the latent, too, and gives other values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.models.controlnets.controlnet_union import ResidualAttentionBlock
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import Tensor, nn

MARK = "control_add_embedding.linear_1.bias"
PARTS = ("task_embedding", "transformer_layes.", "spatial_ch_projs.", "control_add_embedding.")
HEADS = 8
TYPE_WIDTH = 256


def is_union(state: Mapping[str, Tensor]) -> bool:
    return MARK in state


def own_part(key: str) -> bool:
    """Whether a tensor is of what a Union has beside a ControlNet."""
    return key.startswith(PARTS)


class UnionNet(nn.Module):
    """A ControlNet with what tells kinds of maps apart; called as the ControlNet is, and with ``types``."""

    def __init__(self, net: ControlNetModel, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        types, width = state["task_embedding"].shape
        layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("transformer_layes."))
        self.net = net
        self.types = int(types)
        self.hint_embedding = net.controlnet_cond_embedding
        self.label_embedding = net.class_embedding
        # The net gets both ready made: they depend on the type.
        net.controlnet_cond_embedding = nn.Identity()
        net.class_embedding = nn.Identity()
        embedding_width = int(state["control_add_embedding.linear_2.bias"].shape[0])
        self.task_embedding = nn.Parameter(torch.empty(types, width))
        self.transformer_layes = nn.Sequential(*(ResidualAttentionBlock(width, HEADS) for _ in range(layers)))
        self.spatial_ch_projs = nn.Linear(width, int(state["spatial_ch_projs.bias"].shape[0]))
        self.control_add_embedding = TimestepEmbedding(TYPE_WIDTH * self.types, embedding_width)

    @property
    def config(self) -> Any:
        return self.net.config

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        *,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        class_labels: Tensor,
        types: Sequence[int] = (),
        return_dict: bool = False,
    ) -> Any:
        """``types``: places in ``UNION_TYPES``, none or one; every place is below ``self.types``."""
        return self.net(
            sample,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            controlnet_cond=self._hint(controlnet_cond, types),
            class_labels=self.label_embedding(class_labels) + self._type(types).to(class_labels),
            return_dict=return_dict,
        )

    def _hint(self, hint: Tensor, types: Sequence[int]) -> Tensor:
        embedded: Tensor = self.hint_embedding(hint)
        if not types:
            return embedded
        seen = embedded.mean(dim=(2, 3)) + self.task_embedding[list(types)]
        shift: Tensor = self.spatial_ch_projs(self.transformer_layes(seen.unsqueeze(1))[:, 0])
        return embedded + shift[:, :, None, None]

    def _type(self, types: Sequence[int]) -> Tensor:
        weight = self.control_add_embedding.linear_1.weight
        chosen = torch.zeros(self.types, device=weight.device)
        chosen[list(types)] = 1.0
        waves = get_timestep_embedding(chosen, TYPE_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
        found: Tensor = self.control_add_embedding(waves.reshape(1, -1).to(weight))
        return found


def union_of(net: ControlNetModel, state: Mapping[str, Tensor]) -> UnionNet:
    """The net and the Union's own tensors as one module on the meta device, keys as in its file."""
    with torch.device("meta"):
        return UnionNet(net, state)


def union_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under the names that :class:`UnionNet` has for them."""
    places = {"controlnet_cond_embedding.": "hint_embedding.", "class_embedding.": "label_embedding."}
    renamed = {}
    for key, value in state.items():
        if own_part(key):
            renamed[key] = value
            continue
        for old, new in places.items():
            if key.startswith(old):
                renamed[new + key[len(old) :]] = value
                break
        else:
            renamed[f"net.{key}"] = value
    return renamed
