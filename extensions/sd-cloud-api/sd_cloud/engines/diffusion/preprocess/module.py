"""What a preprocessor of ControlNet is: its name, its sliders, what it makes. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slider:
    """A number a preprocessor takes. A value outside the range means the default."""

    label: str = "EMPTY_LABEL"
    minimum: float = 0.0
    maximum: float = 1.0
    step: float = 0.01
    value: float = 0.5
    visible: bool = True

    def settle(self, value: float) -> float:
        return value if self.minimum <= value <= self.maximum else self.value


HIDDEN = Slider(visible=False)
RESOLUTION = Slider("Resolution", 64, 2048, 8, 512)


@dataclass(frozen=True)
class Module:
    """One preprocessor. ``weights``: the files it would need, empty when it needs none."""

    name: str
    label: str = ""
    tags: tuple[str, ...] = ()
    resolution: Slider = RESOLUTION
    slider_1: Slider = HIDDEN
    slider_2: Slider = HIDDEN
    priority: int = 0
    model_free: bool = False
    weights: str = ""

    @property
    def shown(self) -> str:
        return self.label or self.name

    @property
    def is_inpaint(self) -> bool:
        return "inpaint" in self.name

    @property
    def makes_picture(self) -> bool:
        """False: what it makes is an embedding."""
        embeds = ("ip-adapter", "revision_", "clip_vision", "instant_id_face_embedding")
        return not self.name.startswith(embeds)

    @property
    def takes_several(self) -> bool:
        """A unit may have several images, which count as one."""
        return "IP-Adapter" in self.tags

    @property
    def sees_through_mask(self) -> bool:
        """A mask hides a part of the image from it."""
        own = self.name in ("clip_vision", "revision_clipvision", "revision_ignore_prompt")
        return own or ("ip-adapter" in self.name and "face_id" not in self.name)
