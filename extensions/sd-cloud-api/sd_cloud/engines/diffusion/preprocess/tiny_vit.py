"""What MobileSAM sees of a picture: Wu et al., "TinyViT" (arXiv 2207.10666), with 5 million parameters, and
the neck that Segment Anything puts on it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.sam.modeling_sam import SamLayerNorm

WIDTHS, LAYERS = (64, 128, 160, 320), (2, 2, 6, 2)
HEAD_WIDTH = 32
WINDOWS = (0, 7, 14, 7)  # sides, in places; the first stage only convolves
HALVED = 3  # as many times the side is halved and halved again: the last stage keeps it
EXPANSION = 4
SEEN_WIDTH = 256
STEP_PX = 16  # one place of what is seen
NORM_EPS = 1e-6


class Conv(nn.Sequential):
    """A convolution and its norm, ``c`` and ``bn`` in the file."""

    def __init__(self, before: int, after: int, side: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(before, after, side, stride, side // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(after)


class Convolving(nn.Module):
    """Three convolutions, the middle one each channel's own, whose result is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.conv1, self.conv2 = Conv(width, inner), Conv(inner, inner, 3, groups=inner)
        self.conv3 = Conv(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.gelu(self.conv2(functional.gelu(self.conv1(x))))
        return functional.gelu(self.conv3(inner) + x)


class Merging(nn.Module):
    """The same form, from one stage's width to the next one's."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(before, after), Conv(after, after, 3, stride, groups=after)
        self.conv3 = Conv(after, after)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv3(functional.gelu(self.conv2(functional.gelu(self.conv1(x))))))


class Attention(nn.Module):
    """Between the places of a window; a number for each distance, down and across, is added."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = width // HEAD_WIDTH, side
        self.norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, side * side))

    def forward(self, x: Tensor) -> Tensor:
        """Of [windows, places, width]."""
        split = self.qkv(self.norm(x)).view(*x.shape[:2], self.heads, 3, HEAD_WIDTH).transpose(1, 2)
        query, key, value = split.unbind(3)
        shares = (query @ key.transpose(-2, -1)) * HEAD_WIDTH**-0.5 + self._nearness()
        return torch.as_tensor(self.proj((shares.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)))

    def _nearness(self) -> Tensor:
        """[heads, places, places]."""
        places = torch.arange(self.side**2, device=self.attention_biases.device)
        down, across = places // self.side, places % self.side
        apart = [(axis[:, None] - axis[None]).abs() for axis in (down, across)]
        return self.attention_biases[:, apart[0] * self.side + apart[1]]


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, EXPANSION * width), nn.Linear(EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.fc2(functional.gelu(self.fc1(self.norm(x)))))


class Looking(nn.Module):
    """Attention in windows, a convolution of each channel's own, and a network for each place."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn, self.mlp = Attention(width, window), Mlp(width)
        self.local_conv = Conv(width, width, 3, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local_conv(x + self._in_windows(x))
        return torch.as_tensor(x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def _in_windows(self, x: Tensor) -> Tensor:
        """What stands beyond the right and lower edge, to make whole windows, is 0 and is looked at, too."""
        side, (_, width, height, length) = self.window, x.shape
        padded = functional.pad(x, (0, -length % side, 0, -height % side))[0]
        rows, columns = padded.shape[1] // side, padded.shape[2] // side
        cells = padded.view(width, rows, side, columns, side)
        seen = self.attn(cells.permute(1, 3, 2, 4, 0).reshape(rows * columns, side * side, width))
        seen = seen.view(rows, columns, side, side, width).permute(4, 0, 2, 1, 3)
        return torch.as_tensor(seen.reshape(padded.shape)[None, :, :height, :length])


class Stage(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        width, window = WIDTHS[number], WINDOWS[number]
        self.blocks = nn.Sequential(
            *(Looking(width, window) if window else Convolving(width) for _ in range(LAYERS[number]))
        )
        last = number + 1 == len(WIDTHS)
        stride = 2 if number + 1 < HALVED else 1
        self.downsample = None if last else Merging(width, WIDTHS[number + 1], stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else torch.as_tensor(self.downsample(x))


class PatchEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first = WIDTHS[0] // 2
        self.seq = nn.Sequential(Conv(3, first, 3, 2), nn.GELU(), Conv(first, WIDTHS[0], 3, 2))


class TinyViT(nn.Module):
    """[1, 256, H/16, W/16] from normalised RGB pixels, sides multiples of 16 px."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding()
        self.layers = nn.Sequential(*(Stage(number) for number in range(len(WIDTHS))))
        self.neck = nn.Sequential(
            nn.Conv2d(WIDTHS[-1], SEEN_WIDTH, 1, bias=False),
            SamLayerNorm(SEEN_WIDTH, eps=NORM_EPS, data_format="channels_first"),
            nn.Conv2d(SEEN_WIDTH, SEEN_WIDTH, 3, padding=1, bias=False),
            SamLayerNorm(SEEN_WIDTH, eps=NORM_EPS, data_format="channels_first"),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.as_tensor(self.neck(self.layers(self.patch_embed.seq(pixels))))
