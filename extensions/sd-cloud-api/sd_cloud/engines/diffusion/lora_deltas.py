"""How a LoRA file's tensors for one layer become a change of its weight.

The forms and their names are those of LoRA (Hu et al. 2021) and LyCORIS (Yeh et al. 2023,
KohakuBlueleaf/LyCORIS): LoRA and LoCon with or without a middle tensor, LoHa, LoKr, full
differences, norms, (IA)^3, GLoRA; DoRA (Liu et al. 2024) on top of any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]


class UnknownForm(ValueError):
    """The file has tensors for this layer that are of no known form."""


@dataclass(frozen=True)
class Delta:
    weight: Tensor
    bias: Tensor | None = None


def delta(parts: Parts, weight: Tensor, multiplier: float, dynamic_rank: int | None) -> Delta:
    """The change of a layer's ``weight`` (float32), scaled. Raises UnknownForm."""
    parts = {key: value.to(weight.device, torch.float32) for key, value in parts.items()}
    change, rank = _change(parts, weight, dynamic_rank)
    if "bias" in parts:
        change = change.reshape(parts["bias"].shape) + parts["bias"]
    change = change.reshape(weight.shape)
    change = change * _scale(parts, rank)
    if "dora_scale" in parts:
        change = _decomposed(change, weight, parts["dora_scale"])
    bias = parts.get("b_norm")
    if bias is None:
        bias = parts.get("diff_b")
    return Delta(change * multiplier, None if bias is None else bias * multiplier)


def _scale(parts: Parts, rank: int | None) -> float:
    if "scale" in parts:
        return float(parts["scale"])
    if rank is not None and "alpha" in parts:
        return float(parts["alpha"]) / rank
    return 1.0


def _change(parts: Parts, weight: Tensor, dynamic_rank: int | None) -> tuple[Tensor, int | None]:
    """The unscaled change, and the rank that ``alpha`` is divided by."""
    keys = set(parts)
    if {"lora_up.weight", "lora_down.weight"} <= keys:
        up, down = parts["lora_up.weight"], parts["lora_down.weight"]
        if "lora_mid.weight" in keys:
            middle = parts["lora_mid.weight"]
            return torch.einsum("nmkl,in,mj->ijkl", middle, up.flatten(1), down.flatten(1)), down.shape[0]
        return up.flatten(1)[:, :dynamic_rank] @ down.flatten(1)[:dynamic_rank], down.shape[0]
    if {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= keys:
        return _hadamard(parts), parts["hada_w1_b"].shape[0]
    if any(key.startswith("lokr_w1") for key in keys) and any(key.startswith("lokr_w2") for key in keys):
        return _kronecker(parts, weight)
    if {"a1.weight", "a2.weight", "b1.weight", "b2.weight"} <= keys:
        return (
            parts["b2.weight"] @ parts["b1.weight"]
            + weight.float().flatten(1) @ parts["a2.weight"] @ parts["a1.weight"]
        ), parts["b1.weight"].shape[0]
    if "diff" in keys:
        return parts["diff"], None
    if "w_norm" in keys:
        return parts["w_norm"], None
    if {"weight", "on_input"} <= keys:
        gain = parts["weight"] if bool(parts["on_input"]) else parts["weight"].reshape(-1, 1)
        return weight.float() * gain, None
    raise UnknownForm(", ".join(sorted(keys)))


def _hadamard(parts: Parts) -> Tensor:
    sides = []
    for side in ("1", "2"):
        a, b = parts[f"hada_w{side}_a"], parts[f"hada_w{side}_b"]
        core = parts.get(f"hada_t{side}")
        sides.append(a.flatten(1) @ b.flatten(1) if core is None else _through_core(core, a, b))
    return sides[0] * sides[1]


def _through_core(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ijkl,jr,ip->prkl", core, b, a)


def _kronecker(parts: Parts, weight: Tensor) -> tuple[Tensor, int | None]:
    rank: int | None = None
    if "lokr_w1" in parts:
        first = parts["lokr_w1"]
    else:
        first, rank = parts["lokr_w1_a"] @ parts["lokr_w1_b"], parts["lokr_w1_b"].shape[0]
    if "lokr_w2" in parts:
        second = parts["lokr_w2"]
    else:
        a, b = parts["lokr_w2_a"], parts["lokr_w2_b"]
        rank = b.shape[0]
        core = parts.get("lokr_t2")
        second = a @ b if core is None else _through_core(core, a, b)
    if second.ndim == 4:
        first = first[:, :, None, None]
    return torch.kron(first, second.contiguous()).reshape(weight.shape), rank


def _decomposed(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: the sum's direction, with the magnitude that was trained."""
    merged = weight.float() + change
    norms = merged.transpose(0, 1).flatten(1).norm(dim=1)
    norms = norms.reshape(1, -1, *[1] * (merged.ndim - 2))
    change = merged * (magnitude / norms) - weight.float()
    return change
