"""A loaded checkpoint: U-Net, VAE, text encoders and what a sampler has to know about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.hooks import apply_group_offloading
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor, nn

from sd_cloud.engines.diffusion.eight_bits import PLAIN, Halves, Storage, convertible, hold_in_8_bits
from sd_cloud.engines.diffusion.layout import UNET, VAE, Layout, read_sidecar, recognise, vae_config
from sd_cloud.engines.diffusion.text_encoders import TextEncoder, assign, build_text_encoder
from sd_cloud.engines.diffusion.unet_shape import double_then_resize
from sd_cloud.engines.diffusion.weights_file import Tensors, read_tensors
from sd_cloud.errors import CheckpointBroken

Saving = Literal["none", "medvram", "lowvram"]


@dataclass(frozen=True)
class Placement:
    """Where weights live and in what precision they are held and computed.

    ``saving``: ``medvram`` has one part of a checkpoint on the device at a time, ``lowvram`` of
    the U-Net one layer at a time; the others wait in the machine's memory. ``saving_sdxl`` is the same
    for SDXL checkpoints.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    vae_dtype: torch.dtype = torch.float32
    saving: Saving = "none"
    saving_sdxl: Saving = "none"
    xformers: bool = False


@dataclass(eq=False)
class Model:
    """A checkpoint in memory. ``alphas_cumprod``: [timesteps] float32, on the CPU.

    ``halves`` are the weights of layers before they were stored in 8 bits, where they are kept.
    """

    file: Path
    layout: Layout
    placement: Placement
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: tuple[TextEncoder, ...]
    alphas_cumprod: Tensor
    prediction: str
    bytes_in_memory: int = 0
    storage: Storage = PLAIN
    halves: Halves = field(default_factory=dict)

    @property
    def saving(self) -> Saving:
        return self.placement.saving_sdxl if self.is_sdxl else self.placement.saving

    @property
    def is_sdxl(self) -> bool:
        return self.layout.family.startswith("sdxl")

    @property
    def latent_channels(self) -> int:
        return int(self.layout.vae["latent_channels"])

    def bring(self, part: nn.Module) -> None:
        """Have a part on the device before it runs, and where memory is saved the others off it."""
        if self.saving == "none":
            return
        for other in self.parts():
            if other is not part and not self._streams(other):
                other.to("cpu")
        if not self._streams(part):
            part.to(self.placement.device)

    def _streams(self, part: nn.Module) -> bool:
        """Whether a part's layers come to the device and go one by one."""
        return self.saving == "lowvram" and part is self.unet

    def settle(self, storage: Storage = PLAIN) -> None:
        """Hold the weights as asked and put every part where it waits, once all are built."""
        placement = self.placement
        self.storage = storage.for_family(sdxl=self.is_sdxl)
        if self.storage.in_8_bits:
            self.halves = hold_in_8_bits(self._convertible(), keep_half=self.storage.keeps_half)
        if self.saving == "lowvram":
            apply_group_offloading(
                self.unet,
                onload_device=placement.device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
            )
        for part in self.parts():
            if self.saving == "none":
                part.to(placement.device)
        for encoder in self.text:
            if encoder.projection is not None:
                moved = encoder.projection.to(placement.device)
                encoder.projection = nn.Parameter(moved, requires_grad=False)
        self.bytes_in_memory = sum(
            tensor.numel() * tensor.element_size() for part in self.parts() for tensor in part.parameters()
        )

    def _convertible(self) -> Iterator[nn.Module]:
        """Of OpenCLIP, whose q, k and v are one parameter in the webui, those are not."""
        together = [one.model for one in self.text if one.kind == "open_clip" and self.prediction != "flow"]
        for part in self.parts():
            if part is not self.vae:
                left_out = ("q_proj", "k_proj", "v_proj") if part in together else ()
                yield from convertible(part, left_out=left_out)

    def parts(self) -> tuple[nn.Module, ...]:
        return (self.unet, self.vae, *(encoder.model for encoder in self.text))


