"""ControlNet-LLLite (kohya-ss): small networks that add to what the U-Net's attention projects.

For each projection ``to_q`` … of the U-Net, one that sees the map and the projection's input. Followed
is sd-webui-controlnet's ``controlnet_lllite.py``: control modes, layer weights and the choice of passes
change nothing, and the hires pass is made without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.controlnet.call import Call
from sd_cloud.engines.diffusion.controlnet.hinted import Hinted
from sd_cloud.engines.diffusion.lora_keys import ldm_name
from sd_cloud.engines.diffusion.text_encoders import assign
from sd_cloud.errors import BadRequest, CheckpointBroken

MARK = "lllite"
PREFIX = "lllite_unet_"


class Lite(nn.Module):
    """One projection's network: what it adds to an input [N, tokens, width], seen the map."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.conditioning1 = nn.Sequential()
        for place in (0, 2, 4):
            weight = state.get(f"conditioning1.{place}.weight")
            if weight is not None:
                after, before, side = (int(one) for one in weight.shape[:3])
                if place:
                    self.conditioning1.append(nn.ReLU())
                self.conditioning1.append(nn.Conv2d(before, after, side, stride=side))
        self.down, self.mid = (nn.Sequential(_linear(state, name), nn.ReLU()) for name in ("down", "mid"))
        self.up = nn.Sequential(_linear(state, "up"))

    def embedding(self, hint: Tensor, size: tuple[int, int]) -> Tensor:
        """The map [1, 3, H, W] in -1..1 as [1, tokens, width], for a layer of ``size`` (height, width)."""
        seen = functional.interpolate(self.conditioning1(hint), size, mode="nearest-exact")
        return seen.flatten(2).transpose(1, 2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        seen = torch.cat([embedding.expand(x.shape[0], -1, -1), self.down(x)], dim=2)
        added: Tensor = self.up(self.mid(seen))
        return added


def _linear(state: Mapping[str, Tensor], name: str) -> nn.Linear:
    after, before = state[f"{name}.0.weight"].shape
    return nn.Linear(before, after)


@dataclass(eq=False)
class LLLite:
    """A loaded file: a network for each projection, by its module's name in the U-Net."""

    name: str
    parts: dict[str, Lite]
    bound: bool = False


def is_lllite(tensors: Mapping[str, Tensor]) -> bool:
    return any(MARK in key for key in tensors)


def load_lllite(
    tensors: Mapping[str, Tensor],
    file: str,
    unet: UNet2DConditionModel,
    *,
    device: torch.device,
    dtype: torch.dtype,
    field: str,
) -> LLLite:
    """Raises CheckpointBroken, and BadRequest for a file that is made for another U-Net."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        layer, _, part = key.partition(".")
        groups.setdefault(layer, {})[part] = value
    projections = _projections(unet)
    parts = {}
    for layer, state in groups.items():
        place = projections.get(layer.removeprefix(PREFIX))
        if place is None or int(state["down.0.weight"].shape[1]) != place[1].in_features:
            raise BadRequest(
                f"{file} is made for checkpoints of another family: {layer} does not go onto this one",
                field=field,
            )
        parts[place[0]] = _built(layer, state, file, device, dtype)
    return LLLite(file.rsplit(".", 1)[0], parts)


def _projections(unet: UNet2DConditionModel) -> dict[str, tuple[str, nn.Linear]]:
    """Every linear layer by its LDM name with underscores: its own name, and itself."""
    per_level = int(unet.config["layers_per_block"])
    return {
        ldm_name(name.replace(".", "_"), per_level, {}): (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear)
    }


def _built(
    layer: str, state: Mapping[str, Tensor], file: str, device: torch.device, dtype: torch.dtype
) -> Lite:
    try:
        with torch.device("meta"):
            net = Lite(state)
    except (KeyError, ValueError) as error:
        raise CheckpointBroken(f"{file}: its {layer} is no LLLite network: {error}") from error
    assign(net, state, file, layer, dtype)
    return net.eval().requires_grad_(False).to(device)


@dataclass
class Lightening(Hinted):
    """One unit with an LLLite."""

    lllite: LLLite
    seen: dict[tuple[str, tuple[int, int]], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.hint.shape[1] != 3:
            raise BadRequest(
                "makes a map of 4 channels; an LLLite takes 3", field=f"{self.unit.field}.module"
            )
        if self.unit.region is not None:
            raise BadRequest("is not for LLLite models", field=f"{self.unit.field}.effective_region_mask")

    def works(self, call: Call) -> bool:
        return not call.hires and self.unit.guidance_start <= call.progress <= self.unit.guidance_end

    def at_projection(self, name: str, x: Tensor, size: tuple[int, int]) -> Tensor:
        part = self.lllite.parts[name]
        if (name, size) not in self.seen:
            self.seen[name, size] = part.embedding(self.hint.to(x) * 2 - 1, size)
        found: Tensor = part(x, self.seen[name, size]) * self.unit.weight
        return found


@contextmanager
def lightened(unet: UNet2DConditionModel, units: Sequence[Hinted], call: Call) -> Iterator[None]:
    """Inside, the U-Net's projections get what the working units' networks add to their inputs."""
    working = [one for one in units if isinstance(one, Lightening) and one.works(call)]
    sizes = _sizes((int(call.latents.shape[2]), int(call.latents.shape[3])), len(unet.down_blocks))
    with ExitStack() as stack:
        for name in {name for one in working for name in one.lllite.parts}:
            size = sizes[_level(name, len(sizes))]

            def more(_: nn.Module, given: tuple[Any, ...], name: str = name, size: Any = size) -> Any:
                parts = [
                    one.at_projection(name, given[0], size) for one in working if name in one.lllite.parts
                ]
                return (given[0] + sum(parts), *given[1:])

            stack.enter_context(_hook(unet.get_submodule(name), more))
        yield


@contextmanager
def _hook(module: nn.Module, more: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(more)
    try:
        yield
    finally:
        handle.remove()


def _level(name: str, levels: int) -> int:
    """How often the latent is halved where a module of the U-Net stands."""
    block, number, *_ = name.split(".")
    if block == "mid_block":
        return levels - 1
    return int(number) if block == "down_blocks" else levels - 1 - int(number)


def _sizes(latent: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    sizes = [latent]
    for _ in range(levels - 1):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes
