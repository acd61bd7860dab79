"""LoRAs merged into a model's weights, and taken out again."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sd_cloud.engines.base import Catalogue, ModelFile
from sd_cloud.engines.diffusion import sd3_lora_keys
from sd_cloud.engines.diffusion.eight_bits import EIGHT_BITS
from sd_cloud.engines.diffusion.embeddings import BUNDLED, Embedding, EmbeddingShelf, bundled_embeddings
from sd_cloud.engines.diffusion.hashes import HashBook
from sd_cloud.engines.diffusion.layout import INPAINTING_CHANNELS
from sd_cloud.engines.diffusion.lora_deltas import Delta, delta, is_known
from sd_cloud.engines.diffusion.lora_keys import TEXT_PREFIXES, Layer, find_layer, layers_by_name, split_key
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.prompt_grammar import NetworkCall
from sd_cloud.engines.diffusion.weights_file import Tensors, read_tensors
from sd_cloud.errors import CheckpointBroken

FILES_IN_MEMORY = 4
ATTENTION = re.compile(
    r"(?P<encoder>te\d?|text_encoder(_2)?)_text_model_encoder_layers_(?P<layer>\d+)_self_attn_\w+_proj"
)


@dataclass(frozen=True)
class Wanted:
    """One ``<lora:name:te:unet:dyn>`` with its file."""

    name: str
    file: ModelFile
    text_multiplier: float
    unet_multiplier: float
    dynamic_rank: int | None

    @property
    def key(self) -> Hashable:
        path = Path(self.file.filename)
        changed_ns = path.stat().st_mtime_ns if path.exists() else 0
        return path, changed_ns, self.text_multiplier, self.unet_multiplier, self.dynamic_rank


def wanted_loras(calls: Sequence[NetworkCall], catalogue: Catalogue) -> tuple[list[Wanted], list[str]]:
    """The LoRAs that prompts call for, and the names there is no file for. Raises BadRequest."""
    found: list[Wanted] = []
    missing: list[str] = []
    for call in calls:
        if not call.positional:
            continue
        name = call.positional[0]
        file = _find(name, catalogue.loras)
        if file is None:
            missing.append(name)
            continue
        named = dict(call.named)
        text = call.number(named.get("te", call.positional[1] if len(call.positional) > 1 else "1"))
        unet_text = named.get("unet", call.positional[2] if len(call.positional) > 2 else None)
        unet = text if unet_text is None else call.number(unet_text)
        rank_text = named.get("dyn", call.positional[3] if len(call.positional) > 3 else None)
        rank = None if rank_text is None else int(call.number(rank_text))
        found.append(Wanted(name, file, text, unet, rank))
    # A file is loaded once: called for twice, it counts twice, both times with the later numbers.
    latest = {one.name: one for one in found}
    return [latest[one.name] for one in found], missing


def _find(name: str, files: Sequence[ModelFile]) -> ModelFile | None:
    by_name = next((one for one in files if one.name == name), None)
    return by_name or next((one for one in files if one.extra.get("alias") == name), None)


def short_hash(file: ModelFile, hashes: HashBook) -> str:
    """What the infotext calls the file by: 12 digits, empty with ``--no-hashing``."""
    metadata = file.extra.get("metadata") or {}
    own = metadata.get("sshs_model_hash")
    return str(own or hashes.addnet(Path(file.filename)) or "")[:12]


@dataclass
class _State:
    """What is merged into one model, and the weights as they were."""

    merged: tuple[Hashable, ...] | None = ()  # None: something went wrong half way
    sentences: list[str] = field(default_factory=list)
    originals: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    layers: dict[str, Layer] | None = None


class LoraShelf:
    """Files that were read lately, and what is merged into which model."""

    def __init__(self, embeddings: EmbeddingShelf) -> None:
        self._embeddings = embeddings
        self._files: OrderedDict[Hashable, Tensors] = OrderedDict()
        self._states: dict[Model, _State] = {}

    def state_of(self, model: Model) -> Hashable:
        """What a prompt's encoding depends on beside the prompt."""
        state = self._states.get(model)
        return state.merged if state else ()

    def forget(self, model: Model) -> None:
        self._states.pop(model, None)
        self._embeddings.carry(model, ())

    @torch.no_grad()
    def apply(self, model: Model, wanted: Sequence[Wanted]) -> list[str]:
        """Make exactly these LoRAs part of the model; nothing is done when they are already.

        Returns sentences about what could not be used. Raises CheckpointBroken for a broken file.
        """
        state = self._states.setdefault(model, _State())
        keys = tuple(one.key for one in wanted)
        if keys == state.merged:
            return state.sentences
        state.merged = None
        for parameter, original in state.originals.items():
            parameter.copy_(original)
        if not keys:
            state.originals.clear()
        state.sentences = []
        carried: list[Embedding] = []
        for one in wanted:
            state.sentences += self._merge(model, state, one)
            carried += bundled_embeddings(self._read(one), one.name)
        self._embeddings.carry(model, carried)
        state.merged = keys
        return state.sentences

    def _merge(self, model: Model, state: _State, wanted: Wanted) -> list[str]:
        if state.layers is None:
            state.layers = layers_by_name(model)
        by_layer: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self._read(wanted).items():
            if key.startswith(BUNDLED):
                continue
            name, part = split_key(key)
            by_layer.setdefault(name, {})[part] = tensor
        found = {name: layer for name in by_layer if (layer := find_layer(name, state.layers))}
        if not found:
            return [f"Lora {wanted.name} has no layer of this checkpoint: it was made for another family"]
        unknown = [name for name in found if not is_known(by_layer[name])]
        if unknown:  # the webui then takes nothing of the file
            parts = ", ".join(sorted(by_layer[unknown[0]]))
            return [f"Networks with errors: {wanted.name} (not applied: {unknown[0]} has {parts})"]
        failed = []
        for names in _together(model, found):
            try:
                changes = [self._change(model, found[name], by_layer[name], wanted) for name in names]
            except RuntimeError as error:
                failed += [f"{name} ({str(error).splitlines()[0]})" for name in names]
                continue
            for name, change in zip(names, changes, strict=True):
                self._add(model, state, found[name], change)
        if failed:
            few = "; ".join(failed[:3])
            return [f"Networks with errors: {wanted.name} ({len(failed)} layers not applied: {few})"]
        return []

    def _change(self, model: Model, layer: Layer, parts: dict[str, Tensor], wanted: Wanted) -> Delta:
        multiplier = wanted.text_multiplier if layer.of_text else wanted.unet_multiplier
        return delta(parts, _whole(model, layer), multiplier, wanted.dynamic_rank)

    def _add(self, model: Model, state: _State, layer: Layer, change: Delta) -> None:
        if layer.turned:
            change = Delta(_turned(change.weight), None if change.bias is None else _turned(change.bias))
        first = 0
        for module in layer.modules:
            rows = slice(first, first + _weight(module).shape[0])
            first = rows.stop
            bias = None if change.bias is None else change.bias[rows]
            self._add_to(model, state, module, Delta(change.weight[rows], bias))

    def _add_to(self, model: Model, state: _State, module: nn.Module, change: Delta) -> None:
        weight = _weight(module)
        self._remember(state, weight)
        base, base_bias = _base(model, module)
        # bfloat16 where a change of weights in 8 bits was computed so
        seen = _seen(base).to(change.weight.dtype)
        _seen(weight).copy_((seen + change.weight).to(weight.dtype))
        bias = getattr(module, "bias", None)
        if change.bias is not None and isinstance(bias, nn.Parameter) and base_bias is not None:
            self._remember(state, bias)
            bias.copy_((base_bias.float() + change.bias).to(bias.dtype))

    def _remember(self, state: _State, parameter: nn.Parameter) -> None:
        if parameter not in state.originals:
            state.originals[parameter] = parameter.detach().clone()

    def _read(self, wanted: Wanted) -> Tensors:
        path = Path(wanted.file.filename)
        try:
            key = (path, path.stat().st_mtime_ns)
        except OSError as error:
            raise CheckpointBroken(f"{path.name} is gone: {error}") from error
        if key not in self._files:
            self._files[key] = read_tensors(path)
            while len(self._files) > FILES_IN_MEMORY:
                self._files.popitem(last=False)
        self._files.move_to_end(key)
        return self._files[key]


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _base(model: Model, module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """What a LoRA's change is added to: weight and bias as they are now.

    Where ``cache_fp16_weight`` keeps them in 16 bits it is those, so that of several LoRAs for a layer
    only the last counts, as in the webui.
    """
    weight: Tensor = _weight(module)
    bias = getattr(module, "bias", None)
    weight, bias = model.halves.get(module, (weight, bias))
    if weight.dtype == EIGHT_BITS:  # nothing is computed in it
        weight, bias = weight.float(), None if bias is None else bias.float()
    device = _weight(module).device
    return weight.detach().to(device), None if bias is None else bias.detach().to(device)


def _whole(model: Model, layer: Layer) -> Tensor:
    """A layer's weight as files mean it."""
    weights = [_base(model, module)[0] for module in layer.modules]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return _seen(_turned(weight) if layer.turned else weight)


def _seen(weight: Tensor) -> Tensor:
    """A layer's weight; of an inpainting model's first layer, what it sees of the latent itself."""
    weight = weight.detach()
    return weight[:, :4] if weight.ndim == 4 and weight.shape[1] == INPAINTING_CHANNELS else weight


def _turned(rows: Tensor) -> Tensor:
    first, second = rows.chunk(2)
    return torch.cat([second, first])


def _together(model: Model, found: Iterable[str]) -> list[list[str]]:
    """Names of layers that are changed together or not at all.

    OpenCLIP's attention is one layer in the webui: it changes when all its four parts do, and they fit. So
    is SD 3's.
    """
    if model.layout.family == "sd3":
        return sd3_lora_keys.together(found)
    prefixes = TEXT_PREFIXES[model.layout.family]
    whole = [
        prefix
        for encoder, names in zip(model.text, prefixes, strict=True)
        for prefix in names
        if encoder.kind == "open_clip"
    ]
    single: list[list[str]] = []
    attention: dict[tuple[str, str], list[str]] = {}
    for name in found:
        part = ATTENTION.fullmatch(name)
        if part is None or part["encoder"] not in whole:
            single.append([name])
        else:
            attention.setdefault((part["encoder"], part["layer"]), []).append(name)
    return [*single, *(names for names in attention.values() if len(names) == 4)]