def load_model(path: Path, sidecar: Path | None, placement: Placement, storage: Storage = PLAIN) -> Model:
    """Build every part of a checkpoint from its file. Raises CheckpointBroken."""
    tensors = read_tensors(path)
    from sd_cloud.engines.diffusion import sd3  # it builds on this module

    if sd3.is_sd3(tensors):
        return sd3.load_sd3(path, tensors, placement, storage)
    layout = recognise(tensors, read_sidecar(sidecar), path.name)
    unet = build_unet(tensors, layout, path.name, placement.dtype)
    vae = build_vae(tensors, VAE, layout.vae, path.name, placement.vae_dtype)
    text = tuple(build_text_encoder(tensors, prefix, path.name, placement.dtype) for prefix in layout.text)
    alphas = tensors.get("alphas_cumprod")
    model = Model(
        file=path,
        layout=layout,
        placement=placement,
        unet=unet,
        vae=vae,
        text=text,
        alphas_cumprod=schedule(layout) if alphas is None else alphas.float().clone(),
        prediction=layout.prediction,
    )
    del tensors, alphas
    model.settle(storage)
    if model.prediction == "unknown":
        model.bring(unet)
        model.prediction = "v" if predicts_v(unet, placement) else "epsilon"
    return model


def build_unet(tensors: Tensors, layout: Layout, name: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net under diffusers' names, with the webui's way of going back to odd sizes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**layout.unet)
    own = {key: value for key, value in tensors.items() if key.startswith(UNET)}
    try:
        state = convert_ldm_unet_checkpoint(own, dict(layout.unet))
    except KeyError as error:
        raise CheckpointBroken(f"{name}: its U-Net is incomplete, {error} is missing") from error
    assign(unet, state, name, "U-Net", dtype)
    double_then_resize(unet)
    return unet.eval().requires_grad_(False)


def build_vae(
    tensors: Tensors, prefix: str, config: Mapping[str, Any], name: str, dtype: torch.dtype
) -> AutoencoderKL:
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    own = {f"{VAE}{key[len(prefix) :]}": value for key, value in tensors.items() if key.startswith(prefix)}
    known = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    own = {key: value for key, value in own.items() if key[len(VAE) :].startswith(known)}
    try:
        state = convert_ldm_vae_checkpoint(own, dict(config))
    except KeyError as error:
        raise CheckpointBroken(f"{name}: its VAE is incomplete, {error} is missing") from error
    assign(vae, state, name, "VAE", dtype)
    return vae.eval().requires_grad_(False)


def load_vae(path: Path, placement: Placement) -> AutoencoderKL:
    """A VAE from a file of its own: LDM names, with or without the checkpoint's prefix."""
    tensors = read_tensors(path)
    prefix = VAE if any(key.startswith(VAE) for key in tensors) else ""
    vae = build_vae(tensors, prefix, vae_config(tensors, prefix, path.name), path.name, placement.vae_dtype)
    return vae.to(placement.device)


def schedule(layout: Layout) -> Tensor:
    """Cumulative products of alpha of the scaled-linear schedule (DDPM, Ho et al. 2020; LDM)."""
    roots = np.linspace(layout.beta_start**0.5, layout.beta_end**0.5, layout.timesteps, dtype=np.float64)
    return torch.tensor(np.cumprod(1.0 - roots**2), dtype=torch.float32)


@torch.no_grad()
def predicts_v(unet: UNet2DConditionModel, placement: Placement) -> bool:
    """Whether an SD 2 U-Net predicts v: at the noisiest step v is near ``-x0`` and epsilon near ``x``.

    The same trial that the webui makes for SD 2 checkpoints without a yaml.
    """
    like: dict[str, Any] = {"device": placement.device, "dtype": placement.dtype}
    latent = torch.full((1, unet.config.in_channels, 8, 8), 0.5, **like)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, **like)
    out = unet(latent, torch.tensor([999.0], device=placement.device), context).sample
    return float((out - latent).float().mean()) < -1.0
