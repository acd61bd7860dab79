"""A ControlNet at work: what it adds to what the U-Net's encoder hands over.

How much reaches the U-Net follows sd-webui-controlnet's ``hook.py``: "My prompt is more important" weighs
the layers by powers of 0.825; "ControlNet is more important" does so too and leaves the negative prompt
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from sd_cloud.engines.diffusion.controlnet.call import Call, Residuals, inpaint_hint
from sd_cloud.engines.diffusion.controlnet.hinted import Hinted
from sd_cloud.engines.diffusion.controlnet.ip_adapter import Tokens
from sd_cloud.engines.diffusion.controlnet.model import ControlNet
from sd_cloud.engines.diffusion.controlnet.union import UnionNet
from sd_cloud.engines.diffusion.controlnet.units import UNION_TYPES
from sd_cloud.errors import BadRequest

SOFT_BASE = 0.825
SOFT_LAYERS = 13


@dataclass
class Steering(Hinted):
    """One unit with a ControlNet. ``face``: what that is told in the prompt's place."""

    network: ControlNet
    face: Tokens | None = None

    def added(self, call: Call) -> Residuals:
        """The network's outputs, weighed."""
        net = self.network.net
        latents = call.latents[:, : net.config["in_channels"]]
        down, middle = net(
            latents,
            call.timesteps,
            encoder_hidden_states=call.context if self.face is None else self.face.rows(call.marks),
            controlnet_cond=inpaint_hint(self.hint_for(call)).to(latents),
            class_labels=call.labels,
            return_dict=False,
            **({"types": self.types(net.types)} if isinstance(net, UnionNet) else {}),
        )
        layers = [*down, middle]
        if self.unit.only_on_prompt or self.network.averaged:
            layers = [layer * call.marks for layer in layers]
        weights = self.layer_weights(len(layers), call.hires)
        layers = [self.within_region(layer * weight) for layer, weight in zip(layers, weights, strict=True)]
        if self.network.averaged:
            layers = [layer.mean(dim=(2, 3), keepdim=True) for layer in layers]
        return Residuals(tuple(layers[:-1]), layers[-1])

    def types(self, count: int) -> list[int]:
        """What kind of map a Union is told it has: one of its first ``count`` types, or none."""
        place = UNION_TYPES.index(self.unit.union_type)
        if place == len(UNION_TYPES) - 1:
            return []
        if place >= count:
            raise BadRequest(
                f"{self.network.name} knows {', '.join(UNION_TYPES[:count])}",
                field=f"{self.unit.field}.union_control_type",
            )
        return [place]

    def layer_weights(self, count: int, hires: bool) -> list[float]:
        """A weight for each of the network's ``count`` outputs, shallow to deep, the middle last.

        Raises BadRequest when ``advanced_weighting`` has another number of them.
        """
        own = self.unit.layer_weights
        if own is not None:
            if len(own) != count:
                raise BadRequest(
                    f"has {len(own)} numbers; this model has {count} layers",
                    field=f"{self.unit.field}.advanced_weighting",
                )
            return list(own)
        if not self.unit.softened(hires):
            return [self.unit.weight] * count
        # The extension counts 13 layers for SDXL too, which has 10, and takes the first 10.
        return [self.unit.weight * SOFT_BASE ** (SOFT_LAYERS - 1 - layer) for layer in range(count)]
