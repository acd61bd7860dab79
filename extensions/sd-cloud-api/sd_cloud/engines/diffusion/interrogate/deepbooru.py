"""DeepDanbooru: tags of a drawing (KichangKim/DeepDanbooru, ``resnet_custom_v3``, MIT).

The names of the weights are those of AUTOMATIC1111/TorchDeepDanbooru's file: convolutions numbered in
the order of a graph that has no normalisation left in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.text_encoders import assign
from sd_cloud.engines.diffusion.weights_file import read_pickle
from sd_cloud.errors import CheckpointBroken

SIDE_PX = 512
BRACKETS = re.compile(r"([\\()])")


@dataclass(frozen=True)
class Stage:
    """Bottlenecks of one width; the first halves the sides, but in the first stage, and widens."""

    blocks: int
    inner: int
    outer: int
    side_last: bool = False  # the file numbers its widening convolution after the others


STAGES = (
    Stage(3, 64, 256),
    Stage(8, 128, 512),
    Stage(20, 256, 1024),
    Stage(20, 256, 1024, side_last=True),
    Stage(3, 512, 2048),
    Stage(3, 1024, 4096),
)
TAGS = 9176


class DeepDanbooru(nn.Module):
    """[N, side, side, 3] in 0..1 to the probability [N, tags] of each tag."""

    def __init__(self, stages: Sequence[Stage] = STAGES, tags: int = TAGS) -> None:
        super().__init__()
        width = stages[0].inner
        self._count = 0
        self._add(3, width, 7, 2)
        self._blocks: list[tuple[str | None, str, str, str]] = []
        for place, stage in enumerate(stages):
            stride = 1 if place == 0 else 2
            self._widening(width, stage, stride)
            for _ in range(stage.blocks - 1):
                self._blocks.append((None, *self._bottleneck(stage.outer, stage, 1)))
            width = stage.outer
        self._last = self._add(width, tags, 1, bias=False)

    def _add(self, seen: int, made: int, side: int, stride: int = 1, *, bias: bool = True) -> str:
        name = f"n_Conv_{self._count}"
        self.add_module(name, nn.Conv2d(seen, made, side, stride, bias=bias))
        self._count += 1
        return name

    def _bottleneck(self, seen: int, stage: Stage, stride: int) -> tuple[str, str, str]:
        return (
            self._add(seen, stage.inner, 1),
            self._add(stage.inner, stage.inner, 3, stride),
            self._add(stage.inner, stage.outer, 1),
        )

    def _widening(self, seen: int, stage: Stage, stride: int) -> None:
        if stage.side_last:
            inner = self._bottleneck(seen, stage, stride)
            self._blocks.append((self._add(seen, stage.outer, 1, stride), *inner))
        else:
            side = self._add(seen, stage.outer, 1, stride)
            self._blocks.append((side, *self._bottleneck(seen, stage, stride)))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self._run("n_Conv_0", functional.pad(x.permute(0, 3, 1, 2), (2, 3, 2, 3))))
        x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=float("-inf")), 3, 2)
        for side, narrow, middle, wide in self._blocks:
            inner = functional.relu(self._run(narrow, x))
            before = 0 if self._stride(middle) == 2 else 1
            inner = functional.relu(self._run(middle, functional.pad(inner, (before, 1, before, 1))))
            beside = x if side is None else self._run(side, x)
            x = functional.relu(self._run(wide, inner) + beside)
        return torch.sigmoid(self._run(self._last, x).mean(dim=(2, 3)))

    def _run(self, name: str, x: Tensor) -> Tensor:
        out: Tensor = self.get_submodule(name)(x)
        return out

    def _stride(self, name: str) -> int:
        layer = self.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        return int(layer.stride[0])


@dataclass
class Tagger:
    network: nn.Module
    tags: Sequence[str]

    @torch.no_grad()
    def probabilities(self, image: Image.Image, by: pictures.Resize = pictures.stretch) -> list[float]:
        """Of each tag, in the order of ``tags``."""
        whole = pictures.resize(2, image.convert("RGB"), SIDE_PX, SIDE_PX, by)
        pixels = torch.from_numpy(np.asarray(whole, dtype=np.float32) / 255)[None]
        found: list[float] = self.network(pixels.to(next(self.network.parameters())))[0].float().tolist()
        return found


def load_tagger(path: Path, dtype: torch.dtype) -> Tagger:
    """Raises CheckpointBroken."""
    content = read_pickle(path)
    tags = content.get("tags") if isinstance(content, dict) else None
    if not isinstance(tags, list) or not all(isinstance(one, str) for one in tags):
        raise CheckpointBroken(f"{path.name} is not DeepDanbooru's file: it has no list of tags")
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    with torch.device("meta"):
        network = DeepDanbooru(tags=len(tags))
    assign(network, state, path.name, "network", dtype)
    return Tagger(network.eval().requires_grad_(False), tags)


def described(probabilities: Sequence[float], tags: Sequence[str], options: Options) -> str:
    """The tags that are likely enough, as the ``deepbooru_*`` options want them written."""
    least = options.number("interrogate_deepbooru_score_threshold")
    likely = {
        tag: share
        for tag, share in zip(tags, probabilities, strict=True)
        if share >= least and not tag.startswith("rating:")
    }
    names = (
        sorted(likely)
        if options.flag("deepbooru_sort_alpha")
        else sorted(likely, key=lambda tag: -likely[tag])
    )
    left_out = {one.strip().replace(" ", "_") for one in options.text("deepbooru_filter_tags").split(",")}
    written = []
    for tag in names:
        if tag in left_out:
            continue
        text = tag.replace("_", " ") if options.flag("deepbooru_use_spaces") else tag
        text = BRACKETS.sub(r"\\\1", text) if options.flag("deepbooru_escape") else text
        written.append(f"({text}:{likely[tag]:.3f})" if options.flag("interrogate_return_ranks") else text)
    return ", ".join(written)
