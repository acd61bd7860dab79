"""Light T2I-Adapters: those of colour grids, a narrow network for each level of the U-Net's encoder.

Mou et al., "T2I-Adapter" (arXiv 2302.08453). TencentARC's layout (``body.0.in_conv…``,
``body.0.body.0.block1…``, ``body.0.out_conv…``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class LightBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(width, width, 3, padding=1)
        self.block2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.block2(functional.relu(self.block1(x))) + x)


class LightLevel(nn.Module):
    def __init__(self, before: int, inside: int, after: int, blocks: int) -> None:
        super().__init__()
        self.in_conv = nn.Conv2d(before, inside, 1)
        self.body = nn.Sequential(*(LightBlock(inside) for _ in range(blocks)))
        self.out_conv = nn.Conv2d(inside, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.out_conv(self.body(self.in_conv(x))))


class LightNet(nn.Module):
    """Features of each level from a hint [1, 1 or 3, H, W] in 0..1, each half the size of the last."""

    cell = 8

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        levels = 1 + max(int(key.split(".")[1]) for key in state)
        self.hint_channels = int(state["body.0.in_conv.weight"].shape[1]) // self.cell**2
        self.body = nn.ModuleList()
        for level in range(levels):
            inside, before = (int(side) for side in state[f"body.{level}.in_conv.weight"].shape[:2])
            after = int(state[f"body.{level}.out_conv.weight"].shape[0])
            blocks = len({key.split(".")[3] for key in state if key.startswith(f"body.{level}.body.")})
            self.body.append(LightLevel(before, inside, after, blocks))

    def forward(self, hint: Tensor) -> list[Tensor]:
        x = functional.pixel_unshuffle(hint[:, : self.hint_channels], self.cell)
        levels: list[Tensor] = []
        for level in self.body:
            x = level(functional.avg_pool2d(x, 2, 2) if levels else x)
            levels.append(x)
        return levels
