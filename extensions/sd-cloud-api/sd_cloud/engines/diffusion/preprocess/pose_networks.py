"""OpenPose's networks for body, hand and face: Cao et al., "OpenPose" (arXiv 1812.08008).

Each is a VGG trunk and six stages, of which the later ones see the trunk and the stage before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = tuple[str, int, int, int]  # name, before, after, kernel; a kernel of 0 is a pooling

LIMB_MAPS, BODY_MAPS, HAND_MAPS, FACE_MAPS = 38, 19, 22, 71
SILENT = ("Mconv7_stage6_L2",)
"""Last layers that the published body network runs through a ReLU, alone of all its stages."""


def trunk(*last: Layer) -> list[Layer]:
    layers: list[Layer] = [("conv1_1", 3, 64, 3), ("conv1_2", 64, 64, 3), ("pool1_stage1", 0, 0, 0)]
    layers += [("conv2_1", 64, 128, 3), ("conv2_2", 128, 128, 3), ("pool2_stage1", 0, 0, 0)]
    layers += [("conv3_1", 128, 256, 3)] + [(f"conv3_{one}", 256, 256, 3) for one in (2, 3, 4)]
    return [*layers, ("pool3_stage1", 0, 0, 0), ("conv4_1", 256, 512, 3), ("conv4_2", 512, 512, 3), *last]


def stage(number: int, before: int, after: int, suffix: str = "") -> list[Layer]:
    widths = [before, 128, 128, 128, 128, 128, 128, after]
    sizes = [7] * 5 + [1, 1]
    return [
        (f"Mconv{place}_stage{number}{suffix}", widths[place - 1], widths[place], sizes[place - 1])
        for place in range(1, 8)
    ]


def sequence(layers: Sequence[Layer], *, ends_in_relu: bool) -> nn.Sequential:
    """Convolutions with a ReLU after each, but perhaps the last."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, before, after, size in layers:
        if size == 0:
            parts[name] = nn.MaxPool2d(2, 2)
            continue
        parts[name] = nn.Conv2d(before, after, size, padding=size // 2)
        if name != layers[-1][0] or ends_in_relu:
            parts[f"relu_{name}"] = nn.ReLU()
    return nn.Sequential(parts)


class BodyNet(nn.Module):
    """Maps of limbs [1, 38, h/8, w/8] and of joints [1, 19, h/8, w/8] from BGR pixels in -0.5..0.5."""

    def __init__(self) -> None:
        super().__init__()
        last = [("conv4_3_CPM", 512, 256, 3), ("conv4_4_CPM", 256, 128, 3)]
        self.model0 = sequence(trunk(*last), ends_in_relu=True)
        for branch, maps in ((1, LIMB_MAPS), (2, BODY_MAPS)):
            first = [(f"conv5_{place}_CPM_L{branch}", 128, 128, 3) for place in (1, 2, 3)]
            first += [(f"conv5_4_CPM_L{branch}", 128, 512, 1), (f"conv5_5_CPM_L{branch}", 512, maps, 1)]
            self.add_module(f"model1_{branch}", sequence(first, ends_in_relu=False))
            for number in range(2, 7):
                layers = stage(number, 128 + LIMB_MAPS + BODY_MAPS, maps, f"_L{branch}")
                made = sequence(layers, ends_in_relu=layers[-1][0] in SILENT)
                self.add_module(f"model{number}_{branch}", made)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.model0(pixels)
        x = seen
        for number in range(1, 7):
            limbs = self.get_submodule(f"model{number}_1")(x)
            joints = self.get_submodule(f"model{number}_2")(x)
            x = torch.cat([limbs, joints, seen], dim=1)
        return limbs, joints


class HandNet(nn.Module):
    """Maps of 21 joints and the background [1, 22, h/8, w/8] from BGR pixels in -0.5..0.5."""

    def __init__(self) -> None:
        super().__init__()
        last = [("conv4_3", 512, 512, 3), ("conv4_4", 512, 512, 3), ("conv5_1", 512, 512, 3)]
        last += [("conv5_2", 512, 512, 3), ("conv5_3_CPM", 512, 128, 3)]
        self.model1_0 = sequence(trunk(*last), ends_in_relu=True)
        first = [("conv6_1_CPM", 128, 512, 1), ("conv6_2_CPM", 512, HAND_MAPS, 1)]
        self.model1_1 = sequence(first, ends_in_relu=False)
        for number in range(2, 7):
            layers = stage(number, 128 + HAND_MAPS, HAND_MAPS)
            self.add_module(f"model{number}", sequence(layers, ends_in_relu=False))

    def forward(self, pixels: Tensor) -> Tensor:
        seen = self.model1_0(pixels)
        x = self.model1_1(seen)
        for number in range(2, 7):
            x = self.get_submodule(f"model{number}")(torch.cat([x, seen], dim=1))
        return torch.as_tensor(x)


class FaceNet(nn.Module):
    """Maps of 70 points and the background [1, 71, h/8, w/8] from BGR pixels in -0.5..0.5."""

    def __init__(self) -> None:
        super().__init__()
        last = [("conv4_3", 512, 512, 3), ("conv4_4", 512, 512, 3), ("conv5_1", 512, 512, 3)]
        last += [("conv5_2", 512, 512, 3), ("conv5_3_CPM", 512, 128, 3)]
        self.stages: list[list[str]] = []
        first = [("conv6_1_CPM", 128, 512, 1), ("conv6_2_CPM", 512, FACE_MAPS, 1)]
        self.trunk = [name for name, *_ in trunk(*last)]
        parts = [trunk(*last), first, *(stage(one, 128 + FACE_MAPS, FACE_MAPS) for one in range(2, 7))]
        for layers in parts:
            for name, before, after, size in layers:
                if size:
                    self.add_module(name, nn.Conv2d(before, after, size, padding=size // 2))
        self.stages = [[name for name, *_ in layers] for layers in parts[1:]]

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for name in self.trunk:
            pools = name.startswith("pool")
            x = functional.max_pool2d(x, 2) if pools else functional.relu(self.get_submodule(name)(x))
        seen = x
        for number, names in enumerate(self.stages):
            x = seen if number == 0 else torch.cat([x, seen], dim=1)
            for name in names[:-1]:
                x = functional.relu(self.get_submodule(name)(x))
            x = self.get_submodule(names[-1])(x)
        return x


def body_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The body's and the hand's file leave out which of the network's modules a layer is in."""
    return _with_modules(state, BodyNet)


def hand_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return _with_modules(state, HandNet)


def _with_modules(state: Mapping[str, Tensor], net: type[nn.Module]) -> Mapping[str, Tensor]:
    with torch.device("meta"):
        keys = [key.split(".") for key in net().state_dict()]
    modules = {layer: f"{module}." for module, layer, _ in keys}
    return {modules.get(key.split(".")[0], "") + key: value for key, value in state.items()}
