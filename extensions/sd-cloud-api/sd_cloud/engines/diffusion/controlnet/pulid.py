"""PuLID (Guo et al., arXiv 2404.16022): an IP-Adapter that leaves what the prompt makes as it is.

What it adds in a cross attention has the part taken away that lies along what is there already. How much
of it, and how many empty tokens stand beside the face's, is a mode's affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sd_cloud.engines.diffusion.controlnet.units import PULID_MODES, PulidMode

WHO = 5  # tokens of who it is, before those of how the face looks
FIDELITY = PULID_MODES[0]
EMPTY: Mapping[PulidMode, int] = dict(zip(PULID_MODES, (8, 16), strict=True))


class Projection(nn.Module):
    """Tokens [1, tokens, context] from who it is and the face's projected look, [1, 1280], and from the
    look's hidden states, [1, 1 + patches, 1024] each."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.context = state["mapping_0.6.weight"].shape[0]
        self.body = _mapping(state, "body")
        looks = [key for key in state if key.startswith("mapping_") and key.endswith(".0.weight")]
        for name in (key.removesuffix(".0.weight") for key in looks):
            self.add_module(name, _mapping(state, name))

    def forward(self, who: Tensor, hidden: Sequence[Tensor]) -> Tensor:
        tokens = [self.body(who).reshape(1, -1, self.context)]
        for number, one in enumerate(hidden):
            whole, patches = (self.get_submodule(f"mapping{part}_{number}") for part in ("", "_patch"))
            tokens.append(whole(one[:, :1]) + patches(one[:, 1:]).mean(dim=1, keepdim=True))
        return torch.cat(tokens, dim=1)


def _mapping(state: Mapping[str, Tensor], name: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in (0, 3, 6):
        after, before = state[f"{name}.{place}.weight"].shape
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.LeakyReLU()]
    return nn.Sequential(*layers[:-2])


def with_empty(tokens: Tensor, mode: PulidMode) -> Tensor:
    """[N, tokens, context] with the mode's empty ones behind."""
    return torch.cat([tokens, tokens.new_zeros(len(tokens), EMPTY[mode], tokens.shape[2])], dim=1)


def beside_only(made: Tensor, there: Tensor, query: Tensor, keys: Tensor, mode: PulidMode) -> Tensor:
    """``made`` [N, places, width] less what of it lies along ``there``, an attention's input.

    For fidelity, less only the share that places do not ask of who it is. ``query`` and ``keys``:
    [N, heads, places or tokens, width of a head].
    """
    x, own = there.float(), made.float()
    along = (x * own).sum(dim=1, keepdim=True) / (x * x).sum(dim=1, keepdim=True) * x
    if mode != FIDELITY:
        return (own - along).to(made)
    # Without the scale by the head's width that attention has, as in PuLID's code.
    asked = (query @ keys.transpose(-2, -1)).float().softmax(dim=-1).mean(dim=1)
    return (own + (asked[:, :, :WHO].sum(dim=-1, keepdim=True) - 1) * along).to(made)
