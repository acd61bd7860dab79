"""TAESD, a tiny VAE for each family of checkpoints (github.com/madebyollin/taesd, MIT).

The networks are diffusers' and the files are the ones that the webui keeps in ``models/VAE-taesd``.
Latents are as samplers have them, without a checkpoint's scale and shift; pixels are 0..1.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping, MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.autoencoders.vae import DecoderTiny, EncoderTiny
from torch import Tensor, nn

from sd_cloud.engines.diffusion.model import Model, Placement
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.text_encoders import assign
from sd_cloud.engines.diffusion.weights_file import read_tensors
from sd_cloud.errors import BadRequest, NotImplementedHere

CHANNELS = 64
Half = Literal["encoder", "decoder"]
PREVIEWS = ("Full", "Approx NN", "Approx cheap", "TAESD")
"""Values of ``show_progress_type``."""

METHODS = {"sd_vae_encode_method": "VAE Encoder", "sd_vae_decode_method": "VAE Decoder"}
"""The options, and how infotexts tell of them."""


@dataclass(frozen=True)
class Tiny:
    """What TAESD does in a VAE's place: nothing, one way, or both ways."""

    encoder: nn.Module | None = None
    decoder: nn.Module | None = None


NO_TINY = Tiny()


class TinyShelf:
    """The networks in memory, read from files in ``folder``; some 5 MB each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[Hashable, nn.Module] = {}

    def has(self, half: Half, model: Model) -> bool:
        return self.file(half, model).is_file()

    def file(self, half: Half, model: Model) -> Path:
        family = "taesd3" if model.prediction == "flow" else "taesdxl" if model.is_sdxl else "taesd"
        return self._folder / f"{family}_{half}.pth"

    def net(self, half: Half, model: Model, field: str) -> nn.Module:
        """[N, C, h, w] latents to pixels, or pixels to latents, for a model's family.

        Raises NotImplementedHere where the file is missing and CheckpointBroken for a wrong one.
        """
        file = self.file(half, model)
        if not file.is_file():
            raise NotImplementedHere(
                f"TAESD needs {file.name} in {file.parent}, which is not there", field=field
            )
        placement = model.placement
        key = (file, file.stat().st_mtime_ns, placement)
        if key not in self._kept:
            self._kept[key] = build(half, read_tensors(file), model.latent_channels, file.name, placement)
        return self._kept[key]


class TinyDecoder(DecoderTiny):  # type: ignore[misc]
    def __init__(self, latent_channels: int) -> None:
        super().__init__(latent_channels, 3, (3, 3, 3, 1), (CHANNELS,) * 4, 2, "relu", "nearest")

    def forward(self, x: Tensor) -> Tensor:
        pixels: Tensor = self.layers(torch.tanh(x / 3) * 3)
        return pixels


class TinyEncoder(EncoderTiny):  # type: ignore[misc]
    def __init__(self, latent_channels: int) -> None:
        super().__init__(3, latent_channels, (1, 3, 3, 3), (CHANNELS,) * 4, "relu")

    def forward(self, x: Tensor) -> Tensor:
        latents: Tensor = self.layers(x)
        return latents


def build(
    half: Half, tensors: Mapping[str, Tensor], latent_channels: int, name: str, placement: Placement
) -> nn.Module:
    """A network from its file, whose names count layers. Raises CheckpointBroken."""
    with torch.device("meta"):
        network: nn.Module = (
            TinyDecoder(latent_channels) if half == "decoder" else TinyEncoder(latent_channels)
        )
    before = 1 if half == "decoder" else 0  # layer 0 of the decoder's file clamps and has no weights
    state = {}
    for key, tensor in tensors.items():
        layer, _, rest = key.partition(".")
        state[f"layers.{int(layer) - before if layer.isdigit() else layer}.{rest}"] = tensor
    assign(network, state, name, f"TAESD {half}", placement.dtype)
    network.to(placement.device).eval().requires_grad_(False)
    return network


def mark_method(option: str, options: Options, marks: MutableMapping[str, object]) -> None:
    """Have the infotext say how pictures are encoded or decoded, where that is not as usual."""
    if options.text(option) != "Full":
        marks[METHODS[option]] = options.text(option)


class TinyChoice:
    """When a job wants TAESD: ``sd_vae_encode_method``, ``sd_vae_decode_method``, ``show_progress_type``.

    What a request asks for and is not there is refused; of the host's own options ``comments`` tell.
    """

    def __init__(self, shelf: TinyShelf, options: Options, comments: MutableSequence[str]) -> None:
        self._shelf = shelf
        self._options = options
        self._comments = comments

    def coding(self, model: Model) -> Tiny:
        """What takes the place of a model's VAE. Raises NotImplementedHere and BadRequest."""
        return Tiny(
            encoder=self._wanted("sd_vae_encode_method", ("Full", "TAESD"), "encoder", model),
            decoder=self._wanted("sd_vae_decode_method", ("Full", "TAESD"), "decoder", model),
        )

    def previewing(self, model: Model) -> nn.Module | None:
        """What live previews are made with, if not with something else. Raises like :meth:`coding`."""
        return self._wanted("show_progress_type", PREVIEWS, "decoder", model)

    def _wanted(self, option: str, known: tuple[str, ...], half: Half, model: Model) -> nn.Module | None:
        value, field = self._options.text(option), f"override_settings.{option}"
        if value not in known:
            raise BadRequest(f"{value!r} is none of {', '.join(known)}", field=field)
        if value != "TAESD":
            return None
        if option not in self._options.own and not self._shelf.has(half, model):
            file = self._shelf.file(half, model)
            self._comments.append(
                f"The option {option} has no effect: TAESD needs {file.name} in {file.parent}"
            )
            return None
        return self._shelf.net(half, model, field)
