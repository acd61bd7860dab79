"""The ESRGAN family of upscaling networks, built from the tensors of the published files.

* RRDBNet: Wang et al., "ESRGAN" (arXiv 1809.00219), with the three layouts of keys its files come
  in, and Real-ESRGAN's pixel-unshuffled inputs (arXiv 2107.10833) for scales 1 and 2;
* SRVGGNetCompact: the small networks of Real-ESRGAN v0.2.5.

Everything else is left to the spandrel package where that imports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.weights_file import read_pickle, read_tensors
from sd_cloud.errors import CheckpointBroken, NotImplementedHere

Weights = dict[str, Tensor]
Upscaling = Callable[[Tensor], Tensor]
"""Pixels in 0..1, shape (1, 3, height, width), to the same times the scale."""

WRAPPERS = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")


class DenseBlock(nn.Module):
    """Five convolutions, each seeing all before it; the residual is scaled by 0.2."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for place in range(1, 6):
            out = growth if place < 5 else features
            self.add_module(f"conv{place}", nn.Conv2d(features + (place - 1) * growth, out, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for place in range(1, 5):
            conv = self.get_submodule(f"conv{place}")
            seen.append(functional.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
        last: Tensor = self.get_submodule("conv5")(torch.cat(seen, 1))
        return x + last * 0.2


class ResidualDenseBlock(nn.Module):
    """Three dense blocks with a residual around them."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return x + inner * 0.2


class RRDBNet(nn.Module):
    """ESRGAN's generator. ``unshuffle`` folds that many pixels a side into channels first."""

    def __init__(
        self,
        *,
        features: int,
        growth: int,
        blocks: int,
        doublings: int,
        channels: int = 3,
        unshuffle: int = 1,
    ) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.doublings = doublings
        self.scale = 2**doublings // unshuffle
        self.conv_first = nn.Conv2d(channels * unshuffle**2, features, 3, 1, 1)
        self.body = nn.Sequential(*(ResidualDenseBlock(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, 1, 1)
        for place in range(1, doublings + 1):
            self.add_module(f"conv_up{place}", nn.Conv2d(features, features, 3, 1, 1))
        self.conv_hr = nn.Conv2d(features, features, 3, 1, 1)
        self.conv_last = nn.Conv2d(features, channels, 3, 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if self.unshuffle > 1:
            pixels = functional.pixel_unshuffle(_padded(pixels, 4), self.unshuffle)
        x = self.conv_first(pixels)
        x = x + self.conv_body(self.body(x))
        for place in range(1, self.doublings + 1):
            doubled = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = functional.leaky_relu(self.get_submodule(f"conv_up{place}")(doubled), 0.2)
        x = self.conv_last(functional.leaky_relu(self.conv_hr(x), 0.2))
        larger: Tensor = x[..., : height * self.scale, : width * self.scale]
        return larger

    @classmethod
    def of_weights(cls, weights: Weights) -> RRDBNet:
        """Widths and scale are read from the tensors. Raises KeyError, ValueError or RuntimeError."""
        weights = _today(weights)
        first, last = weights["conv_first.weight"], weights["conv_last.weight"]
        channels = last.shape[0]
        unshuffle = {channels: 1, channels * 4: 2, channels * 16: 4}.get(first.shape[1])
        if channels != 3 or unshuffle is None:
            raise ValueError(f"it takes {first.shape[1]} and gives {channels} channels; 3 are needed")
        net = cls(
            features=first.shape[0],
            growth=weights["body.0.rdb1.conv1.weight"].shape[0],
            blocks=1 + max(int(key.split(".")[1]) for key in weights if key.startswith("body.")),
            doublings=sum(bool(re.fullmatch(r"conv_up\d+\.weight", key)) for key in weights),
            unshuffle=unshuffle,
        )
        net.load_state_dict(weights)
        return net


class SRVGGNetCompact(nn.Module):
    """Plain convolutions with PReLU, then a pixel shuffle on top of the nearest-neighbour picture."""

    def __init__(self, *, features: int, convolutions: int, scale: int, channels: int = 3) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [nn.Conv2d(channels, features, 3, 1, 1), nn.PReLU(features)]
        for _ in range(convolutions):
            layers += [nn.Conv2d(features, features, 3, 1, 1), nn.PReLU(features)]
        layers.append(nn.Conv2d(features, channels * scale**2, 3, 1, 1))
        self.body = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        shuffled = functional.pixel_shuffle(self.body(pixels), self.scale)
        return shuffled + functional.interpolate(pixels, scale_factor=self.scale, mode="nearest")

    @classmethod
    def of_weights(cls, weights: Weights) -> SRVGGNetCompact:
        """Widths and scale are read from the tensors. Raises KeyError, ValueError or RuntimeError."""
        last = max(int(key.split(".")[1]) for key in weights)
        features, channels = weights["body.0.weight"].shape[:2]
        scale = round((weights[f"body.{last}.weight"].shape[0] / channels) ** 0.5)
        if channels != 3:
            raise ValueError(f"it takes {channels} channels; 3 are needed")
        net = cls(features=features, convolutions=(last - 2) // 2, scale=scale)
        net.load_state_dict(weights)
        return net


def load_upscaler(path: Path, device: torch.device | str = "cpu") -> Upscaling:
    """The network in a file, ready on ``device`` in float32; the last two are kept.

    Raises CheckpointBroken (unreadable, or not what its keys promise) and NotImplementedHere
    (another architecture, and no spandrel to load it).
    """
    return _loaded(path, path.stat().st_mtime_ns, str(device))


def numbers_drawn(net: Upscaling) -> int:
    """How many numbers torch's generator gives to a network's convolutions when it is built.

    0 for one that spandrel built: what those draw is not known.
    """
    if not isinstance(net, RRDBNet | SRVGGNetCompact):
        return 0
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    return sum(part.numel() for module in convolutions for part in module.parameters())


@lru_cache(maxsize=2)
def _loaded(path: Path, mtime_ns: int, device: str) -> Upscaling:
    weights = _unwrapped(_content(path))
    kind = _kind(weights)
    if kind is None:
        return _by_spandrel(path, device)
    try:
        net = kind.of_weights(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointBroken(
            f"{path.name} looks like a {kind.__name__} upscaler but cannot be loaded as one: {error}"
        ) from error
    return net.float().eval().requires_grad_(False).to(device)


def _content(path: Path) -> Mapping[str, Any]:
    content = read_tensors(path) if path.suffix.lower() == ".safetensors" else read_pickle(path)
    if not isinstance(content, dict):
        raise CheckpointBroken(f"{path.name} holds a {type(content).__name__}, not tensors by name")
    return content


def _unwrapped(content: Mapping[str, Any]) -> Weights:
    for key in WRAPPERS:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "netG."):
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights


def _kind(weights: Weights) -> type[RRDBNet] | type[SRVGGNetCompact] | None:
    marks = (
        "model.1.sub.0.RDB1.conv1.0.weight",
        "RRDB_trunk.0.RDB1.conv1.weight",
        "body.0.rdb1.conv1.weight",
    )
    if any(mark in weights for mark in marks) and not any("conv1x1" in key for key in weights):
        return RRDBNet
    prelu = weights.get("body.1.weight")
    if "body.0.weight" in weights and prelu is not None and prelu.dim() == 1:
        return SRVGGNetCompact
    return None


def _today(weights: Weights) -> Weights:
    """The two layouts of 2018 (``model.1.sub.0.RDB1``, ``RRDB_trunk``) with the keys of Real-ESRGAN."""
    if "model.0.weight" in weights:
        tail = sorted({int(key.split(".")[1]) for key in weights} - {0, 1})
        *ups, high, last = tail
        names = {high: "conv_hr", last: "conv_last", 0: "conv_first"}
        names |= {index: f"conv_up{place}" for place, index in enumerate(ups, start=1)}
        return {_from_2018(key, names): value for key, value in weights.items()}
    whole = {"trunk_conv": "conv_body", "HRconv": "conv_hr", "RRDB_trunk": "body"}
    renamed = {}
    for key, value in weights.items():
        head, rest = key.split(".", 1)
        head = whole.get(head, re.sub(r"^upconv(\d+)$", r"conv_up\1", head))
        renamed[f"{head}.{rest.replace('RDB', 'rdb')}"] = value
    return renamed


def _from_2018(key: str, names: Mapping[int, str]) -> str:
    block = re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(weight|bias)", key)
    if block:
        return "body.{}.rdb{}.conv{}.{}".format(*block.groups())
    trunk = re.fullmatch(r"model\.1\.sub\.\d+\.(weight|bias)", key)
    if trunk:
        return f"conv_body.{trunk[1]}"
    outer = re.fullmatch(r"model\.(\d+)\.(weight|bias)", key)
    if outer is None:
        raise ValueError(f"unexpected tensor {key}")
    return f"{names[int(outer[1])]}.{outer[2]}"


def _padded(pixels: Tensor, multiple: int) -> Tensor:
    """Mirror to the right and below until both sides divide; what mirroring cannot give is repeated."""
    height, width = pixels.shape[-2:]
    right, below = -width % multiple, -height % multiple
    mirrored = (min(right, width - 1), min(below, height - 1))
    pixels = functional.pad(pixels, (0, mirrored[0], 0, mirrored[1]), "reflect")
    return functional.pad(pixels, (0, right - mirrored[0], 0, below - mirrored[1]), "replicate")


def _by_spandrel(path: Path, device: str) -> Upscaling:
    try:
        import spandrel
    except ImportError as error:
        raise NotImplementedHere(
            f"{path.name} is not of the ESRGAN family (RRDBNet, SRVGGNetCompact); other upscaler "
            f"architectures need the spandrel package, which does not import here ({error})"
        ) from error
    try:
        found = spandrel.ModelLoader(device=device).load_from_file(str(path))
    except Exception as error:  # spandrel raises whatever the architecture's own code does
        raise CheckpointBroken(f"{path.name} cannot be loaded as an upscaler: {error}") from error
    return found.eval()  # type: ignore[no-any-return]
