"""Pictures that tile: convolutions that see the other side of the picture beyond its edge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def circular(modules: tuple[nn.Module, ...], wanted: bool) -> Iterator[None]:
    """Give every convolution circular padding while inside."""
    changed = []
    if wanted:
        for module in modules:
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d) and layer.padding_mode != "circular":
                    changed.append((layer, layer.padding_mode))
                    layer.padding_mode = "circular"
    try:
        yield
    finally:
        for layer, mode in changed:
            layer.padding_mode = mode
