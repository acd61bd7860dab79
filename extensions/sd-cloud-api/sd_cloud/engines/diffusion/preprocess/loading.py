"""Weights of a preprocessor's network into its modules: every tensor used, none missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sd_cloud.engines.diffusion.text_encoders import assign
from sd_cloud.engines.diffusion.weights_file import read_pickle, read_tensors
from sd_cloud.errors import CheckpointBroken

Net = TypeVar("Net", bound=nn.Module)
Convert = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

CPU = torch.device("cpu")
WRAPS = ("state_dict", "model", "depth_model")
KEPT_NETWORKS = 3  # as many as openpose has


class Part(nn.Module):
    """Layers under one name of a published file, set as attributes."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def as_stored(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return state


def unwrapped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the ``module.`` that training on several GPUs puts in front."""
    return {key.replace("module.", ""): value for key, value in state.items()}


@dataclass
class Bench:
    """What a network preprocessor works with: its files by the table's names, and a device.

    Networks stay in memory between jobs, and on the device only while they work. ``field`` is what an
    error is said of.
    """

    files: Mapping[str, Path]
    device: torch.device = CPU
    field: str = "module"
    used: list[nn.Module] = dataclasses.field(default_factory=list)

    def net(self, build: Callable[[], Net], convert: Convert = as_stored, *, file: str | None = None) -> Net:
        """The network of one file, the first if none is named.

        Raises CheckpointBroken, naming the file and what does not fit.
        """
        return self._net(build, convert, file, shaped=False)

    def net_of_shape(
        self,
        build: Callable[[Mapping[str, Tensor]], Net],
        convert: Convert = as_stored,
        *,
        file: str | None = None,
    ) -> Net:
        """The same, for a network that learns from its tensors how wide and deep it is."""
        return self._net(build, convert, file, shaped=True)

    def _net(self, build: Callable[..., Net], convert: Convert, file: str | None, *, shaped: bool) -> Net:
        path = self.files[file] if file else next(iter(self.files.values()))
        found: Net = _loaded(build, convert, shaped, path, path.stat().st_mtime_ns)
        self.used.append(found.to(self.device))
        return found

    def pixels(self, image: NDArray[Any]) -> Tensor:
        """[H, W, C] of numbers to float [1, C, H, W] on the device."""
        planes = np.ascontiguousarray(image.astype(np.float32).transpose(2, 0, 1))
        return torch.from_numpy(planes).unsqueeze(0).to(self.device)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *failure: object) -> None:
        for net in self.used:
            net.to("cpu")


@lru_cache(maxsize=KEPT_NETWORKS)
def _loaded(build: Any, convert: Convert, shaped: bool, path: Path, mtime_ns: int) -> Any:
    state = dict(convert(_tensors(path)))
    try:
        with torch.device("meta"):
            net = build(state) if shaped else build()
    except KeyError as error:
        raise CheckpointBroken(f"{path.name}: its network lacks the tensor {error}") from error
    assign(net, state, path.name, "network", torch.float32)
    return net.eval().requires_grad_(False)


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """A file's tensors, also below the key that training scripts put a network under."""
    if path.suffix.lower() == ".safetensors":
        return read_tensors(path)
    loaded = read_pickle(path)
    for wrap in WRAPS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrap), dict):
            loaded = loaded[wrap]
    if not isinstance(loaded, dict):
        raise CheckpointBroken(f"{path.name} holds no state dict")
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}


def bytes_of(plane: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """0..1 to bytes, cut off below the next whole number."""
    values = plane.float().cpu().numpy() if isinstance(plane, Tensor) else plane
    return np.asarray((values * 255.0).clip(0, 255), np.uint8)
