"""Weights held in 8 bits: the webui's ``fp8_storage`` and ``cache_fp16_weight``.

What it converts are convolutions and linear layers, biases included, of everything but the VAE, to
float8_e4m3fn (4 bits of exponent, 3 of mantissa; Micikevicius et al. 2022). It is storage only: each
layer widens its weights as it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sd_cloud.engines.diffusion.options import Options
from sd_cloud.errors import BadRequest

EIGHT_BITS = torch.float8_e4m3fn
DISABLED, FOR_SDXL, ENABLED = "Disable", "Enable for SDXL", "Enable"
READS_ITS_DTYPE = ("wo",)
"""T5's: transformers gives what goes into it the layer's own type."""


@dataclass(frozen=True)
class Storage:
    """How a checkpoint is to be held. ``keeps_half``: with a 16-bit copy that LoRAs are added to."""

    fp8: str = DISABLED
    keeps_half: bool = False

    def for_family(self, *, sdxl: bool) -> Storage:
        """What it comes down to for one checkpoint."""
        if self.fp8 == ENABLED or (sdxl and self.fp8 == FOR_SDXL):
            return Storage(ENABLED, self.keeps_half)
        return PLAIN

    @property
    def in_8_bits(self) -> bool:
        return self.fp8 == ENABLED


PLAIN = Storage()


def wanted_storage(options: Options) -> Storage:
    """Raises BadRequest for a value that is none."""
    fp8 = options.get("fp8_storage")
    fp8 = DISABLED if fp8 is False else fp8
    if fp8 not in (DISABLED, FOR_SDXL, ENABLED):
        known = ", ".join((DISABLED, FOR_SDXL, ENABLED))
        raise BadRequest(f"{fp8!r:.80} is none of {known}", field="override_settings.fp8_storage")
    return Storage(fp8, options.flag("cache_fp16_weight"))


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = functional.linear(x, self.weight.to(x.dtype), _widened(self.bias, x))
        return out


class Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, self.weight.to(x.dtype), _widened(self.bias, x))
        return out


def _widened(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


Halves = dict[nn.Module, tuple[Tensor, Tensor | None]]
"""Weight and bias of layers in 16 bits, on the CPU."""
KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Linear, nn.Conv2d: Conv2d}


def hold_in_8_bits(layers: Iterable[nn.Module], *, keep_half: bool) -> Halves:
    """Convert layers in place; what they were, in 16 bits, where that is to be kept."""
    halves: Halves = {}
    for layer in layers:
        if keep_half:
            bias = layer.bias
            halves[layer] = (_half(layer.weight), None if bias is None else _half(bias))
        layer.to(EIGHT_BITS)
        layer.__class__ = KINDS[type(layer)]
    return halves


def _half(tensor: object) -> Tensor:
    assert isinstance(tensor, Tensor)
    return tensor.detach().to("cpu", torch.float16, copy=True)


def convertible(part: nn.Module, *, left_out: Iterable[str] = ()) -> Iterator[nn.Module]:
    """A part's layers that are held in 8 bits, but for those whose last name is ``left_out``."""
    names = {*READS_ITS_DTYPE, *left_out}
    for name, layer in list(part.named_modules()):
        if type(layer) in KINDS and name.rsplit(".", 1)[-1] not in names:
            yield layer


def computing(storage: Storage, device: torch.device) -> AbstractContextManager[object]:
    """In what precision a model so held is computed: on the CPU in bfloat16, as in the webui."""
    if storage.in_8_bits and device.type == "cpu":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()
