"""Hypernetworks: small networks on what attention looks at, as the webui trains and applies them.

A file holds, for each width, one network for the keys and one for the values; every attention
layer of the U-Net whose context has that width sees it through them (``x + f(x) * multiplier``).
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sd_cloud.engines.base import Catalogue, ModelFile
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.prompt_grammar import NetworkCall
from sd_cloud.engines.diffusion.weights_file import read_pickle
from sd_cloud.errors import CheckpointBroken

FILES_IN_MEMORY = 4
ACTIVATIONS: dict[str, type[nn.Module]] = {
    name.lower(): kind
    for name, kind in inspect.getmembers(nn.modules.activation, inspect.isclass)
    if issubclass(kind, nn.Module) and kind.__module__ == nn.modules.activation.__name__
} | {"swish": nn.Hardswish}

Networks = dict[int, tuple[nn.Sequential, nn.Sequential]]
"""By width: the network for keys and the one for values."""


@dataclass(frozen=True)
class Wanted:
    file: ModelFile
    multiplier: float

    @property
    def key(self) -> Hashable:
        path = Path(self.file.filename)
        return path, path.stat().st_mtime_ns if path.exists() else 0, self.multiplier


def wanted_hypernetworks(
    calls: Sequence[NetworkCall], catalogue: Catalogue
) -> tuple[list[Wanted], list[str]]:
    """What ``<hypernet:name:multiplier>`` calls for, and the names there is no file for."""
    found: list[Wanted] = []
    missing: list[str] = []
    for call in calls:
        name = call.positional[0] if call.positional else ""
        file = next((one for one in catalogue.hypernetworks if one.name == name), None)
        if file is None:
            missing.append(name)
            continue
        found.append(Wanted(file, call.number(call.positional[1]) if len(call.positional) > 1 else 1.0))
    return found, missing


@dataclass
class HypernetShelf:
    """Files that were read lately, and what is on which model."""

    _files: OrderedDict[Hashable, Networks] = field(default_factory=OrderedDict)
    _applied: dict[Model, tuple[tuple[Hashable, ...], list[RemovableHandle]]] = field(default_factory=dict)

    def forget(self, model: Model) -> None:
        self._applied.pop(model, None)

    def apply(self, model: Model, wanted: Sequence[Wanted]) -> None:
        """Have exactly these on a model. Raises CheckpointBroken for a file that is none."""
        keys = tuple(one.key for one in wanted)
        there, handles = self._applied.get(model, ((), []))
        if keys == there:
            return
        for handle in handles:
            handle.remove()
        self._applied.pop(model, None)
        if not keys:
            return
        networks = [(self._read(one, model), one.multiplier) for one in wanted]
        handles = []
        for name, layer in model.unet.named_modules():
            side = {"to_k": 0, "to_v": 1}.get(name.rsplit(".", 1)[-1])
            if side is not None and isinstance(layer, nn.Linear):
                handles.append(layer.register_forward_pre_hook(_Seen(networks, side)))
        self._applied[model] = (keys, handles)

    def _read(self, wanted: Wanted, model: Model) -> Networks:
        placement = model.placement
        key = (*_file_key(wanted), placement.device, placement.dtype)
        if key not in self._files:
            networks = read_hypernetwork(Path(wanted.file.filename))
            for pair in networks.values():
                for one in pair:
                    one.to(placement.device, placement.dtype)
            self._files[key] = networks
            while len(self._files) > FILES_IN_MEMORY:
                self._files.popitem(last=False)
        self._files.move_to_end(key)
        return self._files[key]


def _file_key(wanted: Wanted) -> tuple[Path, int]:
    path = Path(wanted.file.filename)
    try:
        return path, path.stat().st_mtime_ns
    except OSError as error:
        raise CheckpointBroken(f"{path.name} is gone: {error}") from error


@dataclass(frozen=True)
class _Seen:
    """A hook before a layer: its input as the networks show it."""

    networks: list[tuple[Networks, float]]
    side: int

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen = inputs[0]
        for networks, multiplier in self.networks:
            pair = networks.get(seen.shape[-1])
            if pair is not None:
                seen = seen + pair[self.side](seen) * multiplier
        return (seen, *inputs[1:])


def read_hypernetwork(path: Path) -> Networks:
    """The networks of a file, on the CPU in float32. Raises CheckpointBroken."""
    data = read_pickle(path)
    widths = [key for key in data if isinstance(key, int)] if isinstance(data, dict) else []
    if not widths:
        raise CheckpointBroken(f"{path.name} is not a hypernetwork: it has no networks by width")
    try:
        return {width: (_network(data, width, 0), _network(data, width, 1)) for width in widths}
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        fact = str(error).splitlines()[0]
        raise CheckpointBroken(f"{path.name} is a hypernetwork that cannot be built: {fact}") from error


def _network(data: dict[Any, Any], width: int, side: int) -> nn.Sequential:
    structure = data.get("layer_structure") or [1, 2, 1]
    activation = data.get("activation_func")
    drops = data.get("dropout_structure") or [0] * len(structure)
    layers: list[nn.Module] = []
    for i in range(len(structure) - 1):
        last = i == len(structure) - 2
        layers.append(nn.Linear(int(width * structure[i]), int(width * structure[i + 1])))
        if activation not in (None, "linear") and (not last or data.get("activate_output", True)):
            layers.append(ACTIVATIONS[activation]())
        if data.get("is_layer_norm", False):
            layers.append(nn.LayerNorm(int(width * structure[i + 1])))
        if drops[i + 1] > 0:
            layers.append(nn.Identity())  # dropout, which is for training, has a place in the names
    network = nn.Sequential(*layers)
    old = {"linear1": "linear.0", "linear2": "linear.1"}
    state: dict[str, Tensor] = {}
    for key, tensor in data[width][side].items():
        head, _, rest = key.partition(".")
        state[f"{old[head]}.{rest}" if head in old else key] = tensor.float()
    network.load_state_dict({key.removeprefix("linear."): tensor for key, tensor in state.items()})
    return network.eval().requires_grad_(False)
